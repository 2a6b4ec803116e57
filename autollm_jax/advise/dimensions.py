"""Columns as dimensions of a space: choices, ranges and their scale, and mixtures."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from autollm_jax.advise.columns import Column, Hints
from autollm_jax.advise.names import LOG_NAMES, plainly
from autollm_jax.advise.values import ColumnCells
from autollm_jax.errors import UserError
from autollm_jax.gym.spaces import Dimension

MIXTURE = "mixture"
LISTED = 12  # a column of at most so many numbers may be a list of choices
LEAST_REPEATS = 2.0  # runs for each of these numbers in the mean
LOG_RATIO = 8.0  # positive numbers that span so much are compared by their ratios
LEAST_PARTS, SUM_ERROR = 3, 0.02  # components of a mixture, relative error of their sum


def hyperparameter(name: str, meaning: str, values: ColumnCells, said: Mapping, why: str) -> Column:
    """Make the column of a hyperparameter.

    Args:
      name: of the column.
      meaning: the hyperparameter's own name.
      values: the column's cells.
      said: what space.json says of it.
      why: the reason for its role.

    Raises:
      UserError: it has no values, or what is said does not fit.
    """
    kind = said.get("kind")
    if not values.present:
        raise UserError(f"column {name}: has no values, so it is no hyperparameter")
    try:
        if kind or said.get("choices") or said.get("bounds"):
            given = {k: tuple(said[k]) for k in ("choices", "bounds") if said.get(k)}
            guess = _dimension(meaning, values, kind)
            kind = kind or guess.kind
            if len(given) == 1:  # a list has choices and a range has bounds, whatever was guessed
                kind = _kind_with(kind, "bounds" in given)
            if not given:
                made = dataclasses.replace(guess, kind=kind)
            else:
                made = Dimension(meaning, kind, **given)
            return Column(name, "hyperparameter", meaning, made, "", why)
        if said.get("mixture"):
            part = meaning.removeprefix(f"{said['mixture']}.")
            return Column(name, "hyperparameter", part, None, said["mixture"], why)
        return Column(name, "hyperparameter", meaning, _dimension(meaning, values), "", why)
    except (ValueError, TypeError) as error:
        raise UserError(f"column {name}: {error}") from error


def _kind_with(kind: str, bounded: bool) -> str:
    """Return the kind of the same scale that has bounds, or that has choices."""
    scale = "log-" if kind.startswith("log-") else ""
    if bounded:
        return f"{scale}continuous" if kind.endswith("ordinal") else kind
    return f"{scale}ordinal" if kind.endswith("continuous") else kind


def _dimension(name: str, values: ColumnCells, kind: str | None = None) -> Dimension:
    """Make the dimension of a column: numbers listed or within bounds, or texts."""
    if kind == "categorical" or not values.is_numeric:
        return Dimension(name, "categorical", tuple(sorted(values.texts)))
    numbers = values.distinct
    low, high = numbers[0], numbers[-1]
    ratio = high / low if low > 0 else 0.0
    log = low > 0 and (ratio >= LOG_RATIO or (ratio > 2 and re.fullmatch(LOG_NAMES, plainly(name))))
    few = len(numbers) <= LISTED and len(values.finite) >= LEAST_REPEATS * len(numbers)
    if kind in (None, "ordinal", "log-ordinal") and (few or kind) or len(numbers) == 1:
        whole = [int(n) if float(n).is_integer() else n for n in numbers]
        return Dimension(name, kind or ("log-ordinal" if log else "ordinal"), tuple(whole))
    return Dimension(name, kind or ("log-continuous" if log else "continuous"), (), (low, high))


def with_mixtures(
    columns: dict[str, Column], values: Mapping[str, ColumnCells], hints: Hints
) -> dict[str, Column]:
    """Find components of a mixture: columns of one prefix, or all shares, whose rows sum to 1."""
    groups: dict[str, list[str]] = {}
    for column in columns.values():
        dimension = column.dimension
        said = column.name in hints.roles or column.name in hints.columns
        if column.role != "hyperparameter" or dimension is None or said:
            continue
        numeric = values[column.name].is_numeric and values[column.name].distinct[0] >= 0
        if numeric:
            stem = (
                re.split(r"[./_:]", column.meaning)[0]
                if re.search(r"[./:]", column.meaning)
                else ""
            )
            groups.setdefault(stem, []).append(column.name)
    made = dict(columns)
    for stem, names in groups.items():
        if len(names) < LEAST_PARTS or not _sums_alike([values[name].numbers for name in names]):
            continue
        for name in names:
            meaning = columns[name].meaning
            part = meaning[len(stem) + 1 :] if stem else meaning
            made[name] = Column(name, "hyperparameter", part, None, stem or MIXTURE,
                                "shares that sum to one")  # fmt: skip
    return made


def _sums_alike(numbers: Sequence[Sequence[float]]) -> bool:
    if len({len(column) for column in numbers}) != 1:
        return False
    sums = [sum(row) for row in zip(*numbers, strict=True)]
    whole = 100.0 if sums and sums[0] > 50 else 1.0
    return all(abs(total - whole) <= SUM_ERROR * whole for total in sums)
