"""Reads the FLOPs of every run from the outcome tables."""

import math
from collections.abc import Iterator, Sequence

from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.runs import runs_key
from autollm_jax.gym.tables import Roots, Table, find_tables, read_table


def read_runs(roots: Roots, experiments: Sequence[Experiment]) -> dict[str, dict[tuple, float]]:
    """Read the FLOPs of every run of some experiments.

    Args:
      roots: folders of tables, or one such folder.
      experiments: the experiments to read. Infeasible rows are left out: they were not run, or ran
        out of memory at their start.

    Returns:
      {experiment id: {run key: FLOPs}}. A run that several experiments share has the same key in
      each. FLOPs are nan where the table has none for the run, or gives them per token.
    """
    wanted = {e.id: e for e in experiments}
    found: dict[str, dict[tuple, float]] = {}
    for path in find_tables(roots):
        if any((e.source, e.task) == (path.parent.name, path.stem) for e in experiments):
            table = read_table(path)
            for name, status, key, flops in _rows(table):
                experiment = wanted.get(f"{table.source}/{table.task}/{name}")
                if experiment is not None and status != "infeasible":
                    key = key if key[0] is not None else (runs_key(experiment), *key[1:])
                    found.setdefault(experiment.id, {})[key] = flops
    return found


def _rows(table: Table) -> Iterator[tuple[str, str, tuple, float]]:
    """Yield (experiment, status, run key, FLOPs) per row.

    The run key starts with None when the table has no `run` column.
    """
    rows, columns = table.rows, table.rows.column_names
    per_token = "per token" in table.meta.get("units", {}).get("flops", "")
    flops = (math.nan if per_token or n is None else float(n) for n in rows["flops"].to_pylist())
    if "run" in columns:
        keys = [(table.source, run) for run in rows["run"].to_pylist()]
    else:
        names = [name for name in columns if name.startswith("config.")]
        # A run whose seed is not known is a run of its own.
        seeds = [f"row {n}" if s is None else s for n, s in enumerate(rows["seed"].to_pylist())]
        values = [*(rows[name].to_pylist() for name in names), seeds]
        keys = [(None, *value) for value in zip(*values, strict=True)]
    said = (rows[name].to_pylist() for name in ("experiment", "status"))
    yield from zip(*said, keys, flops, strict=True)
