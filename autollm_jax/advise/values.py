"""What cells mean: numbers in all their spellings, missing values, the cells of a column."""

import functools
import math
import re
from collections.abc import Mapping, Sequence

from autollm_jax.advise.rows import Cell

MISSING = frozenset(
    ("", "-", "--", "na", "n/a", "null", "none", "nil", "?", ".", "#n/a", "missing")
)
NOT_A_NUMBER = ("nan", "-nan", "1.#qnan", "1.#ind", "#num!", "#div/0!")
INFINITE = ("inf", "+inf", "-inf", "infinity", "-infinity", "1.#inf", "∞")
# Suffixes of counts and durations. "m" is a million beside k and b, and a minute beside s and h.
COUNTS = {
    "k": 1e3, "thousand": 1e3, "m": 1e6, "mn": 1e6, "mio": 1e6, "million": 1e6, "b": 1e9, "g": 1e9,
    "bn": 1e9, "mrd": 1e9, "billion": 1e9, "t": 1e12, "tn": 1e12, "trillion": 1e12,
}  # fmt: skip
HOURS = {"s": 1 / 3600, "sec": 1 / 3600, "min": 1 / 60, "h": 1.0, "hr": 1.0, "hrs": 1.0, "d": 24.0}
UNITS = (
    "params",
    "parameters",
    "tokens",
    "toks",
    "steps",
    "epochs",
    "flops",
    "flop",
    "gpu",
    "nats",
)
WHOLE_NUMBER_SHARE = 0.9  # of a column's cells that are numbers: then the rest are mistakes
_NUMBER = re.compile(
    r"([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(%|[a-z/\- ]*)", re.IGNORECASE
)
_CLOCK = re.compile(r"(?:(\d+) days?,? )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?")
_DECIMAL = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?\s*(%|[a-z/\- ]*)", re.IGNORECASE)
_SPREAD = re.compile(r"(.*?\d)\s*(?:±|\+/-|\+-)\s*[\d.,e-]+|(.*?\d)\s*\([\d.,e-]+\)")
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?) ?([kmb])(?![a-z0-9])")
_COMMA = re.compile(r"[+-]?[\d.]*,\d+(e[+-]?\d+)?", re.IGNORECASE)
_POWER = re.compile(r"([+-]?\d+\.?\d*)?\s*[*x×]?\s*(10|2)\s*(?:\^|\*\*)\s*\(?([+-]?\d+\.?\d*)\)?")


def is_missing(cell: Cell) -> bool:
    """Whether a cell says nothing; NaN is not missing: something was measured."""
    return cell is None or (isinstance(cell, str) and cell.strip().lower() in MISSING)


def number(cell: Cell, decimal_comma: bool = False) -> float | None:
    """Read a number: 3e-4, 1,000, 2^-9, 7B, 300k tokens, 12 h, 1:30:00, 5%; nan and infinities.

    Counts are plain numbers, durations are hours, percents are shares of 1.

    Args:
      cell: of a file.
      decimal_comma: whether 0,5 is a half.

    Returns:
      None where the cell is no number.
    """
    if isinstance(cell, bool) or cell is None:
        return None
    if isinstance(cell, int | float):
        try:
            return float(cell)
        except OverflowError:
            return math.inf
    try:
        return float(cell)  # most cells are plain numbers; the spellings below take far longer
    except ValueError:
        return _spelled(cell, decimal_comma)


def numbers(cells: Sequence[Cell], decimal_comma: bool = False) -> list[float | None]:
    """Read the numbers of many cells, as `number` reads one; a text that comes again once."""
    if set(map(type, cells)) == {str}:
        try:
            return list(map(float, cells))  # type: ignore[arg-type]
        except ValueError:
            pass  # not all of them are plain
    known: dict[str, float | None] = {}
    made = []
    for cell in cells:
        if not isinstance(cell, str):
            made.append(number(cell))
            continue
        if cell not in known:
            known[cell] = number(cell, decimal_comma)
        made.append(known[cell])
    return made


def size_in(cell: Cell) -> float | None:
    """Read the size that a model's name says; None where it says none, or several.

    >>> size_in("pythia-160m-deduped"), size_in("Qwen2.5-0.5B"), size_in("adamw")
    (160000000.0, 500000000.0, None)
    """
    found = _SIZE.findall(str(cell).lower())
    return float(found[0][0]) * COUNTS[found[0][1]] if len(found) == 1 else None


def _spelled(cell: str, decimal_comma: bool) -> float | None:
    """Read a number that is spelled in a person's way."""
    text = cell.strip().lower().strip("'\"~≈$")
    if text in NOT_A_NUMBER:
        return math.nan
    if text in INFINITE:
        return -math.inf if text.startswith("-") else math.inf
    if text[:1].isalpha() and text[0] != "x":  # x10^-3 is a number, other words are none
        return None
    text = text.replace("−", "-").replace("\u00a0", " ")
    if found := _SPREAD.fullmatch(text):  # a mean with its deviation
        text = found[1] or found[2]
    if found := _CLOCK.fullmatch(text):
        days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
        return 24 * days + hours + minutes / 60 + seconds / 3600
    if found := _POWER.fullmatch(text):
        factor, base, exponent = found.groups()
        return float(factor or 1) * float(base) ** float(exponent)
    if decimal_comma and _COMMA.match(text):
        text = text.replace(".", "").replace(",", ".")
    elif _GROUPED.match(text):
        text = text.replace(",", "")
    return _with_unit(text)


def _with_unit(text: str) -> float | None:
    found = _NUMBER.fullmatch(text)
    if not found:
        return None
    value, unit = float(found[1].replace("_", "")), found[2].strip()
    if unit == "%":
        return value / 100
    for word in UNITS:
        unit = unit.removesuffix(word).strip(" -/")
    if not unit:
        return value
    factor = COUNTS.get(unit) or COUNTS.get(unit.removesuffix("s")) or HOURS.get(unit)
    return None if factor is None else value * factor


def has_decimal_commas(cells: Sequence[Cell]) -> bool:
    """Whether a column's commas must stand before decimals: 0,001 and 12,5, not 1,000."""
    return any(_DECIMAL.fullmatch(t) and not _GROUPED.fullmatch(t) for t in _with_commas(cells))


def has_thousands(cells: Sequence[Cell]) -> bool:
    """Whether a column's commas must stand between thousands: 1,000,000 and 1,000.5."""
    return any(
        _GROUPED.fullmatch(t) and (t.count(",") > 1 or "." in t) for t in _with_commas(cells)
    )


def _with_commas(cells: Sequence[Cell]) -> list[str]:
    return [cell.strip() for cell in cells if isinstance(cell, str) and "," in cell]


def spell(value: Cell) -> str:
    """Spell a value briefly: six digits of a number."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def spell_config(config: Mapping) -> str:
    """Spell a configuration in one line: learning_rate=0.001 batch_size=64."""
    return " ".join(f"{name}={spell_value(value)}" for name, value in config.items())


def spell_value(value) -> str:
    """Spell a value of a configuration; a mixture as the percents of its components."""
    if isinstance(value, Mapping):
        return ",".join(f"{part}:{100 * weight:.3g}%" for part, weight in value.items())
    return spell(value)


class ColumnCells:
    """The cells of one column, and what they are.

    Args:
      cells: one for each row.
      decimal_comma: whether 0,5 is a half.

    Attributes:
      present: those that say something.
      numbers: those that are numbers; nan and infinities among them.
      finite: the finite ones.
      distinct: the finite ones, each once, in order.
      is_numeric: whether the column holds numbers, a few mistakes aside.
    """

    def __init__(self, cells: Sequence[Cell], decimal_comma: bool):
        read = numbers(cells, decimal_comma)
        self.present = [
            cell
            for cell, value in zip(cells, read, strict=True)
            if value is not None or not is_missing(cell)
        ]
        self.numbers = [n for n in read if n is not None]
        self.finite = [n for n in self.numbers if math.isfinite(n)]
        self.distinct = sorted(set(self.finite))
        self.is_numeric = bool(self.finite) and (
            len(self.numbers) >= WHOLE_NUMBER_SHARE * len(self.present)
        )

    @functools.cached_property
    def texts(self) -> list[str]:
        """What the cells say, each once, in their order."""
        return list(dict.fromkeys(map(str, self.present)))

    @property
    def varies(self) -> bool:
        """Whether two cells differ."""
        return len(self.distinct if self.is_numeric else self.texts) > 1
