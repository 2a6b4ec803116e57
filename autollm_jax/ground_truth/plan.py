"""The plan of an outcome table: its experiments, their cells, and the runs that measure the cells.

A cell is a configuration of an experiment with a seed: one row of the table. A run is the training
that measures a cell. Cells of several experiments share a run where the experiments differ only in
a parameter limit or an objective. The runs of a group have equal shapes, so one program trains them
together.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from jax.sharding import Mesh

from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.gym.tables import LEVELS

# Most runs per group. A larger group uses the cores no better, and makes `verify` slower: rounding
# depends on the size of the group, so an exact repetition has to train as many runs again.
RUNS_TOGETHER = 20


class Run(Protocol):
    """A frozen dataclass with the fields of one run; the plan's setup has the shared fields."""

    @property
    def name(self) -> str:
        """Return the run's name, unique in its plan and in its ledger."""

    @property
    def group(self) -> str:
        """Return the name of its group: runs of equal shapes and length."""

    @property
    def program(self) -> str:
        """Return the name of its program: groups of one program and one size compile once."""

    @property
    def seed(self) -> int:
        """Return the seed of the run's initial parameters and data order."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of a table, before its run is trained.

    Attributes:
      experiment: name of the experiment.
      config: the configuration.
      run: the run that measures the cell.
      extra: further columns that are known before training (parameters, ...).
      infeasible: whether the configuration exceeds the experiment's limit; its row gets no metrics.
    """

    experiment: str
    config: Mapping
    run: Run
    extra: Mapping = dataclasses.field(default_factory=dict)
    infeasible: bool = False


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The outcome of a run.

    Attributes:
      metrics: values by column, nan where a value is not finite.
      status: "ok" or "diverged".
      flops: training FLOPs of the run.
      seconds: wall-clock seconds of the run's group, divided by the number of its runs.
    """

    metrics: dict[str, float]
    status: str
    flops: float
    seconds: float


class Trainer(Protocol):
    """Trains the runs of a plan; holds the data that all of them share."""

    def provenance(self) -> dict:
        """Return the facts besides the plan that outcomes depend on, for comparison."""

    def steps(self, run: Run) -> int:
        """Return the run's number of steps, for a progress bar."""

    def train(
        self,
        runs: Sequence[Run],
        mesh: Mesh,
        *,
        checkpoints: Checkpoints | None = None,
        checkpoint_seconds: float = 60.0,
        on_steps: Callable[[int], None] = lambda count: None,
    ) -> list[Measurement]:
        """Train the runs of one group in one program.

        Args:
          runs: runs of one group.
          mesh: the runs are split over its `data` axis.
          checkpoints: where the group's progress is saved; None saves nothing.
          checkpoint_seconds: seconds between two checkpoints.
          on_steps: called with the number of steps done since the last call.

        Returns:
          A measurement per run, in order.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A table, before its runs are trained.

    Attributes:
      source, task: the table's source and task, which give its path.
      setup: a frozen dataclass of the settings that all runs share; `flops(run)`: training FLOPs.
      experiments: descriptions of the experiments by name, as in the table's JSON file.
      cells: the rows, in the table's order.
      metric: the column that `verify` compares.
      tolerance: largest deviation of `metric` that `verify` accepts.
      units: unit or meaning of each column.
      make_trainer: (setup, cache folder) -> Trainer.
    """

    source: str
    task: str
    setup: Any
    experiments: Mapping
    cells: tuple[Cell, ...]
    metric: str
    tolerance: float
    units: Mapping[str, str]
    make_trainer: Callable[..., Trainer]

    def digest(self) -> str:
        """Return a hash of the whole plan; a table records the hash of its plan."""
        content = {
            "setup": dataclasses.asdict(self.setup),
            "experiments": self.experiments,
            "cells": [
                [c.experiment, c.config, dataclasses.asdict(c.run), c.extra, c.infeasible]
                for c in self.cells
            ],
        }
        return _digest(content)

    def setup_digest(self) -> str:
        """Return a hash of the setup: the settings that a run depends on besides its own fields.

        The ledger keeps it with each run, so a changed grid trains only the runs that it lacks.
        """
        return _digest(dataclasses.asdict(self.setup))

    def groups(self, levels: Sequence[str] = LEVELS) -> list[tuple[Run, ...]]:
        """Return the distinct runs in groups; the runs of a group are trained together.

        The levels follow each other, so that the cheap experiments are finished first. A
        configuration that no experiment's limit allows is not trained.

        Args:
          levels: levels of the experiments whose runs are wanted.
        """
        groups, known = [], set()
        for level in LEVELS:
            runs = {
                cell.run.name: cell.run
                for cell in self.cells
                if self.experiments[cell.experiment]["fidelity"]["level"] == level
                and not cell.infeasible
                and cell.run.name not in known
            }
            if level in levels:
                groups += group_runs(runs.values())
            known |= runs.keys()
        return groups

    def share(self, index: int, count: int, levels: Sequence[str]) -> list[tuple[Run, ...]]:
        """Return one share of the groups: every `count`-th program, from program `index` on."""
        groups = self.groups(levels)
        programs = list(dict.fromkeys(runs[0].program for runs in groups))
        mine = set(programs[index::count])
        return [runs for runs in groups if runs[0].program in mine]


def seeds_of(number: int, grid: Mapping) -> range:
    """Return the seeds of a grid's configuration: all of `seeds` for one in `repeated_every`."""
    return range(grid["seeds"] if number % grid["repeated_every"] == 0 else 1)


def group_runs(runs: Iterable[Run]) -> list[tuple[Run, ...]]:
    """Split the distinct runs into groups of at most RUNS_TOGETHER.

    The groups of one program follow each other, so that it is compiled once.
    """
    programs: dict[str, dict[str, dict[str, Run]]] = {}
    for run in runs:
        shapes = programs.setdefault(run.program, {})
        shapes.setdefault(run.group, {})[run.name] = run
    groups = []
    for members in [members for shapes in programs.values() for members in shapes.values()]:
        together, pieces = tuple(members.values()), -(-len(members) // RUNS_TOGETHER)
        ends = [number * len(together) // pieces for number in range(pieces + 1)]
        groups += [together[a:b] for a, b in itertools.pairwise(ends)]
    return groups


def _digest(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
