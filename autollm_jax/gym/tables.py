"""Outcome tables on disk: `ROOT/SOURCE/TASK.parquet` with `ROOT/SOURCE/TASK.json` beside it.

The Parquet file has one row per run: `experiment`, one `config.NAME` column per dimension
(`config.NAME.COMPONENT` for a simplex), metric columns, `flops`, `seconds`, `seed`, `status`, and
whatever else its maker records. A null in `flops`, `seconds` or `seed` means that it is not known;
a run whose seed is not known is a run of its own.

The JSON file describes the experiments: context, fidelity, space, objective, default, and where
there is one a limit, `{"quantity": "parameters", "at_most": NUMBER}`; the rows then have a column
`parameters`, and those over it are `infeasible`. Without a limit, `infeasible` rows are runs out of
memory, which nobody knows beforehand. Neither has an outcome. Nothing is ever unpickled.
"""

import dataclasses
import functools
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from autollm_jax.errors import UserError
from autollm_jax.files import write_atomic, write_json_atomic
from autollm_jax.gym.spaces import Dimension, InvalidConfiguration, Space

_log = logging.getLogger(__name__)

FORMAT = 1
STATUSES = ("ok", "diverged", "infeasible")
LEVELS = ("low", "mid", "high")
GOALS = ("minimize", "maximize")


@dataclasses.dataclass(frozen=True)
class Table:
    """One task's outcomes from one source.

    Attributes:
      source, task: the folder's and the files' name.
      meta: content of the JSON file.
      rows: content of the Parquet file.
    """

    source: str
    task: str
    meta: dict
    rows: pa.Table


def table_paths(root: str | os.PathLike, source: str, task: str) -> tuple[Path, Path]:
    """Return the Parquet and the JSON path of a table under `root`."""
    folder = Path(root).expanduser() / source
    return folder / f"{task}.parquet", folder / f"{task}.json"


def config_columns(dimension: Dimension) -> list[str]:
    """Return the Parquet columns that hold a dimension's value.

    >>> config_columns(Dimension("mixture", "simplex", ("web", "code")))
    ['config.mixture.web', 'config.mixture.code']
    """
    if dimension.kind == "simplex":
        return [f"config.{dimension.name}.{component}" for component in dimension.choices]
    return [f"config.{dimension.name}"]


def row_values(space: Space, rows: pa.Table) -> list[tuple]:
    """Return the values of each row's `config.*` columns, in the space's order."""
    columns = [column for d in space.dimensions for column in config_columns(d)]
    return list(zip(*(rows[column].to_pylist() for column in columns), strict=True))


def row_config(space: Space, values: Sequence) -> dict:
    """Return the configuration that one entry of `row_values` spells, not yet validated."""
    config, rest = {}, iter(values)
    for dimension in space.dimensions:
        if dimension.kind == "simplex":
            config[dimension.name] = {component: next(rest) for component in dimension.choices}
        else:
            config[dimension.name] = next(rest)
    return config


def write_table(root: str | os.PathLike, meta: Mapping, rows: pa.Table | Sequence[Mapping]) -> Path:
    """Check a table and write it atomically, the JSON first so that rows never lack a description.

    >>> import tempfile
    >>> space = Space((Dimension("rate", "log-continuous", bounds=(1e-4, 1e-2)),))
    >>> meta = {"format": 1, "source": "mine", "task": "pretraining", "experiments": {"small": {
    ...     "context": {}, "space": space.to_json(),
    ...     "fidelity": {"level": "low", "parameters": 1e6, "tokens": 2e7, "flops": 1.2e14},
    ...     "objective": {"metric": "loss", "goal": "minimize"},
    ...     "default": {"rate": 1e-3}, "default_origin": "habit"}}}
    >>> run = {"experiment": "small", "config.rate": 2e-3, "loss": 3.1, "flops": 1.2e14,
    ...     "seconds": None, "seed": 0, "status": "ok"}
    >>> with tempfile.TemporaryDirectory() as root:
    ...     read_table(write_table(root, meta, [run])).rows.num_rows
    1

    Args:
      root: folder of tables.
      meta: the JSON file's content (`format`, `source`, `task`, `experiments` are required).
      rows: one mapping per run, or a pyarrow table.

    Returns:
      The Parquet file's path.

    Raises:
      UserError: the table would be refused when read; nothing has been written.
    """
    if not isinstance(rows, pa.Table):
        rows = _columns(rows)
    meta = json.loads(json.dumps(meta))
    where = f"{meta.get('source')}/{meta.get('task')}"
    _check_meta(meta, where)
    rows_path, meta_path = table_paths(root, meta["source"], meta["task"])
    _check_rows(meta, rows, str(rows_path))
    buffer = pa.BufferOutputStream()
    pq.write_table(rows, buffer, compression="zstd", write_page_checksum=True)
    write_json_atomic(meta_path, meta)
    write_atomic(rows_path, buffer.getvalue().to_pybytes())
    return rows_path


def _columns(rows: Sequence[Mapping]) -> pa.Table:
    # Column by column, since pa.Table.from_pylist keeps only the first row's columns.
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, TypeError) as error:
            raise UserError(f"rows of an outcome table: column `{name}`: {_line(error)}") from error
    return pa.table(columns)


Roots = str | os.PathLike | Sequence[str | os.PathLike]


def as_roots(roots: Roots) -> list[Path]:
    """Return folders of tables as paths: one may be given alone, and `~` is the home folder.

    >>> as_roots("gym_data")
    [PosixPath('gym_data')]
    """
    listed = [roots] if isinstance(roots, str | os.PathLike) else roots
    return [Path(root).expanduser() for root in listed]


def find_tables(roots: Roots) -> list[Path]:
    """Return the Parquet paths of all tables under `roots`, sorted within each root.

    Half a table is listed too, so that reading it names the missing file. Any other lone file is
    ignored, and a warning names it.

    Args:
      roots: folders of tables, or one such folder.

    Raises:
      UserError: a root is no folder.
    """
    paths = []
    for root in as_roots(roots):
        if not root.is_dir():
            raise UserError(f"{root}: no such folder of outcome tables (config.gym.roots)")
        files = {*root.glob("[!.]*/[!.]*.parquet"), *root.glob("[!.]*/[!.]*.json")}
        for file in sorted(files):
            other = file.with_suffix(".json" if file.suffix == ".parquet" else ".parquet")
            if other not in files and not is_table_half(file):
                _warn_of_stray(file)
            elif other not in files or file.suffix == ".parquet":
                paths.append(file.with_suffix(".parquet"))
    return paths


def is_table_half(file: Path) -> bool:
    """Tell whether a lone file could be one of a table's two; a damaged one could be."""
    try:
        if file.suffix == ".json":
            content = json.loads(file.read_bytes())
            return isinstance(content, dict) and "format" in content
        names = pq.read_schema(file).names
    except (ValueError, RecursionError, OSError, pa.ArrowException):
        return True
    return "experiment" in names and any(name.startswith("config.") for name in names)


@functools.cache
def _warn_of_stray(file: Path) -> None:
    _log.warning("%s: ignored: it is no outcome table (config.gym.roots)", file)


def read_table(path: str | os.PathLike) -> Table:
    """Read and check one table, given its Parquet path.

    Raises:
      UserError: a file is missing, truncated or no outcome table; a column is missing or of a wrong
        type; an `ok` row has no finite outcome; a status or an experiment is unknown; or an amount
        is negative or not finite.
    """
    path = Path(path)
    meta_path = path.with_suffix(".json")
    for needed in (path, meta_path):
        if not needed.is_file():
            raise UserError(f"{needed}: missing; an outcome table is a .parquet and a .json file")
    try:
        meta = json.loads(meta_path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{meta_path}: not valid JSON (truncated?): {_line(error)}") from error
    _check_meta(meta, str(meta_path))
    if (meta["source"], meta["task"]) != (path.parent.name, path.stem):
        raise UserError(
            f"{meta_path}: says it is {meta['source']}/{meta['task']}, but it lies at "
            f"{path.parent.name}/{path.stem}"
        )
    try:
        rows = pq.read_table(pa.BufferReader(path.read_bytes()), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        reason = _line(error)
        raise UserError(f"{path}: not a readable Parquet file (truncated?): {reason}") from error
    _check_rows(meta, rows, str(path))
    return Table(meta["source"], meta["task"], meta, rows)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _field(value, key: str, kind, where: str) -> Any:
    """Return `value[key]`, checked to be of `kind`."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    accepted = " or ".join(k.__name__ for k in kinds)
    found = value.get(key)
    if key not in value or not isinstance(found, kinds) or isinstance(found, bool):
        problem = "is missing" if key not in value else f"is a {type(found).__name__}"
        raise UserError(f"{where}: field `{key}` {problem}; accepted is a {accepted}")
    return found


def _one_of(value, key: str, accepted: Sequence, where: str):
    if value.get(key) not in accepted:
        raise UserError(
            f"{where}: field `{key}` is {value.get(key)!r}; accepted are "
            f"{', '.join(map(str, accepted))}"
        )


def _check_meta(meta, where: str) -> None:
    if not isinstance(meta, dict):
        raise UserError(f"{where}: is a {type(meta).__name__}; accepted is a JSON object")
    _one_of(meta, "format", (FORMAT,), where)
    for key in ("source", "task"):
        _check_name(_field(meta, key, str, where), key, where)
    for name, entry in _field(meta, "experiments", dict, where).items():
        at = f"{where}: experiment {name}"
        _check_name(name, "experiments", where)
        if not isinstance(entry, dict):
            raise UserError(f"{at}: is a {type(entry).__name__}; accepted is a JSON object")
        _field(entry, "context", dict, at)
        fidelity = _field(entry, "fidelity", dict, at)
        _one_of(fidelity, "level", LEVELS, at)
        for key in ("parameters", "tokens", "flops"):
            # The upper end refuses infinity and integers that no float can hold.
            if not 0 <= _field(fidelity, key, (int, float), at) < 1e300:
                raise UserError(f"{at}: field `{key}`: accepted is a finite number, 0 or more")
        objective = _field(entry, "objective", dict, at)
        _field(objective, "metric", str, at)
        _one_of(objective, "goal", GOALS, at)
        _field(entry, "default_origin", str, at)
        _check_limit(entry, at)
        try:
            space = Space.from_json(_field(entry, "space", dict, at))
            space.validate(_field(entry, "default", dict, at))
        except InvalidConfiguration as error:
            raise UserError(f"{at}: the default configuration is invalid: {error}") from error
        except ValueError as error:
            raise UserError(f"{at}: field `space`: {error}") from error


def _check_limit(entry: dict, where: str) -> None:
    if "limit" not in entry:
        return
    limit, where = _field(entry, "limit", dict, where), f"{where}: field `limit`"
    _one_of(limit, "quantity", ("parameters",), where)
    if not 0 < _field(limit, "at_most", (int, float), where) < 1e300 or len(limit) != 2:
        raise UserError(f"{where}: accepted are `quantity` and a positive number as `at_most`")


def _check_name(name: str, key: str, where: str) -> None:
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"{where}: {key} {name!r}; accepted is a name without / and leading dot")


def _check_column(rows: pa.Table, column: str, accepted: str, where: str) -> None:
    if rows.column_names.count(column) != 1:
        raise UserError(f"{where}: column `{column}` is missing; its type is {accepted}")
    kind = rows.schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    # A column without any value (seconds, where none is published) has no type of its own.
    empty = pa.types.is_null(kind)
    fits = {
        "text": text,
        "number": number or empty,
        "integer": pa.types.is_integer(kind) or empty,
        "text or number": text or number or pa.types.is_boolean(kind),
    }
    if not fits[accepted]:
        raise UserError(f"{where}: column `{column}` is of type {kind}; accepted is {accepted}")


def _check_rows(meta: Mapping, rows: pa.Table, where: str) -> None:
    for column, accepted in (
        ("experiment", "text"),
        ("status", "text"),
        ("seed", "integer"),
        ("flops", "number"),
        ("seconds", "number"),
    ):
        _check_column(rows, column, accepted, where)
    for column, known, file in (
        ("status", STATUSES, "accepted"),
        ("experiment", tuple(meta["experiments"]), "described in the JSON file"),
    ):
        for value in rows[column].unique().to_pylist():
            if value not in known:
                raise UserError(
                    f"{where}: unknown {column} {value!r} in row {_row_of(rows, column, value)}; "
                    f"{file} are {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
                )
    present = set(rows["experiment"].unique().to_pylist())
    needed = {"parameters": "number"} if "parameters" in rows.column_names else {}
    for name, entry in meta["experiments"].items():
        if name in present:
            needed[entry["objective"]["metric"]] = "number"
            if "limit" in entry:
                needed["parameters"] = "number"
            for dimension in Space.from_json(entry["space"]).dimensions:
                kind = "text or number" if dimension.kind == "categorical" else "number"
                needed |= dict.fromkeys(config_columns(dimension), kind)
    for column, accepted in needed.items():
        _check_column(rows, column, accepted, where)
    for column in ("flops", "seconds", "seed", "parameters"):
        if column in rows.column_names:
            _check_amounts(rows, column, where)
    _check_outcomes(meta, rows, where)


def _check_amounts(rows: pa.Table, column: str, where: str) -> None:
    """Refuse a number that no amount can be: negative, nan or infinite. A null is unknown."""
    for place, value in enumerate(rows[column].to_pylist()):
        if value is not None and not 0 <= value < math.inf:
            raise UserError(
                f"{where}: `{column}` is {value} in row {place + 1}; accepted is a finite number, "
                "0 or more, or null where it is not known"
            )


def _row_of(rows: pa.Table, column: str, value) -> int:
    return rows[column].to_pylist().index(value) + 1


def _check_outcomes(meta: Mapping, rows: pa.Table, where: str) -> None:
    names = rows["experiment"].to_pylist()
    statuses = rows["status"].to_pylist()
    metric_of = {name: e["objective"]["metric"] for name, e in meta["experiments"].items()}
    limit_of = {
        name: e["limit"]["at_most"] for name, e in meta["experiments"].items() if "limit" in e
    }
    values_of = {metric: rows[metric].to_pylist() for metric in {metric_of[name] for name in names}}
    sizes = rows["parameters"].to_pylist() if "parameters" in rows.column_names else []
    for row, (name, status) in enumerate(zip(names, statuses, strict=True)):
        outcome = values_of[metric_of[name]][row]
        if status == "ok" and (outcome is None or not math.isfinite(outcome)):
            raise UserError(
                f"{where}: `{metric_of[name]}` is {outcome} in row {row + 1} (experiment {name}), "
                "whose status is ok; accepted is a finite number, or another status"
            )
        problem = None
        if name in limit_of:
            problem = _limit_problem(sizes[row], limit_of[name], status)
        if status == "infeasible" and outcome is not None and not math.isnan(outcome):
            problem = problem or f"is infeasible and has the outcome {outcome}; accepted is none"
        if problem:
            raise UserError(f"{where}: row {row + 1} (experiment {name}): {problem}")


def _limit_problem(size, at_most: float, status: str) -> str | None:
    """Return how a row's status contradicts its experiment's limit; None if it fits."""
    if size is None or not 0 <= size < math.inf:
        return f"`parameters` is {size}; accepted is a number, 0 or more"
    over = size > at_most
    if over != (status == "infeasible"):
        return (
            f"status is {status}, but its {size:.12g} parameters are "
            f"{'over' if over else 'within'} the limit of {at_most:.12g}"
        )
    return None
