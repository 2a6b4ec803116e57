"""Rows as runs: configuration, fidelity, outcome, status; what cannot be used is named."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autollm_jax.advise.columns import Column, Understanding, labelled
from autollm_jax.advise.rows import Cell, Rows
from autollm_jax.advise.values import is_missing
from autollm_jax.gym.spaces import InvalidConfiguration

STATUSES = {  # what trackers call them
    "ok": r"ok|finished|complete[d]?|done|success(ful)?|succeeded|true|1|passed|terminated",
    "diverged": r"diverged|nan|exploded|unstable|pruned|early_?stopped",
    "infeasible": r"infeasible|oom|out_?of_?memory|cuda_?oom|too_?large|over_?limit",
    "failed": r"fail(ed|ure)?|crash(ed)?|error(ed)?|killed|preempted|lost|false|0|timeout|aborted",
    "running": r"running|pending|queued|waiting|scheduled|started|alive",
}
NAMED = 3  # rows of one kind that are named where many are left out


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
      config: one value per hyperparameter.
      fidelity: by name, what is known of it.
      context: by column, what tells experiments of one size apart.
      outcome: the objective; nan where there is none.
      status: ok, diverged, infeasible or running.
      size: of the configuration, where the target limits it; nan elsewhere.
      place: where the row stands.
    """

    config: dict
    fidelity: dict[str, float]
    context: dict[str, str]
    outcome: float
    status: str
    place: str
    size: float = math.nan


def clean(rows: Rows, known: Understanding) -> tuple[list[Run], list[str]]:
    """Turn rows into runs.

    Returns:
      The runs, those under way among them, and notes on the rows that cannot be used: of many with
      one fault the first are named, and the rest are counted.
    """
    runs: list[Run] = []
    unused: dict[str, list[str]] = {}  # notes by what is wrong

    def readers(role: str, read: Callable) -> list[_Reader]:
        return [_Reader(column, known, read) for column in known.of(role)]

    statuses, chosen = readers("status", _status), readers("hyperparameter", _chosen)
    fidelities, sizes = readers("fidelity", _positive), readers("size", _positive)
    (outcomes,) = readers("objective", lambda row, column, known: known.number(row, column))
    contexts = known.of("context")
    for row, place in zip(rows.rows, rows.places, strict=True):
        try:
            status = next(filter(None, (read(row) for read in statuses)), "ok")
            if status == "failed":
                raise _Unusable("failed, for a reason that is not known")
            config = _config(row, chosen)
            fidelity = {read.column.meaning: read(row) for read in fidelities}
            size = sizes[0](row) if sizes else math.nan
            context = {c.name: str(row.get(c.name)) for c in contexts}
        except _Unusable as problem:
            unused.setdefault(problem.kind, []).append(f"{place}: {problem}; left out")
            continue
        outcome = outcomes(row)
        if status == "running":
            runs.append(Run(config, fidelity, context, math.nan, status, place, size))
            continue
        if status == "ok" and outcome is None:
            problem = _unusable(known.objective, row, "not a number")
            unused.setdefault(problem.kind, []).append(f"{place}: {problem}; left out")
            continue
        if outcome is None or not math.isfinite(outcome):
            # An infinite or undefined loss is what a run that diverged leaves behind.
            outcome, status = math.nan, "diverged" if status == "ok" else status
        runs.append(Run(config, fidelity, context, outcome, status, place, size))
    notes = []
    for kind, alike in unused.items():
        named = NAMED if len(alike) > NAMED + 1 else len(alike)
        notes += alike[:named]
        if rest := len(alike) - named:
            notes.append(f"{rest} more rows: {kind}; left out")
    return runs, notes


class _Unusable(ValueError):
    """A row cannot be used; the message says why, `kind` without the row's own value."""

    def __init__(self, message: str, kind: str = ""):
        super().__init__(message)
        self.kind = kind or message


def _unusable(column: Column, row: Mapping[str, Cell], what: str) -> _Unusable:
    return _Unusable(
        f"{column.name} is {labelled(column, row)}, {what}", f"{column.name} is {what}"
    )


class _Reader:
    """Reads one column of every row; a text that comes again is read once.

    Args:
      column: what is read.
      known: what the columns mean.
      read: takes a row, the column and `known`; gives the value.
    """

    def __init__(self, column: Column, known: Understanding, read: Callable):
        self.column, self._known, self._read = column, known, read
        self._found: dict[str, Any] = {}

    def __call__(self, row: Mapping[str, Cell]) -> Any:
        cell = row.get(self.column.name)
        if not isinstance(cell, str):
            return self._read(row, self.column, self._known)
        if cell not in self._found:
            self._found[cell] = self._read(row, self.column, self._known)
        return self._found[cell]


def _status(row: Mapping[str, Cell], column: Column, known: Understanding) -> str:
    """Tell how a run ended: ok, diverged, infeasible, failed or running; "" for nothing said."""
    del known
    cell = row.get(column.name)
    if is_missing(cell):
        return ""
    text = re.sub(r"[^a-z0-9]+", "_", str(cell).lower()).strip("_")
    for status, pattern in STATUSES.items():
        if re.fullmatch(pattern, text):
            return status
    raise _unusable(column, row, "no status that is known here")


def _config(row: Mapping[str, Cell], chosen: Sequence[_Reader]) -> dict:
    config: dict = {}
    for read in chosen:
        column = read.column
        if column.mixture:
            config.setdefault(column.mixture, {})[column.meaning] = read(row)
        else:
            config[column.meaning] = read(row)
    for name, value in config.items():
        if isinstance(value, dict):
            total = sum(value.values())
            if total <= 0:
                raise _Unusable(f"the weights of {name} sum to {total:g}")
            config[name] = {part: weight / total for part, weight in value.items()}
    return config


def _chosen(row: Mapping[str, Cell], column: Column, known: Understanding):
    """Read a hyperparameter, or the weight of a mixture's component."""
    dimension = column.dimension
    if not column.mixture and is_missing(row.get(column.name)):
        raise _Unusable(f"{column.name} is missing (--ignore={column.name} keeps such rows)")
    if dimension is not None and not dimension.is_numeric:
        return str(row.get(column.name))
    amount = known.number(row, column)
    if amount is None or not math.isfinite(amount):
        raise _unusable(column, row, "not a number")
    if dimension is None:
        return amount
    try:
        return dimension.canonical(amount)
    except InvalidConfiguration:
        low, high = dimension.extent
        raise _unusable(column, row, f"outside {low:g} to {high:g}") from None


def _positive(row: Mapping[str, Cell], column: Column, known: Understanding) -> float:
    amount = known.number(row, column)
    if amount is None or not 0 < amount < math.inf:
        raise _unusable(column, row, "not a positive number")
    return amount
