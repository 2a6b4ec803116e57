"""Reads files of runs: CSV and its kin, Parquet, JSON lines, Optuna storages, outcome tables.

Each becomes rows: mappings from a column's name to a text, a number, a truth value or None. What
the values mean is decided elsewhere (`values`, `columns`).
"""

import csv
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from autollm_jax.errors import UserError

Cell = str | float | int | bool | None
ACCEPTED = (
    "CSV, TSV, Parquet, JSON lines, optuna:STORAGE#STUDY, an outcome table, or a folder of tables "
    "(SOURCE/TASK.parquet)"
)
DELIMITERS = ",;\t|"
SAMPLE = 64  # lines that the delimiter is found on
LEAST_COLUMNS = 2


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


def read(source: str) -> Rows:
    """Read one file, storage or folder of runs.

    Args:
      source: a path, or `optuna:STORAGE#STUDY`.

    Raises:
      UserError: it is missing, empty or of no accepted kind.
    """
    if source.startswith("optuna:"):
        return _read_optuna(source.removeprefix("optuna:"))
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return _read_tables(path)
    if not path.exists():
        raise UserError(f"{source}: no such file; accepted are {ACCEPTED}")
    readers = {
        ".parquet": _read_parquet,
        ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines,
        ".json": _read_json,
    }
    found = readers.get(path.suffix.lower(), _read_delimited)(path)
    if not found.rows:
        raise UserError(
            f"{source}: has no rows; accepted is a file with a header and runs below it"
        )
    return found


def join(parts: Sequence[Rows]) -> Rows:
    """Put the rows of several files one after the other."""
    said = [part.minimize for part in parts if part.minimize is not None]
    return Rows(
        tuple(row for part in parts for row in part.rows),
        tuple(place for part in parts for place in part.places),
        any(part.decimal_comma for part in parts),
        tuple(note for part in parts for note in part.notes),
        said[0] if said else None,
    )


def of_mappings(rows: Sequence[Mapping], name: str = "row") -> Rows:
    """Take rows that are in memory already; mappings within them are flattened."""
    places = tuple(f"{name} {number}" for number in range(1, len(rows) + 1))
    return Rows(tuple(map(_flat, rows)), places)


def _read_delimited(path: Path) -> Rows:
    text = _decoded(path)
    lines = text.splitlines()
    first = next((n for n, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise UserError(f"{path}: is empty; accepted is a header and a line for each run")
    delimiter = _delimiter(lines[first : first + SAMPLE])
    reader = csv.reader(lines[first:], delimiter=delimiter, skipinitialspace=True)
    rows, places, notes = [], [], []
    try:
        header, repeated = _unique([name.strip() for name in next(reader)])
        if repeated:
            notes.append(f"columns named twice: {', '.join(repeated)}; each is kept, as NAME.2")
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            place = f"{path.name}, line {first + reader.line_num}"
            if len(cells) > len(header):
                if any(cells[len(header) :]):
                    notes.append(f"{place}: more cells than the header has; the last are left out")
            cells += [""] * (len(header) - len(cells))
            rows.append(dict(zip(header, cells, strict=False)))
            places.append(place)
    except csv.Error as error:
        raise UserError(f"{path}: {error}; accepted are {ACCEPTED}") from error
    if len(header) < LEAST_COLUMNS:
        raise UserError(
            f"{path}: one column only ({header[0][:40]!r}); accepted are columns divided by comma, "
            "semicolon, tab or |"
        )
    return Rows(tuple(rows), tuple(places), delimiter != ",", tuple(notes))


def _decoded(path: Path) -> str:
    """Decode a text, whatever editor wrote it."""
    data = path.read_bytes()
    if data[:4] == b"PAR1" or data[:2] in (b"PK", b"\x1f\x8b") or b"\x00\x00\x00" in data[:1024]:
        raise UserError(f"{path}: is no text; accepted are {ACCEPTED}")
    marks = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    for encoding in (marks.get(data[:2], "utf-8-sig"), "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def _delimiter(lines: Sequence[str]) -> str:
    """Return the delimiter by which most lines have as many cells as the header, and most cells."""

    def fit(delimiter: str) -> tuple[float, int]:
        counts = [len(cells) for cells in csv.reader(lines, delimiter=delimiter) if cells]
        alike = sum(count == counts[0] for count in counts) / len(counts)
        return (alike if counts[0] > 1 else 0.0, counts[0])

    return max(DELIMITERS, key=fit)


def _unique(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Give every column a name of its own; also returns the names that came twice."""
    made: list[str] = []
    repeated: list[str] = []
    for number, name in enumerate(names, 1):
        name = name or f"column{number}"
        if name in made:
            repeated.append(name)
            copy = 2
            while f"{name}.{copy}" in made:
                copy += 1
            name = f"{name}.{copy}"
        made.append(name)
    return made, list(dict.fromkeys(repeated))


def _read_parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from autollm_jax.gym import tables

    if path.with_suffix(".json").exists() and tables.is_table_half(path):
        return _read_table(path)

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a Parquet file ({error}); accepted are {ACCEPTED}") from error
    rows = [_flat(row) for row in table.to_pylist()]
    return Rows(tuple(rows), tuple(f"{path.name}, row {n}" for n in range(1, len(rows) + 1)))


def _read_json_lines(path: Path) -> Rows:
    rows, places = [], []
    for number, line in enumerate(_decoded(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(value, Mapping):
            raise UserError(f"{path}, line {number}: accepted is an object with a run's values")
        rows.append(_flat(value))
        places.append(f"{path.name}, line {number}")
    return Rows(tuple(rows), tuple(places))


def _read_json(path: Path) -> Rows:
    """Read a list of objects, or JSON lines under another name."""
    try:
        value = json.loads(_decoded(path))
    except ValueError:
        return _read_json_lines(path)
    if not isinstance(value, list) or not all(isinstance(row, Mapping) for row in value):
        raise UserError(f"{path}: accepted is a list of objects, one with each run's values")
    return of_mappings(value, f"{path.name}, entry")


def _flat(row: Mapping, prefix: str = "") -> dict[str, Cell]:
    """Join the names of nested mappings by dots: {"config": {"lr": 1}} is {"config.lr": 1}."""
    made: dict[str, Cell] = {}
    for key, value in row.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            made |= _flat(value, f"{name}.")
        elif isinstance(value, str | int | float | bool) or value is None:
            made[name] = value
        else:
            plain = value.item() if isinstance(value, np.generic) else value
            made[name] = plain if isinstance(plain, str | int | float | bool) else str(value)
    return made


def _read_optuna(spec: str) -> Rows:
    """Read a study: its parameters, values, states, constraints and user attributes."""
    import optuna

    url, _, name = spec.rpartition("#") if "#" in spec else (spec, "", "")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = _optuna_storage(url)
        names = optuna.get_all_study_names(storage)
        if not name and len(names) == 1:
            (name,) = names
        if name not in names:
            raise UserError(
                f"optuna:{spec}: no study {name!r}; the storage has {', '.join(names) or 'none'}; "
                "accepted is optuna:STORAGE#STUDY"
            )
        study = optuna.load_study(study_name=name, storage=storage)
    except UserError:
        raise
    except Exception as error:  # each kind of storage has errors of its own
        raise UserError(f"optuna:{spec}: cannot be read ({error})") from error
    return of_study(study)


def of_study(study) -> Rows:
    """Take the trials of an Optuna study: parameters, values, states and user attributes.

    Raises:
      UserError: it has several objectives.
    """
    directions = [d.name.lower() for d in study.directions]
    if len(directions) > 1:
        raise UserError(
            f"study {study.study_name}: has {len(directions)} objectives; accepted is one"
        )
    rows = []
    for trial in study.trials:
        value = trial.values[0] if trial.values else None
        if value is None and trial.intermediate_values:
            value = trial.intermediate_values[max(trial.intermediate_values)]
        attributes = {k: v for k, v in trial.user_attrs.items() if not k.startswith("optuna")}
        rows.append(
            {f"params.{k}": v for k, v in trial.params.items()}
            | _flat(attributes)
            | {"value": value, "state": trial.state.name}
        )
    found = of_mappings(rows, f"{study.study_name}, trial")
    return dataclasses.replace(found, minimize=directions[0] != "maximize")


def _optuna_storage(url: str):
    if "://" in url:
        return url
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = os.path.expanduser(url)
    if not os.path.exists(path):
        raise UserError(f"optuna:{url}: no such file; accepted are sqlite:///FILE and a journal")
    with open(path, "rb") as file:
        if file.read(15) == b"SQLite format 3":
            return f"sqlite:///{path}"
    return JournalStorage(JournalFileBackend(path))


def _read_tables(folder: Path) -> Rows:
    """Read a folder of outcome tables, as `launch/main.py` and `launch/import_data.py` write it."""
    from autollm_jax.gym import tables

    inside = folder / "gym_data"
    found = tables.find_tables([inside if inside.is_dir() else folder])
    if not found:
        raise UserError(f"{folder}: no outcome table; accepted are {ACCEPTED}")
    if len({path.stem for path in found}) > 1:
        raise UserError(
            f"{folder}: has tables of several tasks; name one of {', '.join(map(str, found))}"
        )
    return join([_read_table(path) for path in found])


def _read_table(path: Path) -> Rows:
    """Read one outcome table; the file beside it tells the size of each experiment's runs."""
    from autollm_jax.gym import tables

    table = tables.read_table(path)
    rows, places = [], []
    for number, row in enumerate(table.rows.to_pylist(), 1):
        fidelity = table.meta["experiments"][row["experiment"]]["fidelity"]
        sizes = {key: fidelity[key] for key in ("parameters", "tokens", "flops")}
        known = {key: value for key, value in row.items() if value is not None}
        rows.append(_flat(sizes | known))
        places.append(f"{path.parent.name}/{path.name}, row {number}")
    return Rows(tuple(rows), tuple(places))
