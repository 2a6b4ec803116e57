"""Rows: a file of runs as mappings from a column's name to its cell."""

import dataclasses

Cell = str | float | int | bool | None
FILES = "CSV, TSV, Parquet, JSON lines"
ACCEPTED = (
    f"{FILES}, optuna:STORAGE#STUDY, an outcome table, or a folder of tables (SOURCE/TASK.parquet)"
)


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of one file.

    Attributes:
      rows: by column.
      places: where each row stands, for messages: "runs.csv, line 7".
      decimal_comma: whether the file can have decimal commas: its delimiter is no comma.
      notes: what was noticed about the file as a whole.
      minimize: whether low is good, where the file itself says so (an Optuna study); else None.
    """

    rows: tuple[dict[str, Cell], ...]
    places: tuple[str, ...]
    decimal_comma: bool = False
    notes: tuple[str, ...] = ()
    minimize: bool | None = None
