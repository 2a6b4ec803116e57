"""Reads files of runs: CSV and its kin, Parquet, JSON lines, Optuna storages, outcome tables.

Each becomes rows: mappings from a column's name to a text, a number, a truth value or None. What
the values mean is decided elsewhere (`values`, `columns`).
"""

import ast
import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from autollm_jax.advise.delimited import SAMPLE, decoded, read_delimited
from autollm_jax.advise.rows import ACCEPTED as ACCEPTED
from autollm_jax.advise.rows import FILES as FILES
from autollm_jax.advise.rows import Cell, Rows
from autollm_jax.errors import UserError


def read(source: str, least_columns: int = 2) -> Rows:
    """Read one file, storage or folder of runs.

    Args:
      source: a path, or `optuna:STORAGE#STUDY`.
      least_columns: of a table of text; one with fewer has another delimiter.

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
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    reader = readers.get(suffix.lower(), functools.partial(read_delimited, least=least_columns))
    found = _expanded(reader(path))
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
    for number, line in enumerate(decoded(path).splitlines(), 1):
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
        value = json.loads(decoded(path))
    except ValueError:
        return _read_json_lines(path)
    rows = value
    if isinstance(value, Mapping):
        inside = [each for each in value.values() if _is_rows(each)]
        if len(inside) == 1:  # {"runs": [...]}
            rows = inside[0]
        elif value and all(isinstance(each, list | Mapping) for each in value.values()):
            rows = _of_columns(value)
    if not isinstance(rows, list) or not _is_rows(rows):
        raise UserError(f"{path}: accepted is a list of objects, one with each run's values")
    return of_mappings(rows, f"{path.name}, entry")


def _is_rows(value) -> bool:
    return isinstance(value, list) and all(isinstance(row, Mapping) for row in value)


def _of_columns(value: Mapping) -> list[dict] | None:
    """Turn columns, as pandas writes them, into rows; None where their lengths differ."""
    columns = [each.values() if isinstance(each, Mapping) else each for each in value.values()]
    if len({len(each) for each in columns}) != 1:
        return None
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _expanded(rows: Rows) -> Rows:
    """Spread columns that hold a JSON object or a Python dictionary: config becomes config.lr."""
    names = dict.fromkeys(name for row in rows.rows[:SAMPLE] for name in row)
    nested = []
    for name in names:
        cells = [row.get(name) for row in rows.rows[:SAMPLE]]
        held = [cell for cell in cells if isinstance(cell, str) and cell]
        if held and all(cell[0] == "{" and _mapping(cell) is not None for cell in held):
            nested.append(name)
    if not nested:
        return rows
    made = []
    for row in rows.rows:
        values = dict(row)
        for name in nested:
            inside = _mapping(str(values.pop(name, "")))
            values |= _flat(inside or {}, f"{name}.")
        made.append(values)
    return dataclasses.replace(rows, rows=tuple(made))


def _mapping(text: str) -> dict | None:
    """Read an object; {"lr": {"value": 1}}, as Weights & Biases writes it, is {"lr": 1}."""
    quoted = re.sub(r"(?<=[:,\[ ])(nan|-?inf)(?=[\s,}\]])", r"'\1'", text)  # no Python literals
    for parse, spelled in ((json.loads, text), (ast.literal_eval, quoted)):
        try:
            value = parse(spelled)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if not isinstance(value, dict):
            return None
        return {
            key: each["value"] if isinstance(each, Mapping) and "value" in each else each
            for key, each in value.items()
            if key != "_wandb"
        }
    return None


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
    file = url.removeprefix("sqlite:///")
    if file != url and not os.path.exists(file):  # Optuna would make an empty one
        raise UserError(f"optuna:{url}: no such file; accepted is optuna:STORAGE#STUDY")
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
