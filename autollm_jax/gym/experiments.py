"""Experiments: a fixed context, a configuration space and a table of measured outcomes.

A held-out experiment is sealed: everything in it that comes from outcomes raises HeldOutError, and
the only way to an outcome is a trial (`environment.Episode.exec_config`).
"""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np

from autollm_jax.errors import UserError
from autollm_jax.gym import tables
from autollm_jax.gym.cells import Cells, Match
from autollm_jax.gym.outcomes import HeldOutError as HeldOutError
from autollm_jax.gym.outcomes import Measured, Outcomes, SealedOutcomes
from autollm_jax.gym.pooling import float_or_nan, pool_outcomes
from autollm_jax.gym.spaces import InvalidConfiguration, Space


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How expensive an experiment is: its level, and parameters, tokens and FLOPs of one run."""

    level: str
    parameters: float
    tokens: float
    flops: float


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """One concrete setting of a task. Make one with `make_experiment` or `load_experiments`.

    Attributes:
      source, task, name: together its `id`, "source/task/name".
      context: what is fixed, by name (model kind, width, tokens, ...).
      fidelity: how expensive one run is.
      objective_metric: the outcome's name.
      minimize: whether lower outcomes are better.
      default: the configuration a practitioner would take untuned; `default_origin` says why.
      cells: the space, and which of its configurations were measured (open: not an outcome).
      record: the outcomes, or their seal.
      limit: `{"quantity": "parameters", "at_most": NUMBER}`; over it a run is `infeasible`.
      parameters_R: the parameters of each configuration [R], known before any run (open), or None.
    """

    source: str
    task: str
    name: str
    context: Mapping
    fidelity: Fidelity
    objective_metric: str
    minimize: bool
    default: dict
    default_origin: str
    cells: Cells = dataclasses.field(repr=False)
    record: Outcomes | SealedOutcomes = dataclasses.field(repr=False)
    limit: Mapping | None = None
    parameters_R: np.ndarray | None = dataclasses.field(default=None, repr=False)

    @property
    def id(self) -> str:
        return f"{self.source}/{self.task}/{self.name}"

    @property
    def space(self) -> Space:
        """The configurations that may be proposed."""
        return self.cells.space

    @property
    def configurations(self) -> tuple[dict, ...]:
        """The measured configurations, R of them."""
        return self.cells.configurations

    @property
    def units_RD(self) -> np.ndarray:
        """The measured configurations' unit coordinates [R, D']."""
        return self.cells.units_RD

    @functools.cached_property
    def feasible_R(self) -> np.ndarray:
        """Whether each configuration is within the limit [R]: arithmetic, so open when sealed."""
        if self.limit is None:
            return np.ones(len(self.cells), bool)
        return self.parameters_R <= self.limit["at_most"]

    def nearest_row(self, unit_D: np.ndarray) -> int:
        """Return the measured row nearest to the unit coordinates [D'] (the first of equals)."""
        return self.cells.nearest_row(unit_D)

    def match(self, config) -> Match:
        """Find the measured row that stands for `config`: itself, or the nearest measured one.

        Raises:
          InvalidConfiguration: there is nothing to match (wrong names, non-numbers, nan, inf).
        """
        return self.cells.match(config)

    @property
    def is_sealed(self) -> bool:
        return isinstance(self.record, SealedOutcomes)

    def sealed(self) -> "Experiment":
        """Return this experiment with its outcomes sealed."""
        if self.is_sealed:
            return self
        return dataclasses.replace(self, record=SealedOutcomes(self.record, self.id))

    def _measured(self, row: int) -> Measured:
        """Read one row, sealed or not: the door that only `Episode.exec_config` may use."""
        record = self.record._inside if self.is_sealed else self.record
        return record.measured(row)

    # Everything below comes from outcomes, so it raises HeldOutError on a sealed experiment.

    @property
    def outcomes_R(self) -> np.ndarray:
        """Outcomes in the objective's units [R], nan where none was measured."""
        return self.record.outcomes_R

    @property
    def status_R(self) -> np.ndarray:
        """`ok`, `diverged` or `infeasible` [R]."""
        return self.record.status_R

    @property
    def seconds_R(self) -> np.ndarray:
        """How long each run took [R], nan where not recorded."""
        return self.record.seconds_R

    @property
    def noise(self) -> float:
        """Noise floor: deviation between seeds up to the median; nan where nothing was repeated."""
        return self.record.noise

    @property
    def optimum(self) -> float:
        """The best ok outcome, y*."""
        return self.record.optimum

    @property
    def best_row(self) -> int:
        return self.record.best_row

    @property
    def median(self) -> float:
        """The middling outcome, m: of what could be run, diverged counted as infinitely bad."""
        return self.record.median

    @property
    def regrets_R(self) -> np.ndarray:
        """The regret of each measured configuration [R]."""
        return self.record.regrets_R

    def regret(self, outcome: float, status: str = "ok") -> float:
        """Score an outcome: clip((y - y*) / (m - y*), 0, 1); 1 unless the status is ok."""
        return self.record.regret(outcome, status)

    def regret_minmax(self, outcome: float, status: str = "ok") -> float:
        """Score an outcome between the best and the worst finite one (as in HPO-B)."""
        return self.record.regret_minmax(outcome, status)

    @functools.cached_property
    def _found_outcomes(self) -> tuple[list[float], np.ndarray]:
        """Outcomes by what `Cells.find` returns, as a list and as an array."""
        array = np.append(self.outcomes_R, math.nan)
        return array.tolist(), array

    def lookup(self, config: Mapping) -> float:
        """Return the outcome of `config`, nan where it was not measured; no matching.

        Raises:
          InvalidConfiguration: `config` is not in the space.
          HeldOutError: the experiment is sealed.
        """
        return self._found_outcomes[0][self.cells.find(config)]

    def lookup_many(self, index_ND: np.ndarray) -> np.ndarray:
        """Return the outcomes of N configurations given as choice indices per dimension.

        Args:
          index_ND: integers; column d counts into `space.dimensions[d].choices`.

        Returns:
          [N] outcomes, nan where not measured.

        Raises:
          IndexError: an index is no choice's, or the array has another number of columns.
          HeldOutError: the experiment is sealed.
        """
        return self._found_outcomes[1][self.cells.find_many(index_ND)]


def make_experiment(
    *,
    source: str,
    task: str,
    name: str,
    space: Space,
    fidelity: Fidelity,
    configurations: Sequence[Mapping],
    outcomes: Sequence[float],
    default: Mapping,
    default_origin: str,
    context: Mapping | None = None,
    status: Sequence[str] | None = None,
    seconds: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
    parameters: Sequence[float] | None = None,
    limit: Mapping | None = None,
    objective_metric: str = "loss",
    minimize: bool = True,
) -> Experiment:
    """Make an experiment from runs, one entry per run; repeated ones are pooled (`pooling.py`).

    Raises:
      InvalidConfiguration: a configuration or the default is not in the space.
      UserError: no run is ok, so that nothing can be scored, or the parameters do not fit.
    """
    cells, row_N = Cells.pool(space, [space.validate(config) for config in configurations])
    runs = {
        "outcomes": outcomes,
        "status": ["ok"] * len(row_N) if status is None else status,
        "seconds": [math.nan] * len(row_N) if seconds is None else seconds,
        "seeds": seeds,
        "parameters": parameters,
    }
    return _from_cells(
        cells,
        row_N,
        runs,
        source=source,
        task=task,
        name=name,
        context=dict(context or {}),
        fidelity=fidelity,
        objective_metric=objective_metric,
        minimize=minimize,
        default=default,
        default_origin=default_origin,
        limit=None if limit is None else dict(limit),
    )


def _from_cells(cells: Cells, row_N: np.ndarray, runs: Mapping, **fields) -> Experiment:
    """Make an experiment from N runs, given by column, of which each is at a row of `cells`."""
    where = f"experiment {fields['source']}/{fields['task']}/{fields['name']}"
    columns = (runs[column] for column in ("outcomes", "status", "seconds", "seeds"))
    record = pool_outcomes(row_N, len(cells), *columns, fields["minimize"])
    if not ((record.status_R == "ok") & np.isfinite(record.outcomes_R)).any():
        raise UserError(f"{where}: no run is ok; at least one must be, to be scored")
    return Experiment(
        cells=cells,
        record=record,
        parameters_R=_pool_parameters(cells, row_N, runs["parameters"], fields["limit"], where),
        **fields | {"default": cells.space.validate(fields["default"])},
    )


def _pool_parameters(cells, row_N, parameters, limit, where) -> np.ndarray | None:
    if parameters is None:
        if limit is not None:
            raise UserError(f"{where}: has a limit, so every run needs its `parameters`")
        return None
    parameters_N = np.array([float_or_nan(value) for value in parameters])
    parameters_R = np.full(len(cells), math.nan)
    parameters_R[row_N] = parameters_N
    if not (parameters_R[row_N] == parameters_N).all():  # a nan is refused here too
        raise UserError(f"{where}: a configuration's `parameters` differ between runs, or are nan")
    parameters_R.setflags(write=False)
    return parameters_R


def table_experiments(table: tables.Table) -> list[Experiment]:
    """Make the experiments of one table, those without rows left out (a sweep may be under way).

    Experiments with the same space and the same configurations share one `Cells`.

    Raises:
      UserError: a row's configuration is not in its experiment's space, or no run is ok.
    """
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(table.rows["experiment"].to_pylist()):
        rows_of.setdefault(name, []).append(row)
    spaces: dict[str, Space] = {}
    pooled: dict[tuple, tuple] = {}
    experiments = []
    for name, rows in rows_of.items():
        entry = table.meta["experiments"][name]
        taken = table.rows.take(rows)
        spelt = json.dumps(entry["space"])
        space = spaces.setdefault(spelt, Space.from_json(entry["space"]))
        written = tables.row_values(space, taken)
        key = (spelt, *written)
        if key not in pooled:
            places = [f"row {row + 1} (experiment {name})" for row in rows]
            pooled[key] = Cells.pool(space, _validated(table, space, written, places))
        metric = entry["objective"]["metric"]
        known = "parameters" in taken.column_names and not taken["parameters"].null_count
        columns = {
            "outcomes": metric,
            "status": "status",
            "seconds": "seconds",
            "seeds": "seed",
        }
        runs = {key: taken[column].to_pylist() for key, column in columns.items()}
        runs["parameters"] = taken["parameters"].to_pylist() if known else None
        experiments.append(
            _from_cells(
                *pooled[key],
                runs,
                source=table.source,
                task=table.task,
                name=name,
                context=entry["context"],
                fidelity=Fidelity(**{k: entry["fidelity"][k] for k in Fidelity.__annotations__}),
                objective_metric=metric,
                minimize=entry["objective"]["goal"] == "minimize",
                default=entry["default"],
                default_origin=entry["default_origin"],
                limit=entry.get("limit"),
            )
        )
    return experiments


def _validated(table, space: Space, written: Sequence[tuple], places: Sequence[str]) -> list[dict]:
    configurations = []
    for values, place in zip(written, places, strict=True):
        try:
            configurations.append(space.validate(tables.row_config(space, values)))
        except InvalidConfiguration as error:
            where = f"{table.source}/{table.task}.parquet"
            raise UserError(f"{where}: {place}: {error}") from error
    return configurations


def load_experiments(
    roots: Sequence[str | os.PathLike], tasks: Sequence[str] | None = None
) -> list[Experiment]:
    """Read every experiment under the roots, sorted by id.

    Args:
      roots: folders of outcome tables.
      tasks: the tasks wanted; all of them where None.

    Raises:
      UserError: a root or table is missing or bad, an experiment comes twice, or there is none.
    """
    found: dict[str, tuple] = {}
    for path in tables.find_tables(roots):
        if tasks is not None and path.stem not in tasks:
            continue
        for experiment in table_experiments(tables.read_table(path)):
            if experiment.id in found:
                raise UserError(
                    f"{path}: experiment {experiment.id} is also in {found[experiment.id][1]}; "
                    "each may come once (config.gym.roots)"
                )
            found[experiment.id] = (experiment, path)
    if not found:
        wanted = "" if tasks is None else f" of task {' or '.join(tasks)}"
        raise UserError(
            f"{', '.join(map(str, roots))}: no outcome table{wanted}; accepted are folders with "
            "SOURCE/TASK.parquet and SOURCE/TASK.json (config.gym.roots)"
        )
    return [found[key][0] for key in sorted(found)]


def reveal(experiment: Experiment) -> Experiment:
    """Open a sealed experiment: for the report, once everything has been scored."""
    if not experiment.is_sealed:
        return experiment
    return dataclasses.replace(experiment, record=experiment.record._inside)
