"""What an outcome table is made of: experiments, their cells, and the runs behind the cells.

A cell is a configuration of an experiment together with a seed. A run is what is trained for it;
cells of several experiments may share one (parameter limits, objectives), and runs of one group
share every shape, so that they are trained together.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from jax.sharding import Mesh

from autollm_jax.checkpointing.checkpoints import Checkpoints

# More runs a group would fill the cores no better, and make a row dearer to verify: rounding
# depends on a program's size, so that a run is repeated to the bit only in a group of its own size.
RUNS_TOGETHER = 20


class Run(Protocol):
    """A frozen dataclass that says all about one run that its plan's setup does not."""

    @property
    def name(self) -> str:
        """Return the name of its file in the ledger, unique in its plan."""

    @property
    def group(self) -> str:
        """Return the name that the runs of its shapes and length share."""

    @property
    def program(self) -> str:
        """Return the name that runs share whose groups, if equally large, share a program."""

    @property
    def seed(self) -> int:
        """Return the seed of its initial parameters and its data."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of a table before it was measured.

    Attributes:
      experiment: its name.
      config: the configuration.
      run: what is trained for it.
      extra: further columns that are known beforehand (parameters, ...).
      infeasible: over the experiment's limit, whatever the run says.
    """

    experiment: str
    config: Mapping
    run: Run
    extra: Mapping = dataclasses.field(default_factory=dict)
    infeasible: bool = False


@dataclasses.dataclass(frozen=True)
class Measurement:
    """How a run ended.

    Attributes:
      metrics: columns and their values, nan where not finite.
      status: "ok" or "diverged".
      flops: training FLOPs of the run.
      seconds: the wall-clock seconds of the run's group on this machine, divided by its runs.
    """

    metrics: dict[str, float]
    status: str
    flops: float
    seconds: float


class Trainer(Protocol):
    """Trains runs of one plan: what it needs for that, made once."""

    def provenance(self) -> dict:
        """Return what an outcome depends on besides the plan; the same here: comparable."""

    def steps(self, run: Run) -> int:
        """Count the run's updates, for a progress bar."""

    def train(
        self,
        runs: Sequence[Run],
        mesh: Mesh,
        *,
        checkpoints: Checkpoints | None = None,
        checkpoint_seconds: float = 60.0,
        on_steps: Callable[[int], None] = lambda count: None,
    ) -> list[Measurement]:
        """Train runs of one group together."""


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A table before it was measured.

    Attributes:
      source, task: where the table lies.
      setup: a frozen dataclass: what all runs have in common.
      experiments: as in the table's JSON file.
      cells: the rows, in the table's order.
      metric: the column that `verify` compares, and `tolerance`, how far off it may be there.
      units: by column.
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
        """Return a hash that tells whether a table was made by this very plan."""
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
        """Return a hash of what, besides its own fields, a run depends on.

        Runs are kept under it, so that a grid that was moved trains only what it lacks.
        """
        return _digest(dataclasses.asdict(self.setup))

    def groups(self) -> list[tuple[Run, ...]]:
        """Return the distinct runs, those that are trained together side by side."""
        return group_runs(cell.run for cell in self.cells)

    def share(self, index: int, count: int) -> list[tuple[Run, ...]]:
        """Return the groups of every `count`-th program from the `index`-th on."""
        groups = self.groups()
        programs = list(dict.fromkeys(runs[0].program for runs in groups))
        mine = set(programs[index::count])
        return [runs for runs in groups if runs[0].program in mine]


def group_runs(runs: Iterable[Run]) -> list[tuple[Run, ...]]:
    """Put together the distinct runs that are trained together.

    Groups of one program follow each other, so that it is compiled once.
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
