"""Experiments: settings with their measured outcomes, made from runs or read from tables."""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from autollm_jax.errors import UserError
from autollm_jax.gym import tables
from autollm_jax.gym.cells import Cells
from autollm_jax.gym.outcomes import Objective, Outcomes
from autollm_jax.gym.pooling import pool_outcomes
from autollm_jax.gym.settings import Fidelity as Fidelity
from autollm_jax.gym.settings import Setting, pooled_parameters, setting_fields
from autollm_jax.gym.spaces import InvalidConfiguration, Space


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Experiment(Setting):
    """A setting with its outcomes. Make one with `make_experiment` or `load_experiments`.

    Players are given settings. Only an episode (environment.py) holds the outcomes that it scores.

    Attributes:
      outcomes: what the runs brought, one entry per configuration.
    """

    outcomes: Outcomes = dataclasses.field(repr=False)

    @functools.cached_property
    def setting(self) -> Setting:
        """The question without its answers."""
        return Setting(**setting_fields(self))

    @functools.cached_property
    def spread_unit(self) -> float:
        """One unit of spread regret: |m - y*| with m the median over the space, not over its rows.

        Forecasts learn in this unit, in which crowded rows count as little as they cover
        (`Cells.weights_R`). In a grid it is one unit of regret, `outcomes.unit`.
        """
        return self.outcomes.spread_unit(self.cells.weights_R)

    @functools.cached_property
    def uncut_spread_regrets_R(self) -> np.ndarray:
        """(y - y*) / spread unit of each row [R], not cut at 1; +inf where a run is not ok."""
        return self.outcomes.uncut_regrets_R * (self.outcomes.unit / self.spread_unit)

    @property
    def spread_regrets_R(self) -> np.ndarray:
        """The spread regret of each row [R]: cut at 1, which is also that of a failed run."""
        return np.clip(self.uncut_spread_regrets_R, 0.0, 1.0)

    @functools.cached_property
    def _found_values(self) -> tuple[list[float], np.ndarray]:
        """Outcomes by the result of `Cells.find`, as a list and as an array."""
        array = np.append(self.outcomes.values_R, math.nan)
        return array.tolist(), array

    def lookup(self, config: Mapping) -> float:
        """Return the outcome of `config`, nan where it was not measured; no matching.

        Raises:
          InvalidConfiguration: `config` is not in the space.
        """
        return self._found_values[0][self.cells.find(config)]

    def lookup_many(self, index_ND: np.ndarray) -> np.ndarray:
        """Return the outcomes of N configurations given as choice indices per dimension.

        Args:
          index_ND: integers; column d counts into `space.dimensions[d].choices`.

        Returns:
          [N] outcomes, nan where not measured.

        Raises:
          IndexError: an index is no choice's, or the array has another number of columns.
        """
        return self._found_values[1][self.cells.find_many(index_ND)]


class Runs(NamedTuple):
    """N runs by column; None where a column is not known."""

    outcomes: Sequence[float | None]
    status: Sequence[str]
    seconds: Sequence[float | None]
    seeds: Sequence[int | None] | None
    parameters: Sequence[float | None] | None


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
    facts: Mapping | None = None,
    status: Sequence[str] | None = None,
    seconds: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
    parameters: Sequence[float] | None = None,
    limit: Mapping | None = None,
    objective_metric: str = "loss",
    minimize: bool = True,
) -> Experiment:
    """Make an experiment from runs, one entry per run; repeated ones are pooled (`pooling.py`).

    >>> from autollm_jax.gym.spaces import Dimension, Space
    >>> experiment = make_experiment(
    ...     source="mine", task="pretraining", name="1M",
    ...     space=Space((Dimension("rate", "log-ordinal", (1e-4, 1e-3, 1e-2)),)),
    ...     fidelity=Fidelity("low", parameters=1e6, tokens=1e9, flops=6e15),
    ...     configurations=[{"rate": 1e-4}, {"rate": 1e-3}, {"rate": 1e-2}],
    ...     outcomes=[3.0, 2.0, 4.0], default={"rate": 1e-4}, default_origin="the first")
    >>> experiment.id, experiment.lookup({"rate": 1e-3}), experiment.outcomes.optimum
    ('mine/pretraining/1M', 2.0, 2.0)

    Raises:
      InvalidConfiguration: a configuration or the default is not in the space.
      UserError: no run is ok, so that nothing can be scored, or the parameters do not fit.
    """
    cells, row_N = Cells.pool(space, [space.validate(config) for config in configurations])
    runs = Runs(
        outcomes,
        ["ok"] * len(row_N) if status is None else status,
        [math.nan] * len(row_N) if seconds is None else seconds,
        seeds,
        parameters,
    )
    return _from_cells(
        cells,
        row_N,
        runs,
        source=source,
        task=task,
        name=name,
        facts=dict(facts or {}),
        fidelity=fidelity,
        objective=Objective(objective_metric, minimize),
        default=default,
        default_origin=default_origin,
        limit=None if limit is None else dict(limit),
    )


def _from_cells(cells: Cells, row_N: np.ndarray, runs: Runs, **fields: Any) -> Experiment:
    """Make an experiment from N runs, each of which is at a row of `cells`."""
    where = f"experiment {fields['source']}/{fields['task']}/{fields['name']}"
    outcomes = pool_outcomes(
        row_N,
        len(cells),
        outcomes=runs.outcomes,
        status=runs.status,
        seconds=runs.seconds,
        seeds=runs.seeds,
        objective=fields["objective"],
    )
    fields["default"] = cells.space.validate(fields["default"])
    if not outcomes.ok_R.any():
        raise UserError(f"{where}: no run is ok; at least one must be, to be scored")
    return Experiment(
        cells=cells,
        outcomes=outcomes,
        parameters_R=pooled_parameters(len(cells), row_N, runs.parameters, fields["limit"], where),
        **fields,
    )


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
        columns = [taken[name].to_pylist() for name in (metric, "status", "seconds", "seed")]
        runs = Runs(*columns, parameters=taken["parameters"].to_pylist() if known else None)
        cells, row_N = pooled[key]
        experiments.append(
            _from_cells(
                cells,
                row_N,
                runs,
                source=table.source,
                task=table.task,
                name=name,
                facts=entry["context"],
                fidelity=Fidelity(**{k: entry["fidelity"][k] for k in Fidelity.__annotations__}),
                objective=Objective(metric, entry["objective"]["goal"] == "minimize"),
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


def load_experiments(roots: tables.Roots, tasks: Sequence[str] | None = None) -> list[Experiment]:
    """Read every experiment under the roots, sorted by id.

    >>> import tempfile
    >>> from autollm_jax.gym.spaces import Dimension
    >>> space = Space((Dimension("rate", "log-ordinal", (1e-3, 2e-3)),))
    >>> meta = {"format": 1, "source": "mine", "task": "pretraining", "experiments": {"small": {
    ...     "context": {}, "space": space.to_json(),
    ...     "fidelity": {"level": "low", "parameters": 1e6, "tokens": 2e7, "flops": 1.2e14},
    ...     "objective": {"metric": "loss", "goal": "minimize"},
    ...     "default": {"rate": 1e-3}, "default_origin": "habit"}}}
    >>> run = {"experiment": "small", "config.rate": 2e-3, "loss": 3.1, "flops": 1.2e14,
    ...     "seconds": None, "seed": 0, "status": "ok"}
    >>> with tempfile.TemporaryDirectory() as root:
    ...     path = tables.write_table(root, meta, [run])
    ...     [experiment.id for experiment in load_experiments(root)]
    ['mine/pretraining/small']

    Args:
      roots: folders of outcome tables, or one such folder.
      tasks: the tasks wanted; all of them where None.

    Raises:
      UserError: a root or table is missing or bad, an experiment comes twice, or there is none.
    """
    found: dict[str, tuple] = {}
    roots = tables.as_roots(roots)
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
