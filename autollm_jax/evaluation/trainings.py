"""Pools the evaluations of several trainings that differ in their seed alone.

An interval over the evaluation seeds of one training does not include the luck of the training.
Pooled, each training's episodes count as further seeds, and the bootstrap draws over all of them.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from autollm_jax.errors import UserError
from autollm_jax.evaluation.runner import parquet_bytes
from autollm_jax.files import read_json_lines, write_atomic

RESULTS, TRANSCRIPTS = "results.parquet", "transcripts.jsonl"


def pool_trainings(folders: Sequence[Path], out: Path) -> pa.Table:
    """Write the results and transcripts of several evaluation folders as those of one.

    Args:
      folders: each with `results.parquet` and `transcripts.jsonl`, of the same experiments, methods
        and budget.
      out: where the pooled ones go. Training n's seed s becomes n x (number of seeds) + s.

    Raises:
      UserError: a folder has no results, or others than the first.
    """
    tables = [_read(folder) for folder in folders]
    if not tables:
        raise UserError("no work directories to pool; name them, comma between")
    first = tables[0]
    for folder, table in zip(folders, tables, strict=True):
        if _described(table) != _described(first):
            raise UserError(
                f"{folder}: its experiments, methods, seeds or budget are not those of "
                f"{folders[0]}; accepted are trainings that differ in config.seed alone"
            )
    stride = max(first["seed"].to_pylist()) + 1
    place = first.column_names.index("seed")
    shifted, lines = [], []
    for number, (folder, table) in enumerate(zip(folders, tables, strict=True)):
        seeds = [seed + number * stride for seed in table["seed"].to_pylist()]
        shifted.append(table.set_column(place, first.schema.field("seed"), pa.array(seeds)))
        for entry in read_json_lines(folder / TRANSCRIPTS, remedy="run --stage=evaluate there"):
            lines.append(json.dumps(entry | {"seed": entry["seed"] + number * stride}) + "\n")
    pooled = pa.concat_tables(shifted).replace_schema_metadata(first.schema.metadata)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / TRANSCRIPTS, "".join(lines))
    write_atomic(out / RESULTS, parquet_bytes(pooled))
    return pooled


def _read(folder: Path) -> pa.Table:
    for name in (RESULTS, TRANSCRIPTS):
        if not (folder / name).exists():
            raise UserError(f"{folder / name}: missing; run --stage=evaluate there first")
    return pq.read_table(folder / RESULTS)


def _described(table: pa.Table) -> tuple:
    """Return the parts of an evaluation that must agree: metadata, experiments, seeds."""
    columns = zip(*(table[c].to_pylist() for c in ("task", "source", "experiment")), strict=True)
    seeds = table["seed"].unique().to_pylist()
    return table.schema.metadata, frozenset(columns), frozenset(seeds)
