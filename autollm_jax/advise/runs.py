"""Rows as runs: configuration, fidelity, outcome, status; what cannot be used is named."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from autollm_jax.advise.columns import Column, Understanding, labelled
from autollm_jax.advise.names import YES, flagged_status, plainly, status_of
from autollm_jax.advise.rows import Cell, Rows
from autollm_jax.advise.usage import LeftOut
from autollm_jax.advise.values import is_missing
from autollm_jax.gym.spaces import InvalidConfiguration


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
      number: of the row among those that were read, from 0; -1 of a run that was told.
    """

    config: dict
    fidelity: dict[str, float]
    context: dict[str, str]
    outcome: float
    status: str
    place: str
    size: float = math.nan
    number: int = -1


def clean(rows: Rows, known: Understanding) -> tuple[list[Run], list[LeftOut]]:
    """Turn rows into runs.

    A row that equals an earlier one in every cell was exported twice: a second seed would end
    elsewhere.

    Returns:
      The runs, those under way among them, and the rows that cannot be used.
    """
    runs: list[Run] = []
    unused: list[LeftOut] = []
    earlier: dict[frozenset, int] = {}
    cells: dict[str, list[Cell]] = {
        column.name: [row.get(column.name) for row in rows.rows]
        for column in known.columns.values()
        if column.role not in ("ignored", "seed")
    }

    def read(role: str, reader: Callable) -> list[Sequence]:
        return [reader(cells[column.name], column, known) for column in known.of(role)]

    count = len(rows.rows)
    statuses = _first_said(read("status", _statuses), count)
    chosen, meanings = read("hyperparameter", _chosen), known.of("hyperparameter")
    fidelities, names = read("fidelity", _positive), [c.meaning for c in known.of("fidelity")]
    sizes = read("size", _positive)[0] if known.of("size") else [math.nan] * count
    (outcomes,) = read("objective", _measured)
    contexts, facts = read("context", _texts), [c.name for c in known.of("context")]
    columns = zip(
        rows.places, statuses, _by_row(chosen, count), _by_row(fidelities, count), sizes,
        outcomes, _by_row(contexts, count), strict=True,
    )  # fmt: skip
    for number, (place, status, values, amounts, size, outcome, texts) in enumerate(columns):
        first = earlier.setdefault(frozenset(rows.rows[number].items()), number)
        if first < number:
            said = f"the same in every column as {rows.places[first]}"
            unused.append(LeftOut(place, said, TWICE))
            continue
        problems = (v for v in (status, *values, *amounts, size) if isinstance(v, Problem))
        config = next(problems, None) or _config(meanings, values)
        if status == "ok" and isinstance(outcome, Problem) and isinstance(config, dict):
            config = outcome
        if isinstance(config, Problem):
            unused.append(LeftOut(place, config.text, config.kind))
            continue
        fidelity = dict(zip(names, amounts, strict=True))
        context = dict(zip(facts, texts, strict=True))
        if status == "running":
            outcome = math.nan
        elif isinstance(outcome, Problem) or not math.isfinite(outcome):
            # An infinite or undefined loss is what a run that diverged leaves behind.
            outcome, status = math.nan, "diverged" if status == "ok" else status
        runs.append(Run(config, fidelity, context, outcome, status, place, size, number))
    return runs, unused


@dataclasses.dataclass(frozen=True)
class Problem:
    """A row cannot be used.

    Attributes:
      text: the reason.
      kind: the reason without the row's own value.
    """

    text: str
    kind: str


TWICE = "the same in every column as an earlier row"
FAILED = Problem(*2 * ("failed, for a reason that is not known",))


def _problem(column: Column, cell: Cell, what: str) -> Problem:
    return Problem(f"{column.name} is {labelled(cell)}, {what}", f"{column.name} is {what}")


def _by_row(columns: Sequence[Sequence], rows: int) -> Iterable[tuple]:
    return zip(*columns, strict=True) if columns else [()] * rows


# Readers of a column: its cells as values, a Problem where a row cannot be used.


def _statuses(cells: Sequence[Cell], column: Column, known: Understanding) -> list[str | Problem]:
    """Tell how runs ended: ok, diverged, infeasible or running; "" for nothing said."""
    del known
    found: dict[Cell, str | Problem] = {}
    flagged = flagged_status(column.name, [str(cell) for cell in cells if not is_missing(cell)])
    other = "" if flagged != "ok" else "failed"  # what a No says
    for cell in dict.fromkeys(cells):
        if is_missing(cell):
            said = ""
        elif flagged:
            said = flagged if plainly(str(cell)) in YES else other
        else:
            said = status_of(str(cell)) or _problem(column, cell, "no status that is known here")
        found[cell] = FAILED if said == "failed" else said
    return [found[cell] for cell in cells]


def _first_said(columns: Sequence[Sequence[str | Problem]], rows: int) -> list[str | Problem]:
    """Return the first status that one of several columns says; ok where none does."""
    return [next(filter(None, said), "ok") for said in _by_row(columns, rows)]


def _chosen(cells: Sequence[Cell], column: Column, known: Understanding) -> list:
    """Read a hyperparameter, or the weights of a mixture's component."""
    dimension = column.dimension
    if dimension is not None and not dimension.is_numeric:
        return [_missing(column) if is_missing(cell) else str(cell) for cell in cells]
    made, accepted = [], {}
    for cell, amount in zip(cells, known.numbers(cells, column), strict=True):
        if amount is None and is_missing(cell) and not column.mixture:
            made.append(_missing(column))
        elif amount is None or not math.isfinite(amount):
            made.append(_problem(column, cell, "not a number"))
        else:
            if amount not in accepted:
                accepted[amount] = _accepted(amount, cell, column)
            made.append(accepted[amount])
    return made


def _accepted(amount: float, cell: Cell, column: Column) -> Any:
    """Return the number that a hyperparameter's dimension has for a finite one, or a Problem."""
    if column.dimension is None:
        return amount
    try:
        return column.dimension.canonical(amount)
    except InvalidConfiguration:
        low, high = column.dimension.extent
        return _problem(column, cell, f"outside {low:g} to {high:g}")


def _missing(column: Column) -> Problem:
    text = f"{column.name} is missing (--ignore={column.name} keeps such rows)"
    return Problem(text, text)


def _config(columns: Sequence[Column], values: Sequence) -> dict | Problem:
    """Put a row's values together; the weights of a mixture are divided by their sum."""
    config: dict = {}
    for column, value in zip(columns, values, strict=True):
        if column.mixture:
            config.setdefault(column.mixture, {})[column.meaning] = value
        else:
            config[column.meaning] = value
    for name, value in config.items():
        if isinstance(value, dict):
            total = sum(value.values())
            if total <= 0:
                text = f"the weights of {name} sum to {total:g}"
                return Problem(text, text)
            config[name] = {part: weight / total for part, weight in value.items()}
    return config


def _positive(cells: Sequence[Cell], column: Column, known: Understanding) -> list:
    return [
        _problem(column, cell, "not a positive number")
        if amount is None or not 0 < amount < math.inf
        else amount
        for cell, amount in zip(cells, known.numbers(cells, column), strict=True)
    ]


def _measured(cells: Sequence[Cell], column: Column, known: Understanding) -> list:
    return [
        _problem(column, cell, "not a number") if amount is None else amount
        for cell, amount in zip(cells, known.numbers(cells, column), strict=True)
    ]


def _texts(cells: Sequence[Cell], column: Column, known: Understanding) -> list[str]:
    del column, known
    return list(map(str, cells))
