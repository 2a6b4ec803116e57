"""Understands the columns of a file: hyperparameter, fidelity, objective, status, seed, or nothing.

`understand` guesses from names and values. Every guess is a line of `space.json`, which a person
may edit, and of what `describe` prints.

1. What a person says of columns is spelled as the file spells it.
2. One column is the objective (`objectives`).
3. Each other column gets a role, by its name and its values.
4. A model's size is read from its name where no number says it. Fidelities and names that follow
   from others are left out.
5. What is chosen becomes a dimension (`dimensions`); shares that sum to one are a mixture.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from autollm_jax.advise.columns import ROLES, Column, Hints, Understanding, listed
from autollm_jax.advise.dimensions import hyperparameter, with_mixtures
from autollm_jax.advise.names import (
    FIDELITIES,
    LABEL,
    MEASURED,
    SEED,
    STATUS,
    USUAL,
    counted_fidelity,
    flagged_status,
    meant_fidelity,
    plainly,
    stripped,
    unit_of,
)
from autollm_jax.advise.objectives import guessed_objective, is_minimized
from autollm_jax.advise.rows import Cell, Rows
from autollm_jax.advise.values import ColumnCells, has_decimal_commas, has_thousands, size_in, spell
from autollm_jax.errors import UserError

LISTED = 12  # texts that a column may have, however few its cells are
LEAST_OF_A_SIZE = 3  # runs of a size in the mean, that tell what follows from it


def understand(rows: Rows, hints: Hints = Hints()) -> Understanding:  # noqa: B008
    """Tell what each column is.

    Raises:
      UserError: there is no objective, or no hyperparameter; the message says which flag to give.
    """
    names = list(dict.fromkeys(name for row in rows.rows for name in row))
    hints = _spelled(names, hints)
    _check_names(names, hints)
    cells = {name: [row.get(name) for row in rows.rows] for name in names}
    commas = _decimal_commas(cells) if rows.decimal_comma else frozenset()
    values = {name: ColumnCells(cells[name], name in commas) for name in names}
    objective = hints.objective or guessed_objective(names, values, hints)
    if not values[objective].numbers:
        cell = next(iter(values[objective].texts), "nothing")
        numeric = [name for name in names if values[name].is_numeric and name != objective]
        raise UserError(
            f"objective {objective}: holds {spell(cell)[:40]!r}, no numbers; columns of numbers "
            f"are {listed(numeric)}; name one by --objective=NAME"
        )
    prefixed = any(stripped(name) != name for name in names)
    columns = {}
    for name in names:
        columns[name] = _column(name, values[name], objective, prefixed, hints)
    columns = _with_sizes_in_names(columns, values, hints)
    columns = _one_of_each(columns, hints)
    columns = with_mixtures(columns, values, hints)
    columns = _without_names_of_sizes(columns, cells, hints)
    found = Understanding(columns, is_minimized(objective, rows, hints), commas)
    if not found.dimensions:
        raise UserError(
            f"no column varies that could be a hyperparameter; the columns are {listed(names)}; "
            "name them by --hyperparameters=NAME,NAME"
        )
    return found


def _decimal_commas(cells: Mapping[str, Sequence[Cell]]) -> frozenset[str]:
    """Return the columns with decimal commas: one such column tells of 2,378 in another one."""
    if not any(has_decimal_commas(each) for each in cells.values()):
        return frozenset()
    return frozenset(name for name, each in cells.items() if not has_thousands(each))


def _spelled(names: Sequence[str], hints: Hints) -> Hints:
    """Spell a person's names as the columns are: val_loss is val/loss, lr is config.lr."""
    known: dict[str, list[str]] = {}
    for name in names:
        for plain in {plainly(name), plainly(stripped(name))}:
            known.setdefault(plain, []).append(name)

    def spell_one(name: str) -> str:
        alike = known.get(plainly(name), [])
        return alike[0] if name not in names and len(alike) == 1 else name

    return dataclasses.replace(
        hints,
        objective=spell_one(hints.objective),
        roles={spell_one(name): role for name, role in hints.roles.items()},
        fidelities={key: spell_one(name) for key, name in hints.fidelities.items()},
    )


def _check_names(names: Sequence[str], hints: Hints) -> None:
    given = [hints.objective, *hints.roles, *hints.fidelities.values(), *hints.columns]
    given += hints.contexts
    for name in filter(None, given):
        if name not in names:
            raise UserError(f"no column {name!r}; the columns are {listed(names, 40)}")


def _column(name: str, values: ColumnCells, objective: str, prefixed: bool, hints: Hints) -> Column:
    """Tell what one column is, by what a person says, by its name, by its values."""
    said = hints.columns.get(name, {})
    role = said.get("role") or hints.roles.get(name)
    role = "context" if name in hints.contexts else role
    if role is not None and role not in ROLES:
        raise UserError(f"column {name}: role {role!r}; accepted are {', '.join(ROLES)}")
    meant = {column: fidelity for fidelity, column in hints.fidelities.items()}
    short, plain = stripped(name), plainly(stripped(name))
    if name == objective or role == "objective":
        return Column(name, "objective", short)
    if name in meant or role == "fidelity":
        fidelity = meant.get(name) or said.get("fidelity") or meant_fidelity(plain)
        if fidelity not in FIDELITIES:
            raise UserError(
                f"column {name}: fidelity {fidelity!r}; accepted are {', '.join(FIDELITIES)}"
            )
        return Column(
            name, "fidelity", fidelity, why="as you said", factor=unit_of(short)[1] or 1.0
        )
    if hints.limited and hints.limited in (name, meant.get(name) or meant_fidelity(plain)):
        return Column(name, "size", hints.limited, why="the target limits it")
    if role in ("context", "status", "seed", "ignored"):
        return Column(name, role, short, why="as you said")
    if role == "hyperparameter" or said.get("kind"):
        return hyperparameter(name, short, values, said, "as you said")
    flagged = flagged_status(name, values.texts)
    if flagged and (not values.is_numeric or flagged in ("diverged", "infeasible")):
        return Column(name, "status", short)
    if re.fullmatch(STATUS, plain) and not values.is_numeric:
        return Column(name, "status", short)
    if re.fullmatch(SEED, plain):
        return Column(name, "seed", short)
    fidelity, factor = meant_fidelity(plain), 1.0
    bare, unit = unit_of(short)
    counted = counted_fidelity(bare) if len(bare) > 1 else ""  # d_k counts nothing
    if unit and counted not in ("", "hours"):
        fidelity, factor = counted, unit
    if not fidelity and len(last := plainly(re.split(r"[./]", short)[-1])) > 1:
        fidelity = (
            meant_fidelity(last) if meant_fidelity(last) in hints.wanted else ""
        )  # model.n_params
    if fidelity and values.is_numeric and (values.varies or fidelity in hints.wanted):
        why = f"in units of {factor:g}" if factor != 1.0 else ""
        return Column(name, "fidelity", fidelity, why=why, factor=factor)
    if prefixed and short == name:
        return Column(name, "ignored", short, why="no prefix, as hyperparameters have here")
    usual = re.fullmatch(USUAL, plain)
    if re.fullmatch(LABEL, plain) and not usual:
        return Column(name, "ignored", short, why="a label")
    if re.fullmatch(MEASURED, plain) and not usual and short == name:
        return Column(name, "ignored", short, why="measured, not chosen")
    if not values.varies:
        return Column(name, "ignored", short, why="the same in every run")
    if not values.is_numeric and len(values.texts) > max(LISTED, len(values.present) // 2):
        return Column(name, "ignored", short, why="a text of its own in each run")
    return hyperparameter(name, short, values, {}, "")


def _with_sizes_in_names(
    columns: dict[str, Column], values: Mapping[str, ColumnCells], hints: Hints
) -> dict[str, Column]:
    """Take a model's size from its name, such as pythia-160m, where no number says it."""
    known = [column for column in columns.values() if column.meaning == "parameters"]
    asked = hints.fidelities.get("parameters")
    if "parameters" not in hints.wanted or (not asked and known):
        return columns
    for name, column in columns.items():
        if asked != name and (asked or column.role not in ("hyperparameter", "ignored")):
            continue
        if values[name].is_numeric or name in hints.roles or name in hints.columns:
            continue
        sizes = {size_in(text) for text in values[name].texts}
        if None not in sizes and len(sizes) > 1:
            why = "the size that its text says"
            return columns | {name: Column(name, "fidelity", "parameters", why=why, in_name=True)}
    return columns


def _one_of_each(columns: dict[str, Column], hints: Hints) -> dict[str, Column]:
    """Keep one column of each fidelity, and the fidelities that can be planned.

    Hours are measured where something else says how dear a run is. Epochs and steps follow tokens.
    """
    found: dict[str, str] = {}
    made = dict(columns)
    for column in columns.values():
        if column.role != "fidelity":
            continue
        first = found.setdefault(column.meaning, column.name)
        if first != column.name:
            given = hints.fidelities.get(column.meaning, first)
            loser = column.name if given == first else first
            found[column.meaning] = given if given in (first, column.name) else first
            why = f"{found[column.meaning]} is {column.meaning} already"
            made[loser] = Column(loser, "ignored", column.meaning, why=why)
    for fidelity, others in (
        ("hours", ("parameters", "tokens", "flops", "steps", "epochs")),
        ("epochs", ("tokens", "steps", "flops")),
        ("steps", ("tokens",)),
    ):
        name = found.get(fidelity)
        wanted = fidelity in hints.wanted or fidelity in hints.fidelities
        if name and not wanted and any(other in found for other in others):
            made[name] = Column(name, "ignored", fidelity, why="follows from the other fidelities")
    return made


def _without_names_of_sizes(
    columns: dict[str, Column], cells: Mapping[str, Sequence[Cell]], hints: Hints
) -> dict[str, Column]:
    """Leave out what follows from a run's size: the model's name, its layers in a ladder of sizes.

    They are one value within each size, so that runs tell nothing of another value.
    """
    sizes = [cells[column.name] for column in columns.values() if column.role == "fidelity"]
    keys = list(zip(*sizes, strict=True))
    if not 2 <= len(set(keys)) <= len(keys) / LEAST_OF_A_SIZE:
        return columns

    def follows(name: str) -> bool:
        first: dict[tuple, Cell] = {}
        return all(first.setdefault(k, c) == c for k, c in zip(keys, cells[name], strict=True))

    chosen = [column for column in columns.values() if column.role == "hyperparameter"]
    said = {*hints.roles, *hints.columns}
    names = [c.name for c in chosen if not c.mixture and c.name not in said and follows(c.name)]
    if len(names) == len(chosen):
        return columns
    why = "one value for each size of a run"
    return columns | {
        name: Column(name, "ignored", columns[name].meaning, why=why) for name in names
    }
