"""Checking reasoning: which statements a think part makes, and whether the tables bear them out.

Statements are read back from the text by patterns, and each is checked against the evidence's
tables, the law, the trials and the forecast: not against the prompt's text, so that a wrong prompt
is caught too.
"""

import dataclasses
import re

import numpy as np

from autollm_jax.agent import listing, prompts, spelling, statements
from autollm_jax.agent.surfaces import effects
from autollm_jax.gym.environment import Observation

_NAME = r"([A-Za-z_][\w.-]*)"


@dataclasses.dataclass(frozen=True)
class Claim:
    """One statement of a think part, and whether it is true."""

    text: str
    true: bool


@dataclasses.dataclass(frozen=True)
class Audit:
    """Counts of what a think part states, and of what no claim covers.

    Attributes:
      n, true: claims that were read, and those of them that are true.
      numbers, unchecked: numbers that are named, and those that stand in no claim.
      words, unread: words, and those that neither stand in a claim nor join two (`_GLUE`).
    """

    n: int
    true: int
    numbers: int
    unchecked: int
    words: int
    unread: int


def audit(think: str, observation: Observation) -> Audit:
    """Check every claim of a think part, and count what is not understood as any.

    Args:
      think: what stands between the think symbols.
      observation: the state in which it was said.
    """
    claims = check_claims(think, observation)
    rest = think
    for pattern in (*(pattern for pattern, _ in _PATTERNS), _GLUE):
        for found in re.finditer(pattern, think):
            blank = " " * len(found.group(0))
            rest = rest[: found.start()] + blank + rest[found.end() :]
    numbers, unchecked = (len(re.findall(_NUMBER, text)) for text in (think, rest))
    words, unread = (len(re.findall(r"\w[^\s,;]*", text)) for text in (think, rest))
    true = sum(claim.true for claim in claims)
    return Audit(len(claims), true, numbers, unchecked, words, unread)


def check_claims(think: str, observation: Observation) -> list[Claim]:
    """Read the numeric and directional statements of a think part and check each.

    Args:
      think: what stands between the think symbols.
      observation: the state in which it was said.
    """
    claims = []
    for pattern, check in _PATTERNS:
        for found in re.finditer(pattern, think):
            claims.append(Claim(found.group(0), bool(check(observation, *found.groups()))))
    return claims


def _nearest(observation, size, values):
    """The values are the best cell of the usable table nearest in fidelity, and this its size."""
    seen = listing.view(observation)
    if not seen.nearest:
        return False
    other = seen.nearest[0]
    sign = 1.0 if other.minimize else -1.0
    loss_R = np.where(other.status_R == "ok", sign * other.outcomes_R, np.inf)
    best = spelling.spell_row(other.cells, int(np.nanargmin(loss_R)))
    return values == best and size.startswith(spelling.size(other.fidelity))


def _sizes(observation, words):
    """The target has so many times the nearest table's parameters and tokens."""
    seen = listing.view(observation)
    return bool(seen.nearest) and words == statements.sizes_text(seen)


def _law(observation, words, name):
    """The law predicts this value, with these exponents, which have these signs."""
    seen = listing.view(observation)
    names = observation.experiment.space.names
    if seen.law is None or name not in names:
        return False
    return words == statements.law_text(seen, names.index(name))


def _heading(observation, words):
    """The effects are those at equal size if the most relevant table has a limit."""
    seen = listing.view(observation)
    return bool(seen.nearest) and words == statements.effects_heading(seen)


def _effect(observation, name, words):
    """More of this has this effect, of this size, in the most relevant table."""
    seen = listing.view(observation)
    texts = map(statements.effect_text, effects(seen.nearest[0])) if seen.nearest else ()
    return f"{name} {words}" in texts


def _listed(observation, label):
    """Return the row that the prompt lists under a label."""
    return {c.label: c.row for c in listing.candidates(observation)}.get(label)


def _lowest(observation, label, share, values):
    """The cell with this label has this forecast, and no cell that may be offered a lower one."""
    cells = observation.experiment.cells
    expected_R = listing.view(observation).expected_regrets(observation.trials)
    row = _listed(observation, label)
    brief = [r for r in np.flatnonzero(np.isfinite(expected_R)) if listing.is_brief(cells, int(r))]
    if not brief:
        return False
    lowest = listing.rounded(float(expected_R[brief].min()))
    return (
        row is not None
        and values in (None, spelling.spell_row(cells, row))
        and listing.rounded(float(expected_R[row])) == lowest
        and listing.percent(lowest) == share
    )


def _verdict(observation, words):
    """The latest trial compares so with the earlier ones."""
    if not observation.trials:
        return False
    return prompts.verdict(observation.trials[-1], observation) == words


def _best(observation, where):
    """The best trial so far is this one."""
    return where == prompts.best_text(observation)


# Numbers, not the digits of a name (w16, github2).
_NUMBER = r"(?<![\w.])-?\d[\d.]*(?:e-?\d+)?[kMBT]?(?![A-Za-z_])"
# Words that join claims and state nothing.
_GLUE = r"\band\b"
_CELL = r"([^;<]+?)"
_STOP = rf"(?={prompts.LINE}|;?$)"  # a think part comes without the spaces around it
_PATTERNS = (
    (rf"best of the nearest cheap experiment: ([^;<]*?) at {_CELL}{_STOP}", _nearest),
    (rf"(target has [^;<]+?){_STOP}", _sizes),
    (rf"(law for {_NAME} [^;<]+?){_STOP}", _law),
    (r"(what more does in the nearest(?: at equal size)?):", _heading),
    (r"(?<=[:%]) (\S+) ((?:helps|hurts) [\d.]+%)", _effect),
    (rf"lowest ([A-Z]) ([\d.]+%)(?: at {_CELL})?{_STOP}", _lowest),
    (r"latest is (\w+)", _verdict),
    (rf"best is {_CELL}{_STOP}", _best),
)
