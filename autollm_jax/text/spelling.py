"""Spelling of numbers, sizes and configurations: brief, and the same everywhere."""

import collections
import functools
import itertools
import json
import math
import re
from collections.abc import Mapping

import numpy as np

from autollm_jax.gym.cells import SAME_CELL, Cells
from autollm_jax.gym.experiments import Fidelity
from autollm_jax.gym.spaces import Dimension


def short(number: float) -> str:
    """Spell a size with three significant digits: 429M, 8.0B, 100B."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * unit:
            scaled = number / unit
            return f"{scaled:.0f}{name}" if scaled >= 99.95 else f"{scaled:.1f}{name}"
    return f"{number:.0f}"


def size(fidelity: Fidelity) -> str:
    """Spell parameters and tokens, where they are known (not 0): 429M 8.0B."""
    return " ".join(short(number) for number in (fidelity.parameters, fidelity.tokens) if number)


def significant(number: float, digits: int) -> str:
    """Spell a number with this many significant digits: 1.4e-3, 0.10, 140."""
    if number == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{number:.{digits - 1}e}"))))
    if 0 <= exponent < 5 and digits <= exponent + 1:
        return f"{float(f'{number:.{digits - 1}e}'):.0f}"
    if -1 <= exponent < 5:
        return f"{number:.{max(digits - 1 - exponent, 0)}f}"
    mantissa, power = f"{number:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(power)}"


@functools.lru_cache(maxsize=65536)
def spell_number(number: float) -> str:
    """Spell a number briefly: integers below 100,000 in full, else two or three digits, 1.4e-3.

    It has the fewest significant digits, two at least, that are within 4 %: a space takes a number
    for a choice within 5 %.
    """
    if float(number).is_integer() and abs(number) < 100_000:
        return str(int(number))
    for digits in range(2, 8):
        text = significant(float(number), digits)
        if abs(float(text) - number) <= 0.04 * abs(number):
            break
    return text


@functools.lru_cache(maxsize=8192)
def choice_names(dimension: Dimension) -> dict:
    """Map each choice to its spelling, with more digits where two would look alike."""
    if not dimension.is_numeric:
        return {choice: json.dumps(choice) for choice in dimension.choices}
    names = [spell_number(choice) for choice in dimension.choices]
    if not dimension.is_log or len(set(names)) < len(names):
        for digits in range(2, 18):
            names = [
                str(c) if isinstance(c, int) else significant(c, digits) for c in dimension.choices
            ]
            exact = all(
                abs(float(n) - c) <= 0.005 * abs(c)
                for n, c in zip(names, dimension.choices, strict=True)
            )
            if len(set(names)) == len(names) and exact:
                break
    return dict(zip(dimension.choices, names, strict=True))


LONGEST_SHORT_NAME = 6
SHORTEST_SHORT_NAME = 3
LEAST_COMPONENTS = 2


@functools.lru_cache(maxsize=4096)
def short_names(dimension: Dimension) -> dict[str, str]:
    """Map each component of a simplex to its short name in texts.

    It is the first word of the component's name (three letters at least) that no other component
    has, cut to six letters; where there is none, the first three letters of each of its words, run
    together; the whole name where that is another's too.
    """
    words = {c: re.findall(r"[A-Za-z][A-Za-z0-9]*", str(c)) for c in dimension.choices}
    cut = {c: [w[:LONGEST_SHORT_NAME] for w in found] for c, found in words.items()}
    counts = collections.Counter(word for found in cut.values() for word in set(found))
    names = {}
    for c, found in cut.items():
        run_together = "".join(word[:SHORTEST_SHORT_NAME] for word in words[c]) or str(c)
        own = (w for w in found if counts[w] == 1 and len(w) >= SHORTEST_SHORT_NAME)
        names[c] = next(own, run_together)
    repeated = collections.Counter(names.values())
    names = {c: name if repeated[name] == 1 else str(c) for c, name in names.items()}
    return names if len(set(names.values())) == len(names) else {c: str(c) for c in names}


@functools.lru_cache(maxsize=1024)
def _spelled_numbers(cells: Cells, name: str) -> dict[float, str]:
    """Map each measured value of a continuous dimension to its spelling.

    A spelling has as many digits as the table needs, two at least: read back, it is less than a
    quarter of the way to the next value off, and near enough to be the same cell.
    """
    dimension = cells.space[name]
    values = sorted({config[name] for config in cells.configurations})
    low, high = dimension.extent
    units = [float(dimension.to_unit(value)[0]) for value in values]
    gaps = [math.inf, *(b - a for a, b in itertools.pairwise(units)), math.inf]
    names = {}
    for value, unit, below, above in zip(values, units, gaps[:-1], gaps[1:], strict=True):
        margin = min(below, above, SAME_CELL) / 4
        names[value] = repr(value)
        for digits in range(2, 17):
            text = significant(value, digits)
            if (
                low <= float(text) <= high
                and abs(float(dimension.to_unit(float(text))[0]) - unit) <= margin
            ):
                names[value] = text
                break
    return names


def bounds_text(dimension: Dimension) -> str:
    """Spell a continuous dimension's bounds: 1.0e-4 to 1.0e-2."""
    low, high = (
        next(
            text
            for digits in range(2, 18)
            if abs(float(text := significant(bound, digits)) - bound) <= 1e-4 * abs(bound)
        )
        for bound in dimension.extent
    )
    return f"{low} to {high}"


def spell(cells: Cells, dimension: Dimension, value) -> str:
    """Spell a measured value of a dimension, the same way everywhere; JSON reads it back."""
    if dimension.is_continuous:
        return _spelled_numbers(cells, dimension.name)[value]
    return choice_names(dimension)[value]


@functools.lru_cache(maxsize=64)
def _percents(cells: Cells, name: str) -> np.ndarray:
    """Return the measured mixtures' weights in whole percents [R, C]."""
    start = 0
    for dimension in cells.space.dimensions:
        if dimension.name == name:
            break
        start += dimension.width
    width = cells.space[name].width
    return np.round(100 * cells.units_RD[:, start : start + width]).astype(int)


@functools.lru_cache(maxsize=8192)
def mixture(cells: Cells, name: str, row: int) -> tuple[tuple[str, int], ...]:
    """Return the components of a measured mixture that are spelled: the heaviest, in percent.

    There are as many as tell it from all other measured mixtures, two at least, one percent or more
    each; the lighter ones are left out.

    Args:
      cells: of the experiment.
      name: of the simplex dimension.
      row: of the cells.

    Returns:
      (short name, percents), the heaviest first.
    """
    percents_RC, dimension = _percents(cells, name), cells.space[name]
    short, shown = short_names(dimension), []
    alike = np.arange(len(cells))
    for component in np.argsort(-percents_RC[row], kind="stable"):
        percent = int(percents_RC[row, component])
        if percent < 1 or (len(alike) == 1 and len(shown) >= LEAST_COMPONENTS):
            break
        shown.append((short[dimension.choices[component]], percent))
        alike = alike[percents_RC[alike, component] == percent]
    return tuple(shown)


def _texts(cells: Cells, row: int) -> dict[str, str]:
    """Spell a measured configuration's values by name."""
    texts = {}
    for dimension in cells.space.dimensions:
        name = dimension.name
        if dimension.kind == "simplex":
            parts = mixture(cells, name, row)
            texts[name] = "{" + ",".join(f'"{part}": {weight}' for part, weight in parts) + "}"
        else:
            texts[name] = spell(cells, dimension, cells.configurations[row][name])
    return texts


@functools.lru_cache(maxsize=8192)
def spell_row(cells: Cells, row: int) -> str:
    """Spell a measured configuration in the space's order: width 16 layers 2 heads 4.

    A single value, such as a mixture, is spelled without its name. Several have names: a small
    policy that copies them finds each by the name before it, where it would lose count.
    """
    texts = _texts(cells, row)
    named = len(texts) > 1
    return " ".join(f"{name} {text}" if named else text for name, text in texts.items())


def read_config(cells: Cells, config: Mapping | None) -> Mapping | None:
    """Read an action's configuration, in which mixtures are spelled briefly.

    A component may have its short name, and weights are relative: those left out are 0. The
    spelling of a measured mixture (see `mixture`) stands for that mixture. Unreadable values are
    returned as they are, for the gym to refuse.
    """
    if not isinstance(config, Mapping):
        return config
    read = dict(config)
    for dimension in cells.space.dimensions:
        weights = config.get(dimension.name)
        if dimension.kind == "simplex" and isinstance(weights, Mapping):
            read[dimension.name] = _read_mixture(cells, dimension, weights)
    return read


def _read_mixture(cells: Cells, dimension: Dimension, weights: Mapping) -> Mapping:
    components = {short: name for name, short in short_names(dimension).items()}
    named = {components.get(key, key): weight for key, weight in weights.items()}
    known = all(key in dimension.choices for key in named) and len(named) == len(weights)
    if not known or not all(0 <= weight < math.inf for weight in named.values()):
        return weights
    total = sum(named.values())
    if total <= 0:
        return weights
    row = _spelled_rows(cells, dimension.name).get(tuple(sorted(weights.items())))
    if row is not None:
        return cells.configurations[row][dimension.name]
    return {name: weight / total for name, weight in named.items()}


@functools.lru_cache(maxsize=64)
def _spelled_rows(cells: Cells, name: str) -> dict[tuple, int]:
    """Map each mixture's spelling to its first row."""
    rows: dict[tuple, int] = {}
    for row in range(len(cells)):
        rows.setdefault(tuple(sorted(mixture(cells, name, row))), row)
    return rows
