"""Summarises results.parquet: regret at a few budgets, per method and task, with intervals."""

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from autollm_jax.evaluation.statistics import Interval, mean_interval, paired_interval

BUDGETS = (1, 3, 5)
ALL = "all"  # the task that stands for all of them together, each experiment weighing the same

# Experiment ("source/task/name") -> seed -> regret of the best of the first k trials.
Scores = dict[str, dict[int, float]]


class Results:
    """Results by method, experiment and seed: for each the regret after each trial.

    A method that ended an episode early keeps its best; one without a single trial in an episode
    that others played has regret 1 there.

    Attributes:
      methods: in their order of appearance.
      tasks: sorted.
      budget: trials an episode may have.
    """

    def __init__(self, results: pa.Table, column: str = "regret"):
        rows = results.to_pylist()
        metadata = results.schema.metadata or {}
        played = json.loads(metadata.get(b"methods", b"[]"))
        self.methods = list(dict.fromkeys([*played, *(row["method"] for row in rows)]))
        self.tasks = sorted({row["task"] for row in rows})
        stored = int(metadata.get(b"budget", 0))
        self.budget = max([stored, *(row["trial"] for row in rows)])
        self.task_of = {_experiment(row): row["task"] for row in rows}
        units = sorted({(_experiment(row), row["seed"]) for row in rows})
        self._best = {
            (method, *unit): np.ones(self.budget) for method in self.methods for unit in units
        }
        for row in rows:
            best_K = self._best[row["method"], _experiment(row), row["seed"]]
            tail = slice(row["trial"] - 1, None)
            best_K[tail] = np.minimum(best_K[tail], row[column])
        self._invalid = {m: [] for m in self.methods}
        for row in rows:
            self._invalid[row["method"]].append(not row["valid"])

    @property
    def budgets(self) -> tuple[int, ...]:
        """Return those of 1, 3, 5 that the budget reaches."""
        return tuple(k for k in BUDGETS if k <= self.budget)

    def scores(self, method: str, task: str, k: int) -> Scores:
        """Return a method's regret at budget k on a task (or `all`), by experiment and seed."""
        found: Scores = {}
        for (name, experiment, seed), best_K in self._best.items():
            if name == method and task in (ALL, self.task_of[experiment]):
                found.setdefault(experiment, {})[seed] = float(best_K[k - 1])
        return found

    def interval(self, method: str, task: str, k: int) -> Interval:
        """Return a method's mean regret at budget k with its interval."""
        return mean_interval(self.scores(method, task, k))

    def difference(self, method: str, other: str, task: str, k: int) -> Interval:
        """Return by how much a method's regret is below (negative) another's, with its interval."""
        return paired_interval(self.scores(method, task, k), self.scores(other, task, k))

    def invalid_rate(self, method: str) -> float:
        """Return the share of a method's trials that were invalid; 0 of none."""
        invalid = self._invalid[method]
        return sum(invalid) / max(len(invalid), 1)


def summarise(results: pa.Table) -> dict:
    """Return what `report/summary.json` holds.

    Args:
      results: rows as `runner.evaluate` writes them.

    Returns:
      {"regret": {METHOD: {TASK: {"1": {"mean", "low", "high", "n"}, "3": …, "5": …}}},
      "invalid_rate": {METHOD: share}}, with a TASK named `all`; those above the
      episodes' budget are left out. `n` counts episodes.
    """
    read = Results(results)
    tasks: Sequence[str] = [*read.tasks, ALL]
    return {
        "regret": {
            method: {
                task: {str(k): read.interval(method, task, k).to_json() for k in read.budgets}
                for task in tasks
            }
            for method in read.methods
        },
        "invalid_rate": {method: read.invalid_rate(method) for method in read.methods},
    }


def _experiment(row: dict) -> str:
    return f"{row['source']}/{row['task']}/{row['experiment']}"
