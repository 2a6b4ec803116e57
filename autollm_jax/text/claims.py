"""Claims: the statements of a think part, checked against the state and the forecasts.

Patterns read the statements back from the text. Each is checked against the trials and the
advisers, not against the prompt's text, so that a wrong prompt is caught too.
"""

import dataclasses
import re

from autollm_jax.forecasts.advice import Decision
from autollm_jax.forecasts.advisers import COUNSEL
from autollm_jax.text import prompts
from autollm_jax.text.symbols import LETTERS, PANELS


@dataclasses.dataclass(frozen=True)
class Claim:
    """One statement of a think part, and whether it is true."""

    text: str
    true: bool


@dataclasses.dataclass(frozen=True)
class Audit:
    """Counts over one think part.

    Attributes:
      n, true: claims, and the true ones among them.
      numbers, unchecked: numbers, and those outside any claim.
      words, unread: words, and those outside any claim.
    """

    n: int
    true: int
    numbers: int
    unchecked: int
    words: int
    unread: int


def audit(think: str, decision: Decision) -> Audit:
    """Check every claim of a think part, and count the words and numbers outside claims.

    Args:
      think: the text between the think symbols.
      decision: the state in which it was written.
    """
    claims, rest = check_claims(think, decision), think
    for pattern, _ in _PATTERNS:
        rest = re.sub(pattern, lambda found: " " * len(found[0]), rest)
    numbers, unchecked = (
        len(re.findall(r"\b\d[\d.]*(?:e[+-]?\d+)?", text)) for text in (think, rest)
    )
    words, unread = (len(re.findall(r"\w[^\s,;]*", text)) for text in (think, rest))
    true = sum(claim.true for claim in claims)
    return Audit(len(claims), true, numbers, unchecked, words, unread)


def check_claims(think: str, decision: Decision) -> list[Claim]:
    """Read the statements of a think part and check each.

    Args:
      think: the text between the think symbols.
      decision: the state in which it was written.
    """
    return [
        Claim(found[0], bool(check(decision, *found.groups())))
        for pattern, check in _PATTERNS
        for found in re.finditer(pattern, think)
    ]


def think(decision: Decision, trusted: int) -> str:
    """Write the thinking before a choice: the standing of the trials, then whom to trust.

    latest is worse, best is trial 1, closest (drift), farthest (own); trust (all-but-own)#C

    Args:
      decision: the state.
      trusted: the position of the panel that is trusted.
    """
    seen, parts = decision.observation, []
    if seen.trials:
        parts.append(f"latest is {prompts.verdict(seen.trials[-1], seen)}")
        parts.append(f"best is {prompts.best_text(seen)}")
    if len(seen.trials) > 1:
        parts.append(f"closest {prompts.closest(decision)}")
        parts.append(f"farthest {prompts.farthest(decision)}")
    standing = f"{', '.join(parts)}; " if parts else ""
    letter = LETTERS[decision.offer.picks[trusted]]
    return f"{standing}trust {PANELS[trusted]}{letter}"


def _losses(decision):
    """Return the loss of each trial that gave an outcome, by its number."""
    seen = decision.observation
    return {trial.number: trial.loss(seen.setting) for trial in seen.trials if trial.ok}


def _latest(decision, word):
    """Compare the latest trial with the earlier ones."""
    if not decision.observation.trials:
        return False
    latest, before = decision.observation.trials[-1], _losses(decision)
    loss = before.pop(latest.number, None)
    if loss is None:
        return word == (latest.status if latest.valid else "invalid")
    if not before:
        return word == "first"
    return word == ("better" if loss < min(before.values()) else "worse")


def _best(decision, where):
    """Check that no trial was better, and no earlier one as good."""
    losses = _losses(decision)
    if where == "none" or not losses:
        return where == "none" and not losses
    number = int(where.removeprefix("trial "))
    return number == min(losses, key=lambda n: (losses[n], n))


def _above_best(decision, name, sign):
    """Return by how much some adviser was less off (more: sign -1) at the trials; None: unknown."""
    if name[1:-1] not in COUNSEL or len(decision.observation.trials) < 2:
        return None
    off_A = sign * decision.advice.surprise_A
    return off_A[PANELS.index(name)] - off_A.min()


def _closest(decision, name):
    """Check that no adviser was off by less at the trials."""
    return _above_best(decision, name, 1) == 0


def _farthest(decision, name):
    """Check that no adviser was off by more at the trials."""
    return _above_best(decision, name, -1) == 0


def _first(decision, name, letter):
    """Check which candidate a panel puts first."""
    known = name in PANELS and letter in LETTERS
    return known and decision.offer.picks[PANELS.index(name)] == LETTERS.index(letter)


_PANEL = r"(\([a-z-]+\))"
_PATTERNS = (
    (r"latest is (\w+)", _latest),
    (r"best is (none|trial \d+)", _best),
    (rf"closest {_PANEL}", _closest),
    (rf"farthest {_PANEL}", _farthest),
    (rf"trust {_PANEL} ?(#[A-P])", _first),
)
