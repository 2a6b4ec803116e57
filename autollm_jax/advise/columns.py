"""Which column of a file is what: hyperparameter, fidelity, objective, status, seed, or nothing.

`understand` guesses from names and values. Every guess is a line of `space.json`, which a person
may edit, and of what `describe` prints.

A context is what tells experiments of one size apart without being chosen: a data set, a device.
The target names it.

A size is what a configuration has, known before its run, and what the target limits.

Fidelity is what makes a run dear, known before the run: parameters, tokens, FLOPs, steps, epochs,
and hours where nothing else is there.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence

from autollm_jax.advise.names import (
    FIDELITIES,
    LABEL,
    LOG_NAMES,
    MAXIMISED,
    MEASURED,
    SEED,
    STATUS,
    USUAL,
    VALIDATION,
    meant_fidelity,
    plainly,
    stripped,
    unit_of,
)
from autollm_jax.advise.rows import Cell, Rows
from autollm_jax.advise.values import (
    has_decimal_commas,
    has_thousands,
    is_missing,
    number,
    spell,
)
from autollm_jax.errors import UserError
from autollm_jax.gym.spaces import Dimension

ROLES = (
    "hyperparameter", "fidelity", "size", "context", "objective", "status", "seed", "ignored",
)  # fmt: skip
MIXTURE = "mixture"
LISTED = 12  # a column of at most so many numbers may be a list of choices
LEAST_REPEATS = 2.0  # runs for each of these numbers in the mean
LEAST_OF_A_SIZE = 3  # runs of a size in the mean, that tell what follows from it
MOST_DESCRIBED = 60  # columns
LOG_RATIO = 8.0  # positive numbers that span so much are compared by their ratios
WHOLE_NUMBER_SHARE = 0.9  # of a column's cells that are numbers: then the rest are mistakes
LEAST_PARTS, SUM_ERROR = 3, 0.02  # components of a mixture, relative error of their sum


@dataclasses.dataclass(frozen=True)
class Column:
    """What one column is.

    Attributes:
      name: of the column in the file.
      role: one of ROLES.
      meaning: the name by which it is known: of a hyperparameter its own, of a fidelity one of
        FIDELITIES.
      dimension: of a hyperparameter that is no part of a mixture.
      mixture: of a component of a mixture, the mixture's name.
      why: the reason for the role, in a few words.
      factor: of plain numbers, where the name says a unit: "parameters (M)", "tokens_B".
    """

    name: str
    role: str
    meaning: str = ""
    dimension: Dimension | None = None
    mixture: str = ""
    why: str = ""
    factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Understanding:
    """What the columns of some rows mean.

    Attributes:
      columns: by name.
      minimize: whether a low objective is good.
      decimal_commas: columns whose numbers have decimal commas.
    """

    columns: dict[str, Column]
    minimize: bool
    decimal_commas: frozenset[str] = frozenset()

    def of(self, role: str) -> list[Column]:
        """Return the columns of a role, in the file's order."""
        return self._by_role.get(role, [])

    @functools.cached_property
    def _by_role(self) -> dict[str, list[Column]]:
        found: dict[str, list[Column]] = {}
        for column in self.columns.values():
            found.setdefault(column.role, []).append(column)
        return found

    @property
    def objective(self) -> Column:
        return self.of("objective")[0]

    def number(self, row: Mapping[str, Cell], column: Column) -> float | None:
        """Read a number; None where the cell is missing or no number."""
        cell = row.get(column.name)
        amount = number(cell, column.name in self.decimal_commas)
        if (
            column.factor == 1.0
            or amount is None
            or (isinstance(cell, str) and cell[-1:].isalpha())
        ):
            return amount  # 7B says its unit itself
        return amount * column.factor

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The space's dimensions: the columns' own, then mixtures."""
        own = [c.dimension for c in self.of("hyperparameter") if c.dimension is not None]
        parts: dict[str, list[str]] = {}
        for column in self.of("hyperparameter"):
            if column.mixture:
                parts.setdefault(column.mixture, []).append(column.meaning)
        return (*own, *(Dimension(name, "simplex", tuple(each)) for name, each in parts.items()))

    def describe(self) -> str:
        """Write what was understood, a line a column."""
        lines, listed = [], list(self.columns.values())
        if len(listed) > MOST_DESCRIBED:
            listed = [column for column in listed if column.role != "ignored"]
        for column in listed[:MOST_DESCRIBED]:
            what = column.role
            if column.dimension is not None:
                what += f", {column.dimension.kind}: {column.dimension.describe_choices()}"
            elif column.mixture:
                what += f", a component of {column.mixture}"
            elif column.role == "fidelity":
                what += f": {column.meaning}"
            elif column.role == "objective":
                what += ", lower is better" if self.minimize else ", higher is better"
            why = f" ({column.why})" if column.why else ""
            lines.append(f"  {column.name:28} {what}{why}")
        if rest := len(self.columns) - len(lines):
            lines.append(f"  and {rest} more, of which --write_space=space.json tells")
        return "\n".join(lines)

    def to_json(self) -> dict:
        """Write space.json."""
        return {
            "goal": "minimize" if self.minimize else "maximize",
            "columns": {
                column.name: {"role": column.role}
                | ({"fidelity": column.meaning} if column.role == "fidelity" else {})
                | ({"mixture": column.mixture} if column.mixture else {})
                | (
                    {k: v for k, v in column.dimension.to_json().items() if k != "name"}
                    if column.dimension
                    else {}
                )
                for column in self.columns.values()
            },
        }


@dataclasses.dataclass(frozen=True)
class Hints:
    """What a person says of the columns, above every guess.

    Attributes:
      objective: the objective's column.
      minimize: whether low is good; None to guess.
      roles: role by column name.
      fidelities: column name by fidelity.
      columns: entries of a space.json by column name.
      wanted: the fidelities that the target has.
      contexts: columns that the target says a value of.
      limited: the quantity that the target limits: a column, or a fidelity's name.
    """

    objective: str = ""
    minimize: bool | None = None
    roles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fidelities: Mapping[str, str] = dataclasses.field(default_factory=dict)
    columns: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)
    wanted: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    limited: str = ""


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
    values = {name: _Values(cells[name], name in commas) for name in names}
    objective = hints.objective or _objective(names, values, hints)
    if not values[objective].numbers:
        cell = next(iter(values[objective].texts), "nothing")
        numeric = [name for name in names if values[name].is_numeric and name != objective]
        raise UserError(
            f"objective {objective}: holds {spell(cell)[:40]!r}, no numbers; columns of numbers "
            f"are {_listed(numeric)}; name one by --objective=NAME"
        )
    prefixed = any(stripped(name) != name for name in names)
    columns = {}
    for name in names:
        columns[name] = _column(name, values[name], objective, prefixed, hints)
    columns = _one_of_each(columns, hints)
    columns = _with_mixtures(columns, values, hints)
    columns = _without_names_of_sizes(columns, cells, hints)
    found = Understanding(columns, _minimized(objective, rows, hints), commas)
    if not found.dimensions:
        raise UserError(
            f"no column varies that could be a hyperparameter; the columns are {_listed(names)}; "
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
            raise UserError(f"no column {name!r}; the columns are {_listed(names, 40)}")


class _Values:
    """The cells of one column, and what they are."""

    def __init__(self, cells: Sequence[Cell], decimal_comma: bool):
        numbers = [number(cell, decimal_comma) for cell in cells]
        self.present = [
            cell
            for cell, value in zip(cells, numbers, strict=True)
            if value is not None or not is_missing(cell)
        ]
        self.numbers = [n for n in numbers if n is not None]
        self.finite = [n for n in self.numbers if math.isfinite(n)]
        self.distinct = sorted(set(self.finite))
        self.is_numeric = bool(self.finite) and (
            len(self.numbers) >= WHOLE_NUMBER_SHARE * len(self.present)
        )

    @functools.cached_property
    def texts(self) -> list[str]:
        return list(dict.fromkeys(map(str, self.present)))

    @property
    def varies(self) -> bool:
        return len(self.distinct if self.is_numeric else self.texts) > 1


def _objective(names: Sequence[str], values: Mapping[str, _Values], hints: Hints) -> str:
    """Guess the objective: something measured, of validation first.

    Raises:
      UserError: nothing or several things could be it.
    """
    may = [
        name
        for name in names
        if values[name].is_numeric
        and values[name].varies
        and hints.roles.get(name, "objective") == "objective"
        and stripped(name) == name
        and (re.fullmatch(MEASURED, plainly(name)) or name == "value")
        and not re.fullmatch(
            r".*(seconds|runtime|duration|hours|memory|mem|wall|elapsed|norm).*",
            plainly(name),
        )  # fmt: skip
        and not re.fullmatch(USUAL, plainly(name).replace("loss", ""))
    ]
    # loss.web and loss/code are parts of loss, where that is there.
    may = [name for name in may if re.split(r"[./]", name)[0] not in {*may} - {name}]
    validation = rf".*({VALIDATION}).*"
    validation_loss = rf".*({VALIDATION}).*loss.*|.*loss.*({VALIDATION}).*"
    for pattern in (r"objective|value", validation, validation_loss, r".*loss.*", r".*"):
        found = [name for name in may if re.fullmatch(pattern, plainly(name))]
        if len(found) == 1:
            return found[0]
    numeric = [name for name in names if values[name].is_numeric and values[name].varies]
    if not numeric:
        raise UserError(
            f"no column holds numbers that differ; the columns are {_listed(names)}; accepted is a "
            "header line, then a line for each run, with its hyperparameters, size and outcome"
        )
    which = f"it may be {_listed(may)}" if may else f"columns of numbers are {_listed(numeric)}"
    empty = [n for n in names if re.fullmatch(MEASURED, plainly(n)) and not values[n].finite]
    if empty and not may:
        which += f"; {_listed(empty)} holds no finite number"
    raise UserError(f"which column is the objective? {which}; name it by --objective=NAME")


def _listed(names: Sequence[str], most: int = LISTED) -> str:
    """List names, shortened where there are many."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _minimized(objective: str, rows: Rows, hints: Hints) -> bool:
    if hints.minimize is not None:
        return hints.minimize
    if rows.minimize is not None:
        return rows.minimize
    plain = plainly(objective)
    return not re.search(MAXIMISED, plain) or bool(re.search(r"loss|err|neg", plain))


def _column(name: str, values: _Values, objective: str, prefixed: bool, hints: Hints) -> Column:
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
        return _hyperparameter(name, short, values, said, "as you said")
    if re.fullmatch(STATUS, plain) and not values.is_numeric:
        return Column(name, "status", short)
    if re.fullmatch(SEED, plain):
        return Column(name, "seed", short)
    fidelity, factor = meant_fidelity(plain), 1.0
    bare, unit = unit_of(short)
    counted = meant_fidelity(plainly(bare)) if len(bare) > 1 else ""  # d_k counts nothing
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
    return _hyperparameter(name, short, values, {}, "")


def _hyperparameter(name: str, meaning: str, values: _Values, said: Mapping, why: str) -> Column:
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


def _dimension(name: str, values: _Values, kind: str | None = None) -> Dimension:
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


def _with_mixtures(
    columns: dict[str, Column], values: Mapping[str, _Values], hints: Hints
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


def labelled(column: Column, row: Mapping[str, Cell]) -> str:
    """Show a row's cell, for messages."""
    cell = row.get(column.name)
    return "nothing" if is_missing(cell) else spell(cell)[:40]
