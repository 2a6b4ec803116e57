"""Experiments: a fixed context, a configuration space and a table of measured outcomes.

A held-out experiment is sealed: everything in it that comes from outcomes raises HeldOutError, and
the only way to an outcome is a trial (`environment.Episode.exec_config`).
"""

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from autollm_jax.errors import UserError
from autollm_jax.gym import tables
from autollm_jax.gym.outcomes import HeldOutError as HeldOutError
from autollm_jax.gym.outcomes import Measured, Outcomes, SealedOutcomes
from autollm_jax.gym.spaces import InvalidConfiguration, Space

# A simplex's weights are continuous, so "the same cell" needs a distance in unit coordinates.
SIMPLEX_SAME = 1e-3
_CODE_SEED = 2605_11518


class Match(NamedTuple):
    """A measured row, and whether it stands in for a configuration that was not measured."""

    row: int
    matched: bool


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
      space: the configurations that may be proposed.
      objective_metric: the outcome's name.
      minimize: whether lower outcomes are better.
      default: the configuration a practitioner would take untuned; `default_origin` says why.
      configurations: which cells were measured, R of them (open: not an outcome).
      record: the outcomes, or their seal.
    """

    source: str
    task: str
    name: str
    context: Mapping
    fidelity: Fidelity
    space: Space
    objective_metric: str
    minimize: bool
    default: dict
    default_origin: str
    configurations: tuple[dict, ...] = dataclasses.field(repr=False)
    record: Outcomes | SealedOutcomes = dataclasses.field(repr=False)

    @property
    def id(self) -> str:
        return f"{self.source}/{self.task}/{self.name}"

    @functools.cached_property
    def units_RD(self) -> np.ndarray:
        """The measured configurations' unit coordinates [R, D']."""
        units_RD = np.stack([self.space.to_unit(config) for config in self.configurations])
        units_RD.setflags(write=False)
        return units_RD

    @functools.cached_property
    def _row_by_key(self) -> dict:
        return {self.space.key_of(config): row for row, config in enumerate(self.configurations)}

    def nearest_row(self, unit_D: np.ndarray) -> int:
        """Return the measured row nearest to the unit coordinates [D'] (the first of equals)."""
        return int(np.argmin(((self.units_RD - unit_D) ** 2).sum(axis=1)))

    def match(self, config) -> Match:
        """Find the measured row that stands for `config`: itself, or the nearest measured one.

        Raises:
          InvalidConfiguration: there is nothing to match (wrong names, non-numbers, nan, inf).
        """
        try:
            row = self._row_by_key.get(self.space.key_of(self.space.validate(config)))
            if row is not None:
                return Match(row, False)
            valid = True
        except InvalidConfiguration:
            valid = False
        unit_D = self.space.to_unit(config)
        row = self.nearest_row(unit_D)
        simplex = any(dimension.kind == "simplex" for dimension in self.space.dimensions)
        same = np.abs(self.units_RD[row] - unit_D).max() < SIMPLEX_SAME
        return Match(row, not (valid and simplex and same))

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
        """Standard deviation over repeated seeds, pooled; nan where nothing was repeated."""
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
        """The middling outcome, m: over all rows, those not ok counted as infinitely bad."""
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
    def _outcome_by_key(self) -> dict:
        outcomes = self.outcomes_R.tolist()
        return {key: outcomes[row] for key, row in self._row_by_key.items()}

    def lookup(self, config: Mapping) -> float:
        """Return the outcome of `config`, nan where it was not measured; no matching.

        Raises:
          InvalidConfiguration: `config` is not in the space.
          HeldOutError: the experiment is sealed.
        """
        outcome_by_key = self._outcome_by_key
        try:
            if len(config) == len(self.space.dimensions):
                return outcome_by_key[self.space.key_of(config)]
        except (KeyError, TypeError):
            pass  # not spelt as in the table: take the slow way
        return outcome_by_key.get(self.space.key_of(self.space.validate(config)), math.nan)

    @functools.cached_property
    def _lookup_index(self) -> tuple:
        """Sorted hash codes of the measured cells, for spaces far too large for a dense array."""
        if any(dimension.kind == "simplex" for dimension in self.space.dimensions):
            raise ValueError(f"{self.id} has a simplex: its cells have no choice indices")
        sizes_D = np.array([len(dimension.choices) for dimension in self.space.dimensions])
        index_RD = np.array(
            [
                [d.choices.index(c[d.name]) for d in self.space.dimensions]
                for c in self.configurations
            ]
        )
        cells = math.prod(sizes_D.tolist())
        if cells <= 1 << 20:
            weights_D = np.cumprod([1, *sizes_D[:0:-1]])[::-1]
            dense = np.full(cells, math.nan)
            dense[index_RD @ weights_D] = self.outcomes_R
            return sizes_D, weights_D, None, None, dense
        random = np.random.default_rng(_CODE_SEED)
        while True:
            weights_D = random.integers(1, 2**63, len(sizes_D), dtype=np.int64) | 1
            code_R = index_RD @ weights_D  # wraps around, as a hash may
            order_R = np.argsort(code_R, kind="stable")
            code_R = code_R[order_R]
            if (code_R[1:] != code_R[:-1]).all():
                return sizes_D, weights_D, code_R, index_RD[order_R], self.outcomes_R[order_R]

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
        sizes_D, weights_D, code_R, index_RD, outcomes = self._lookup_index
        index_ND = np.asarray(index_ND)
        if (
            index_ND.ndim != 2
            or index_ND.shape[1] != len(sizes_D)
            or index_ND.dtype.kind not in "iu"
        ):
            raise IndexError(f"expected integers of shape [N, {len(sizes_D)}]")
        # Column by column: numpy is several times slower along a short last axis.
        code_N = np.zeros(len(index_ND), np.int64)
        for d, (size, weight) in enumerate(zip(sizes_D.tolist(), weights_D.tolist(), strict=True)):
            index_N = index_ND[:, d]
            if len(index_N) and (index_N.min() < 0 or index_N.max() >= size):
                raise IndexError(f"{self.space.names[d]} has the indices 0 to {size - 1}")
            code_N += index_N.astype(np.int64) * weight
        if code_R is None:
            return outcomes[code_N]
        row_N = np.minimum(np.searchsorted(code_R, code_N), len(code_R) - 1)
        return np.where((index_RD[row_N] == index_ND).all(axis=1), outcomes[row_N], math.nan)


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
    objective_metric: str = "loss",
    minimize: bool = True,
) -> Experiment:
    """Make an experiment from runs, one entry per run; repeated configurations are pooled.

    A repeated configuration diverged if any of its runs did; its outcome is the mean over its runs
    of that status.

    Raises:
      InvalidConfiguration: a configuration or the default is not in the space.
      UserError: no run is ok, so that nothing can be scored.
    """
    runs = len(configurations)
    status = ["ok"] * runs if status is None else list(status)
    seconds = [math.nan] * runs if seconds is None else list(seconds)
    groups: dict = {}
    for config, *run in zip(configurations, outcomes, status, seconds, strict=True):
        config = space.validate(config)
        groups.setdefault(space.key_of(config), (config, []))[1].append(run)
    cells, outcome_R, status_R, seconds_R, squares, freedom = [], [], [], [], 0.0, 0
    for config, members in groups.values():
        statuses = [run[1] for run in members]
        state = next((s for s in ("diverged", "infeasible") if s in statuses), "ok")
        values = [_float(run[0]) for run in members if run[1] == state]
        values = [value for value in values if math.isfinite(value)]
        times = [_float(run[2]) for run in members if math.isfinite(_float(run[2]))]
        cells.append(config)
        status_R.append(state)
        outcome_R.append(float(np.mean(values)) if values else math.nan)
        seconds_R.append(float(np.mean(times)) if times else math.nan)
        if state == "ok" and len(values) > 1:
            squares += float(np.var(values)) * len(values)
            freedom += len(values) - 1
    if not any(s == "ok" and math.isfinite(y) for s, y in zip(status_R, outcome_R, strict=True)):
        raise UserError(
            f"experiment {source}/{task}/{name}: no run is ok; at least one must be, to be scored"
        )
    noise = math.sqrt(squares / freedom) if freedom else math.nan
    return Experiment(
        source=source,
        task=task,
        name=name,
        context=dict(context or {}),
        fidelity=fidelity,
        space=space,
        objective_metric=objective_metric,
        minimize=minimize,
        default=space.validate(default),
        default_origin=default_origin,
        configurations=tuple(cells),
        record=Outcomes(
            np.array(outcome_R), np.array(status_R), np.array(seconds_R), noise, minimize
        ),
    )


def _float(value) -> float:
    return math.nan if value is None else float(value)


def table_experiments(table: tables.Table) -> list[Experiment]:
    """Make the experiments of one table, those without rows left out (a sweep may be under way).

    Raises:
      UserError: a row's configuration is not in its experiment's space, or no run is ok.
    """
    rows_of: dict[str, list] = {}
    for number, row in enumerate(table.rows.to_pylist(), start=1):
        rows_of.setdefault(row["experiment"], []).append((number, row))
    experiments = []
    for name, rows in rows_of.items():
        entry = table.meta["experiments"][name]
        space = Space.from_json(entry["space"])
        metric, goal = entry["objective"]["metric"], entry["objective"]["goal"]
        configurations = []
        for number, row in rows:
            try:
                configurations.append(space.validate(tables.row_config(space, row)))
            except InvalidConfiguration as error:
                raise UserError(
                    f"{table.source}/{table.task}.parquet: row {number} (experiment {name}): "
                    f"{error}"
                ) from error
        experiments.append(
            make_experiment(
                source=table.source,
                task=table.task,
                name=name,
                space=space,
                fidelity=Fidelity(**{k: entry["fidelity"][k] for k in Fidelity.__annotations__}),
                configurations=configurations,
                outcomes=[row[metric] for _, row in rows],
                default=entry["default"],
                default_origin=entry["default_origin"],
                context=entry["context"],
                status=[row["status"] for _, row in rows],
                seconds=[row["seconds"] for _, row in rows],
                objective_metric=metric,
                minimize=goal == "minimize",
            )
        )
    return experiments


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
                    "each may come once (gym.roots)"
                )
            found[experiment.id] = (experiment, path)
    if not found:
        wanted = "" if tasks is None else f" of task {' or '.join(tasks)}"
        raise UserError(
            f"{', '.join(map(str, roots))}: no outcome table{wanted}; accepted are folders with "
            "SOURCE/TASK.parquet and SOURCE/TASK.json (gym.roots)"
        )
    return [found[key][0] for key in sorted(found)]


def reveal(experiment: Experiment) -> Experiment:
    """Open a sealed experiment: for the report, once everything has been scored."""
    if not experiment.is_sealed:
        return experiment
    return dataclasses.replace(experiment, record=experiment.record._inside)
