"""Checking reasoning: which statements a think part makes, and whether the tables bear them out.

Statements are read back from the text by patterns, and each is checked against the evidence's
tables, the law, the trials and the forecast: not against the prompt's text, so that a wrong prompt
is caught too.
"""

import dataclasses
import math
import re

import numpy as np

from autollm_jax.forecasts.landscapes import value_at
from autollm_jax.gym.environment import Observation
from autollm_jax.text import candidates as listing
from autollm_jax.text import prompts, spelling
from autollm_jax.text.effects import effects

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


_UNITS = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def _close(text: str, value: float, digits: int) -> bool:
    """Tell whether a number is this value, rounded to its last digit (a unit may follow: 429M).

    Of a whole number zeros at the end may stand for digits beyond the `digits` significant ones.
    """
    if not re.fullmatch(_NUMBER, text):
        return False
    unit = _UNITS.get(text[-1], 1.0)
    mantissa, _, power = text.rstrip("kMBT").partition("e")
    whole, _, decimals = mantissa.partition(".")
    last = -len(decimals) if decimals else len(whole) - len(whole.rstrip("0"))
    scale = unit * 10.0 ** int(power or 0)
    rounding = 0.5 * 10.0**last * scale
    if last > 0:
        rounding = min(rounding, 0.5 * 10.0 ** (1 - digits) * abs(value))
    return abs(float(mantissa) * scale - value) <= 1.001 * rounding + 1e-12


def _nearest(observation, size, values):
    """The values are the best cell of the usable table nearest in fidelity, and this its size."""
    seen = listing.view(observation)
    if not seen.nearest:
        return False
    other = seen.nearest[0]
    sign = other.objective.sign
    loss_R = np.where(other.outcomes.status_R == "ok", sign * other.outcomes.values_R, np.inf)
    best = spelling.spell_row(other.cells, int(np.nanargmin(loss_R)))
    facts = [n for n in (other.fidelity.parameters, other.fidelity.tokens) if n]
    words = size.split()
    if other.limit is not None:
        if words[-2:-1] != ["limit"]:
            return False
        facts, words = [*facts, other.limit["at_most"]], [*words[:-2], words[-1]]
    if other.objective.metric != observation.setting.objective.metric:
        known = sum(map(bool, (other.fidelity.parameters, other.fidelity.tokens)))
        if not words[known:] or not other.objective.metric.startswith(words.pop(known)):
            return False
    same = len(words) == len(facts) and all(
        _close(word, fact, 3) for word, fact in zip(words, facts, strict=True)
    )
    return same and values == best


def _sizes(observation, words):
    """The target has so many times the nearest table's parameters and tokens."""
    seen = listing.view(observation)
    stated = re.findall(r"(\S+) x (parameters|tokens)\b", words)
    if not seen.nearest or not stated or len(words.split()) != 2 + 3 * len(stated) + 3:
        return False
    here, there = observation.setting.fidelity, seen.nearest[0].fidelity
    return all(
        getattr(there, what) > 0 and _close(number, getattr(here, what) / getattr(there, what), 2)
        for number, what in stated
    )


_LAW = (
    r"law for \S+ (\S+) (rises with|falls with|flat in) parameters \^ (\S+) "
    r"and (rises with|falls with|flat in) tokens \^ (\S+)"
)


def _law(observation, words, name):
    """The law predicts this value, with these exponents, which have these signs."""
    seen = listing.view(observation)
    names = observation.setting.space.names
    found = re.fullmatch(_LAW, words)
    if seen.law is None or name not in names or found is None:
        return False
    number, by_size, size_slope, by_tokens, tokens_slope = found.groups()
    if not all(re.fullmatch(_NUMBER, text) for text in (size_slope, tokens_slope)):
        return False
    d = names.index(name)
    predicted = value_at(observation.setting.space.dimensions[d], float(seen.law.centre_D[d]))
    stated = ((by_size, float(size_slope)), (by_tokens, float(tokens_slope)))
    signs = {"rises with": 1, "falls with": -1, "flat in": 0}
    return _close(number, predicted, 2) and all(
        signs[word] == np.sign(slope) and abs(slope - actual) <= 0.051
        for (word, slope), actual in zip(stated, seen.law.slopes_D2[d], strict=True)
    )


def _heading(observation, equal_size):
    """The effects are those at equal size if the most relevant table has a limit."""
    seen = listing.view(observation)
    return bool(seen.nearest) and bool(equal_size) == (seen.nearest[0].limit is not None)


def _effect(observation, name, word, share):
    """More of this has this effect, of this size, in the most relevant table."""
    seen = listing.view(observation)
    percents = {e.name: e.percent for e in effects(seen.nearest[0])} if seen.nearest else {}
    signed = float(share) * (-1 if word == "helps" else 1)
    return name in percents and abs(signed - percents[name]) <= 0.5


def _listed(observation, label):
    """Return the row that the prompt lists under a label."""
    return {c.label: c.row for c in listing.candidates(observation)}.get(label)


def _lowest(observation, label, share, values):
    """The cell with this label has this forecast, and no cell that may be offered a lower one."""
    cells = observation.setting.cells
    expected_R = listing.view(observation).expected_regrets(observation.trials)
    row = _listed(observation, label)
    finite_R = np.isfinite(expected_R)
    if not finite_R.any():
        return False
    lowest = listing.rounded(float(expected_R[finite_R].min()))
    return (
        row is not None
        and values in (None, spelling.spell_row(cells, row))
        and listing.rounded(float(expected_R[row])) == lowest
        and listing.percent(lowest) == share
    )


def _losses(observation) -> list[float]:
    """Return what each trial brought, lower is better; inf where there is no outcome."""
    sign = observation.setting.objective.sign
    return [
        sign * t.outcome if t.valid and t.status == "ok" and math.isfinite(t.outcome) else math.inf
        for t in observation.trials
    ]


def _verdict(observation, word):
    """The latest trial compares so with the earlier ones."""
    if not observation.trials:
        return False
    latest, (*before, loss) = observation.trials[-1], _losses(observation)
    if math.isinf(loss):
        return word == (latest.status if latest.valid else "invalid")
    best = min(before, default=math.inf)
    return word == ("first" if math.isinf(best) else "better" if loss < best else "worse")


def _best(observation, where):
    """The best trial so far is this one, the earliest of equals."""
    losses = _losses(observation)
    if math.isinf(min(losses, default=math.inf)):
        return where == "none"
    return where == f"trial {1 + losses.index(min(losses))}"


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
    (r"what more does in the nearest( at equal size)?:", _heading),
    (r"(?<=[:%]) (\S+) (helps|hurts) (\d+\.?\d*)%", _effect),
    (rf"lowest ([A-Z]) ([\d.]+%)(?: at {_CELL})?{_STOP}", _lowest),
    (r"latest is (\w+)", _verdict),
    (rf"best is {_CELL}{_STOP}", _best),
)
