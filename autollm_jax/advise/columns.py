"""Columns of a file, and what is understood of them: the words that `understanding` fills in.

A context is what tells experiments of one size apart without being chosen: a data set, a device.
The target names it.

A size is what a configuration has, known before its run, and what the target limits.

Fidelity is what makes a run dear, known before the run: parameters, tokens, FLOPs, steps, epochs,
and hours where nothing else is there.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from autollm_jax.advise.rows import Cell
from autollm_jax.advise.values import is_missing, numbers, size_in, spell
from autollm_jax.gym.spaces import Dimension

ROLES = (
    "hyperparameter", "fidelity", "size", "context", "objective", "status", "seed", "ignored",
)  # fmt: skip
MOST_DESCRIBED = 60  # columns
MOST_LISTED = 12  # names in a message


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
      in_name: whether the cells are names of models that say a size: "pythia-160m".
    """

    name: str
    role: str
    meaning: str = ""
    dimension: Dimension | None = None
    mixture: str = ""
    why: str = ""
    factor: float = 1.0
    in_name: bool = False


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

    def numbers(self, cells: Sequence[Cell], column: Column) -> list[float | None]:
        """Read the numbers of a column's cells; None where one is missing or no number."""
        if column.in_name:
            return [size_in(cell) for cell in cells]
        amounts = numbers(cells, column.name in self.decimal_commas)
        if column.factor == 1.0:
            return amounts

        def says_unit(cell: Cell) -> bool:
            return isinstance(cell, str) and cell[-1:].isalpha()  # 7B says its unit itself

        return [
            amount if amount is None or says_unit(cell) else amount * column.factor
            for cell, amount in zip(cells, amounts, strict=True)
        ]

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

    def understood(self) -> dict:
        """Return what is understood as plain values: more than space.json, which is edited."""

        def scale(dimension: Dimension | None) -> dict:
            if dimension is None or not dimension.is_numeric:
                return {}
            return {"log": dimension.is_log}

        def names(role: str) -> list[str]:
            return [column.name for column in self.of(role)]

        said = self.to_json()
        columns = {
            name: said["columns"][name]
            | {"name": column.meaning or name}
            | scale(column.dimension)
            | ({"unit": column.factor} if column.factor != 1.0 else {})
            | ({"why": column.why} if column.why else {})
            for name, column in self.columns.items()
        }
        return {
            "objective": {"column": self.objective.name, "goal": said["goal"]},
            "fidelity": {column.meaning: column.name for column in self.of("fidelity")},
            "status": names("status"),
            "seed": names("seed"),
            "columns": columns,
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


def labelled(cell: Cell) -> str:
    """Show a cell, for messages."""
    return "nothing" if is_missing(cell) else spell(cell)[:40]


def listed(names: Sequence[str], most: int = MOST_LISTED) -> str:
    """List names, shortened where there are many."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
