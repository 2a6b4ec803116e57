"""Claims: the statements of a think part, checked against the tables.

Patterns read the statements back from the text. Each is checked against the evidence's tables, the
law, the trials and the forecast, not against the prompt's text, so that a wrong prompt is caught
too.
"""

import dataclasses
import math
import re

import numpy as np

from autollm_jax.forecasts.landscapes import value_at
from autollm_jax.gym.environment import Observation
from autollm_jax.text import candidates, prompts, spelling
from autollm_jax.text.effects import effects

_NAME = r"([A-Za-z_][\w.-]*)"


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
      words, unread: words, and those that neither stand in a claim nor join two (`_GLUE`).
    """

    n: int
    true: int
    numbers: int
    unchecked: int
    words: int
    unread: int


def audit(think: str, observation: Observation) -> Audit:
    """Check every claim of a think part, and count the words and numbers outside claims.

    Args:
      think: the text between the think symbols.
      observation: the state in which it was written.
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
      think: the text between the think symbols.
      observation: the state in which it was written.
    """
    claims = []
    for pattern, check in _PATTERNS:
        for found in re.finditer(pattern, think):
            claims.append(Claim(found.group(0), bool(check(observation, *found.groups()))))
    return claims


_UNITS = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def _close(text: str, value: float, digits: int) -> bool:
    """Tell whether a spelled number is this value, rounded to its last digit (429M has a unit).

    The zeros that end a whole number may stand for digits beyond the `digits` significant ones.
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
    """Check the values of the nearest table's best cell, and that table's size."""
    seen = candidates.forecast_of(observation)
    if not seen.nearest:
        return False
    other = seen.nearest[0]
    best = spelling.spell_row(other.cells, other.outcomes.best_row)
    facts = [n for n in (other.fidelity.parameters, other.fidelity.tokens) if n]
    words = size.split()
    if other.limit is not None:
        if words[-2:-1] != ["limit"]:
            return False
        facts, words = [*facts, other.limit["at_most"]], [*words[:-2], words[-1]]
    if other.objective.metric != observation.setting.objective.metric:
        limits = int(other.limit is not None)
        known, end = len(facts) - limits, len(words) - limits
        metric, words = " ".join(words[known:end]), [*words[:known], *words[end:]]
        if not metric or not " ".join(other.objective.metric.split()).startswith(metric):
            return False
    same = len(words) == len(facts) and all(
        _close(word, fact, 3) for word, fact in zip(words, facts, strict=True)
    )
    return same and values == best


def _sizes(observation, words):
    """Check the ratios of the target's parameters and tokens to the nearest table's."""
    seen = candidates.forecast_of(observation)
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
    """Check the law's value, its exponents and their signs."""
    seen = candidates.forecast_of(observation)
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
    """Check that effects are stated at equal size exactly where the nearest table has a limit."""
    seen = candidates.forecast_of(observation)
    return bool(seen.nearest) and bool(equal_size) == (seen.nearest[0].limit is not None)


def _effect(observation, name, word, share):
    """Check the direction and size of one effect in the nearest table."""
    seen = candidates.forecast_of(observation)
    percents = {e.name: e.percent for e in effects(seen.nearest[0])} if seen.nearest else {}
    signed = float(share) * (-1 if word == "helps" else 1)
    return name in percents and abs(signed - percents[name]) <= 0.5


def _lowest(observation, label, share, values):
    """Check a labelled cell's forecast, and that no other cell has a lower one."""
    cells = observation.setting.cells
    expected_R = candidates.forecast_of(observation).expected_regrets(observation.trials)
    row = {c.label: c.row for c in candidates.list_candidates(observation)}.get(label)
    finite_R = np.isfinite(expected_R)
    if not finite_R.any():
        return False
    lowest = candidates.rounded(float(expected_R[finite_R].min()))
    return (
        row is not None
        and values in (None, spelling.spell_row(cells, row))
        and candidates.rounded(float(expected_R[row])) == lowest
        and candidates.percent(lowest) == share
    )


def _losses(observation) -> list[float]:
    """Return each trial's loss; inf where it is not ok."""
    return [trial.loss(observation.setting) for trial in observation.trials]


def _verdict(observation, word):
    """Check how the latest trial compares with the earlier ones."""
    if not observation.trials:
        return False
    latest, (*before, loss) = observation.trials[-1], _losses(observation)
    if math.isinf(loss):
        return word == (latest.status if latest.valid else "invalid")
    best = min(before, default=math.inf)
    return word == ("first" if math.isinf(best) else "better" if loss < best else "worse")


def _best(observation, where):
    """Check which trial is the best so far, the earliest of equals."""
    losses = _losses(observation)
    if math.isinf(min(losses, default=math.inf)):
        return where == "none"
    return where == f"trial {1 + losses.index(min(losses))}"


# Numbers, but not the digits of a name (w16, github2).
_NUMBER = r"(?<![\w.])-?\d[\d.]*(?:e-?\d+)?[kMBT]?(?![A-Za-z_])"
# Words that join claims and state nothing of their own.
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
