"""Rows as runs: configuration, fidelity, outcome, status; what cannot be used is named."""

import dataclasses
import math
import re
from collections.abc import Mapping

from autollm_jax.advise.columns import Column, Understanding, labelled
from autollm_jax.advise.reading import Cell, Rows
from autollm_jax.advise.values import is_missing
from autollm_jax.gym.spaces import InvalidConfiguration

STATUSES = {  # what trackers call them
    "ok": r"ok|finished|complete[d]?|done|success(ful)?|succeeded|true|1|passed|terminated",
    "diverged": r"diverged|nan|exploded|unstable|pruned|early_?stopped",
    "infeasible": r"infeasible|oom|out_?of_?memory|cuda_?oom|too_?large|over_?limit",
    "failed": r"fail(ed|ure)?|crash(ed)?|error(ed)?|killed|preempted|lost|false|0|timeout|aborted",
    "running": r"running|pending|queued|waiting|scheduled|started|alive",
}


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
      The runs, those under way among them, and a note for each row that cannot be used.
    """
    runs, notes = [], []
    for row, place in zip(rows.rows, rows.places, strict=True):
        try:
            status = _status(row, known)
            if status == "failed":
                notes.append(f"{place}: failed, for a reason that is not known; left out")
                continue
            config = _config(row, known)
            fidelity, size = _fidelity(row, known), _size(row, known)
            context = {c.name: str(row.get(c.name)) for c in known.of("context")}
        except _Unusable as problem:
            notes.append(f"{place}: {problem}; left out")
            continue
        outcome = known.number(row, known.objective)
        if status == "running":
            runs.append(Run(config, fidelity, context, math.nan, status, place, size))
            continue
        if status == "ok" and outcome is None:
            shown = labelled(known.objective, row)
            notes.append(f"{place}: {known.objective.name} is {shown}, not a number; left out")
            continue
        if outcome is None or not math.isfinite(outcome):
            # An infinite or undefined loss is what a run that diverged leaves behind.
            outcome, status = math.nan, "diverged" if status == "ok" else status
        runs.append(Run(config, fidelity, context, outcome, status, place, size))
    return runs, notes


class _Unusable(ValueError):
    """A row cannot be used; the message says why."""


def _status(row: Mapping[str, Cell], known: Understanding) -> str:
    """Tell how a run ended: ok, diverged, infeasible, failed or running."""
    for column in known.of("status"):
        cell = row.get(column.name)
        if is_missing(cell):
            continue
        text = re.sub(r"[^a-z0-9]+", "_", str(cell).lower()).strip("_")
        for status, pattern in STATUSES.items():
            if re.fullmatch(pattern, text):
                return status
        raise _Unusable(f"{column.name} is {labelled(column, row)}, which is no status known here")
    return "ok"


def _config(row: Mapping[str, Cell], known: Understanding) -> dict:
    config: dict = {}
    for column in known.of("hyperparameter"):
        cell = row.get(column.name)
        if column.mixture:
            weight = known.number(row, column)
            if weight is None or not math.isfinite(weight):
                raise _Unusable(f"{column.name} is {labelled(column, row)}, not a number")
            config.setdefault(column.mixture, {})[column.meaning] = weight
            continue
        if is_missing(cell):
            raise _Unusable(f"{column.name} is missing")
        config[column.meaning] = _value(row, column, known)
    for name, value in config.items():
        if isinstance(value, dict):
            total = sum(value.values())
            if total <= 0:
                raise _Unusable(f"the weights of {name} sum to {total:g}")
            config[name] = {part: weight / total for part, weight in value.items()}
    return config


def _value(row: Mapping[str, Cell], column: Column, known: Understanding):
    dimension = column.dimension
    if dimension is None or not dimension.is_numeric:
        return str(row.get(column.name))
    amount = known.number(row, column)
    if amount is None or not math.isfinite(amount):
        raise _Unusable(f"{column.name} is {labelled(column, row)}, not a number")
    try:
        return dimension.canonical(amount)
    except InvalidConfiguration:
        low, high = dimension.extent
        raise _Unusable(
            f"{column.name} is {labelled(column, row)}, outside {low:g} to {high:g}"
        ) from None


def _fidelity(row: Mapping[str, Cell], known: Understanding) -> dict[str, float]:
    return {c.meaning: _positive(row, c, known) for c in known.of("fidelity")}


def _size(row: Mapping[str, Cell], known: Understanding) -> float:
    sizes = [_positive(row, column, known) for column in known.of("size")]
    return sizes[0] if sizes else math.nan


def _positive(row: Mapping[str, Cell], column: Column, known: Understanding) -> float:
    amount = known.number(row, column)
    if amount is None or not 0 < amount < math.inf:
        raise _Unusable(f"{column.name} is {labelled(column, row)}, not a positive number")
    return amount
