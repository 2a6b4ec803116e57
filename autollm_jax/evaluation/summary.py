"""Summarises results.parquet: regret at a few budgets, per method and task, with intervals."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from autollm_jax.evaluation.statistics import Bootstrap, Interval, Unit
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.runs import runs_key

BUDGETS = (1, 3, 5)
ALL = "all"  # the task that stands for all of them together, each task weighing the same


class Results:
    """The regret after each trial, by method, experiment and seed.

    A method that ended an episode early keeps its best regret. A method without a trial in an
    episode that others played has regret 1 there.

    Args:
      results: rows as `runner.evaluate` writes them.
      experiments: the scored experiments; one without rows is ignored. They give the noise floors
        and the clusters that share runs; one that is not given shares none.

    Attributes:
      methods: in their order of appearance.
      tasks: sorted.
      sources: by task, sorted.
      budget: trials per episode.
      units: each episode's task, cluster, experiment ("source/task/name") and seed.
      floors: the noise floor by experiment, nan where not known.
    """

    def __init__(self, results: pa.Table, experiments: Sequence[Experiment] = ()):
        rows = results.to_pylist()
        metadata = results.schema.metadata or {}
        played = json.loads(metadata.get(b"methods", b"[]"))
        self.methods = list(dict.fromkeys([*played, *(row["method"] for row in rows)]))
        self.tasks = sorted({row["task"] for row in rows})
        self.sources = {
            task: sorted({row["source"] for row in rows if row["task"] == task})
            for task in self.tasks
        }
        stored = int(metadata.get(b"budget", 0))
        self.budget = max([stored, *(row["trial"] for row in rows)])
        known = {e.id: e for e in experiments}
        clusters = {name: runs_key(e) for name, e in known.items()}
        found = sorted({(row["task"], experiment_id(row), row["seed"]) for row in rows})
        self.units = [Unit(t, clusters.get(name, name), name, seed) for t, name, seed in found]
        self.floors = {
            unit.experiment: known[unit.experiment].outcomes.noise_regret
            if unit.experiment in known
            else math.nan
            for unit in self.units
        }
        place = {(u.experiment, u.seed): number for number, u in enumerate(self.units)}
        self._best = {m: np.ones((len(self.units), self.budget)) for m in self.methods}
        trials = {m: [] for m in self.methods}
        for row in rows:
            best_K = self._best[row["method"]][place[experiment_id(row), row["seed"]]]
            tail = slice(row["trial"] - 1, None)
            best_K[tail] = np.minimum(best_K[tail], row["regret"])
            trials[row["method"]].append(row)
        self._bootstraps: dict[tuple, Bootstrap] = {}
        self._curves: dict[tuple, tuple[Interval, ...]] = {}
        self.invalid_rate = {m: _share(trials[m], lambda row: not row["valid"]) for m in trials}
        self.matched_rate = {m: _share(trials[m], lambda row: row["matched"]) for m in trials}
        self._trials = trials

    @property
    def budgets(self) -> tuple[int, ...]:
        """Return 1, 3 and 5 up to the budget, and the budget itself where it is larger."""
        beyond = (self.budget,) if self.budget > BUDGETS[-1] else ()
        return tuple(k for k in BUDGETS if k <= self.budget) + beyond

    def chosen(self, task: str, source: str | None = None) -> np.ndarray:
        """Return the numbers of the units of a task (or `all`), of one source where it is given."""
        return np.array(
            [
                number
                for number, unit in enumerate(self.units)
                if task in (ALL, unit.task)
                and (source is None or unit.experiment.startswith(f"{source}/"))
            ],
            int,
        )

    def bootstrap(self, task: str, source: str | None = None) -> Bootstrap:
        """Return the draws for a task (or `all`), of one source where it is given."""
        if (task, source) not in self._bootstraps:
            units = [self.units[number] for number in self.chosen(task, source)]
            self._bootstraps[task, source] = Bootstrap(units)
        return self._bootstraps[task, source]

    def curve(self, method: str, task: str, source: str | None = None) -> tuple[Interval, ...]:
        """Return a method's mean regret after each trial, with its interval."""
        if (method, task, source) not in self._curves:
            best_UK = self._best[method][self.chosen(task, source)]
            curve = self.bootstrap(task, source).regrets(best_UK)
            self._curves[method, task, source] = tuple(curve)
        return self._curves[method, task, source]

    def difference(self, method: str, other: str, task: str) -> tuple[Interval, ...]:
        """Return the paired difference in regret after each trial; below 0 speaks for `method`."""
        chosen = self.chosen(task)
        ours_UK, theirs_UK = self._best[method][chosen], self._best[other][chosen]
        return tuple(self.bootstrap(task).differences(ours_UK, theirs_UK))

    def regret(self, method: str, experiment: str, seed: int | None = None) -> np.ndarray:
        """Return a method's regret after each trial [K]: the mean over seeds, or one seed's."""
        chosen = [
            number
            for number, unit in enumerate(self.units)
            if unit.experiment == experiment and seed in (None, unit.seed)
        ]
        return self._best[method][chosen].mean(0)

    def reached(self, method: str, threshold: float) -> dict[Unit, int | None]:
        """Return each episode's first trial with at most this regret, else None."""
        return {
            unit: next((k + 1 for k, r in enumerate(best_K) if r <= threshold), None)
            for unit, best_K in zip(self.units, self._best[method], strict=True)
        }

    def validity(self, method: str, task: str) -> dict[str, dict]:
        """Return the shares of a method's invalid and matched trials, by trial number.

        Returns:
          {"1": {"invalid", "matched", "n"}, ...} up to the budget; both shares are None for a
          trial that no episode reached.
        """
        rows = [row for row in self._trials[method] if task in (ALL, row["task"])]
        shares = {}
        for k in range(1, self.budget + 1):
            at_k = [row for row in rows if row["trial"] == k]
            shares[str(k)] = {
                "invalid": _share(at_k, lambda row: not row["valid"]) if at_k else None,
                "matched": _share(at_k, lambda row: row["matched"]) if at_k else None,
                "n": len(at_k),
            }
        return shares

    def floor(self, task: str) -> tuple[float, int]:
        """Return the mean noise floor of the experiments that have one, and their number.

        A floor counts 1 at most, as a regret does. Over all tasks it is the mean of the tasks'
        floors, nan unless each has one.
        """
        if task == ALL:
            means, counts = zip(*map(self.floor, self.tasks), strict=True)
            return float(np.mean(means)), sum(counts)
        names = sorted({unit.experiment for unit in self.units if unit.task == task})
        known = [min(self.floors[n], 1.0) for n in names if math.isfinite(self.floors[n])]
        return float(np.mean(known)) if known else math.nan, len(known)


def summarise(results: Results) -> dict:
    """Return the content of `report/summary.json`.

    Returns:
      {"regret": {METHOD: {TASK: {"1": {"mean", "low", "high", "n"}, "3": …, "5": …}}},
      "invalid_rate": {METHOD: share}}, with a TASK named `all`; budgets above the
      episodes' are left out, one above 5 is there too. `n` counts episodes. Beside them:
      "regret_by_trial": {METHOD: {TASK: [mean after 1, 2, … trials]}},
      "validity": {METHOD: {TASK: see `Results.validity`}},
      "regret_by_source": {METHOD: {"SOURCE/TASK": as above}},
      "counts": {TASK: {"experiments", "clusters" (of experiments that share their runs)}},
      "noise_floor": {EXPERIMENT ID: in units of regret, null where nothing was repeated}.
    """

    def cells(method: str, task: str, source: str | None = None) -> dict:
        curve = results.curve(method, task, source)
        return {str(k): curve[k - 1].to_json() for k in results.budgets}

    tasks = [*results.tasks, ALL]
    return {
        "regret": {m: {task: cells(m, task) for task in tasks} for m in results.methods},
        "invalid_rate": results.invalid_rate,
        "regret_by_trial": {
            m: {task: [i.mean for i in results.curve(m, task)] for task in tasks}
            for m in results.methods
        },
        "validity": {
            m: {task: results.validity(m, task) for task in tasks} for m in results.methods
        },
        "regret_by_source": {
            m: {
                f"{source}/{task}": cells(m, task, source)
                for task in results.tasks
                for source in results.sources[task]
            }
            for m in results.methods
        },
        "counts": {
            task: {
                "experiments": results.bootstrap(task).experiments,
                "clusters": sum(results.bootstrap(task).clusters.values()),
            }
            for task in tasks
        },
        "noise_floor": {
            name: floor if math.isfinite(floor) else None for name, floor in results.floors.items()
        },
    }


def summarise_differences(results: Results, method: str) -> dict:
    """Return the paired differences in regret from every other method, below 0 where better.

    Returns:
      {OTHER: {TASK: {"1": {"mean", "low", "high", "n"}, …}}}; empty without its results.
    """
    if method not in results.methods:
        return {}
    return {
        other: {
            task: {
                str(k): results.difference(method, other, task)[k - 1].to_json()
                for k in results.budgets
            }
            for task in (*results.tasks, ALL)
        }
        for other in results.methods
        if other != method
    }


def stress_results(
    paths: Mapping[str, Path], experiments: Sequence[Experiment]
) -> dict[str, Results]:
    """Read the results under each stress, by its label."""
    return {label: Results(pq.read_table(path), experiments) for label, path in paths.items()}


def summarise_stress(stressed: Mapping[str, Results]) -> dict:
    """Return {LABEL: {METHOD: {TASK: {"1": {"mean", "low", "high", "n"}, …}}}}."""
    return {label: summarise(results)["regret"] for label, results in stressed.items()}


def experiment_id(row: dict) -> str:
    """Return the id of the experiment that a row of the results belongs to."""
    return f"{row['source']}/{row['task']}/{row['experiment']}"


def _share(rows: list[dict], condition) -> float:
    """Return the share of rows that meet a condition; 0 of none."""
    return sum(map(condition, rows)) / max(len(rows), 1)
