"""What runs cost, as the outcome tables say."""

import dataclasses
import math
from collections.abc import Sequence

from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.runs import runs_key
from autollm_jax.gym.tables import Table, find_tables, read_table

MEASURES = ("flops", "hours")


@dataclasses.dataclass(frozen=True)
class Cost:
    """FLOPs and hours; nan is unknown."""

    flops: float = 0.0
    hours: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.hours + other.hours)

    def times(self, number: float) -> "Cost":
        return Cost(self.flops * number, self.hours * number)

    def to_json(self) -> dict:
        return {name: finite_or_none(getattr(self, name)) for name in MEASURES}


def read_runs(roots: Sequence, experiments: Sequence[Experiment]) -> dict[str, dict[tuple, Cost]]:
    """Read what every run of the experiments cost, by experiment id and the run's key.

    Experiments that share a run give it the same key. Rows over an experiment's limit are left out.
    """
    wanted = {e.id: e for e in experiments}
    found: dict[str, dict[tuple, Cost]] = {}
    for path in find_tables(roots):
        if any((e.source, e.task) == (path.parent.name, path.stem) for e in experiments):
            table = read_table(path)
            for name, status, key, cost in _rows(table):
                experiment = wanted.get(f"{table.source}/{table.task}/{name}")
                if experiment is not None and status != "infeasible":
                    key = key if key[0] is not None else (runs_key(experiment), *key[1:])
                    found.setdefault(experiment.id, {})[key] = cost
    return found


def _rows(table: Table):
    """Yield each row's experiment, status, key (it begins with None without a run's) and cost."""
    rows, columns = table.rows, table.rows.column_names
    per_token = "per token" in table.meta.get("units", {}).get("flops", "")
    flops = [math.nan if per_token else _float(value) for value in rows["flops"].to_pylist()]
    hours = [_float(value) / 3600 for value in rows["seconds"].to_pylist()]
    if "run" in columns:
        keys = [(table.source, run) for run in rows["run"].to_pylist()]
    else:
        names = [name for name in columns if name.startswith("config.")]
        # A run whose seed is not known is a run of its own.
        seeds = [f"row {n}" if s is None else s for n, s in enumerate(rows["seed"].to_pylist())]
        values = [*(rows[name].to_pylist() for name in names), seeds]
        keys = [(None, *value) for value in zip(*values, strict=True)]
    said = (rows[name].to_pylist() for name in ("experiment", "status"))
    yield from zip(*said, keys, map(Cost, flops, hours), strict=True)


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """Return the mean; of nothing it is unknown."""
    if not costs:
        return Cost(math.nan, math.nan)
    return sum(costs, Cost()).times(1 / len(costs))


def finite_or_none(value: float) -> float | None:
    """Return a number as JSON can hold it: None where it is nan or infinite."""
    return value if math.isfinite(value) else None


def _float(value) -> float:
    return math.nan if value is None else float(value)
