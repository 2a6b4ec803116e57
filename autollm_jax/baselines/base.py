"""The problem that every method is given, and the interface of a method."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autollm_jax.forecasts import coordinates
from autollm_jax.gym.environment import Trial
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.runs import flops_of_runs
from autollm_jax.gym.settings import Setting


@dataclass(frozen=True)
class Problem:
    """One expensive run to configure, with all that a method may know before its first trial.

    Attributes:
      setting: the question. An experiment is refused, because it holds the answers too.
      evidence: cheaper experiments of the same task and source.
      budget: number of trials.
      failing: an adviser that is wrong on purpose, for methods that ask all of them (a stress
        test, as in `forecasts.advisers.counsel`).
    """

    setting: Setting
    evidence: tuple[Experiment, ...]
    budget: int
    failing: str = ""

    def __post_init__(self):
        if isinstance(self.setting, Experiment):
            raise TypeError(f"{self.setting.id}: a method is given a setting, not its outcomes")


class Method(Protocol):
    """A way of choosing configurations: built as `METHOD(problem, seed)`.

    A method that reads only a part of the evidence may have an attribute `evidence_flops`, the
    FLOPs of that part (see the function `evidence_flops`).
    """

    def ask(self) -> dict:
        """Return the next measured configuration to try, an untried one while any is left."""

    def tell(self, trial: Trial) -> None:
        """Learn from the trial of the last configuration."""


class MetaLearned(Method, Protocol):
    """A method that learns from the training experiments before it can play.

    It is built as `METHOD(problem, seed, learned)`, where `learned` is the result of `learn`.
    """

    @classmethod
    def learn(
        cls, training: Sequence[Experiment], seed: int, progress: bool, share: float = 1.0
    ) -> dict[str, np.ndarray]:
        """Learn from the split's training experiments; deterministic by seed.

        Args:
          training: the experiments.
          seed: of learning.
          progress: whether to show a progress bar.
          share: the share of the training steps to take; less than 1 gives a quick trial run.

        Returns:
          The learned arrays by name.
        """


def evidence_flops(method: Method, problem: Problem) -> float:
    """Return the FLOPs of the cheap runs behind a method's choices.

    The number is the method's attribute `evidence_flops`. Without the attribute it is the FLOPs of
    all runs of the problem's evidence, whether the method used them or not.
    """
    everything = ((e, np.arange(len(e.configurations))) for e in problem.evidence)
    return float(getattr(method, "evidence_flops", None) or flops_of_runs(everything))


class Candidates:
    """Tracks a setting's feasible rows: their coordinates, and the rows that were tried.

    A configuration over the limit is known to be infeasible before any run, so no method is offered
    such a row.

    Attributes:
      units_RD: coordinates of all rows on the setting's own scale (see coordinates.py).
    """

    def __init__(self, setting: Setting):
        self.setting = setting
        self.units_RD = coordinates.project(setting.configurations, setting.space, setting.space)
        self._feasible = np.flatnonzero(setting.feasible_R)
        self._tried_R = np.zeros(len(self.units_RD), bool)

    @property
    def untried(self) -> np.ndarray:
        """Return the untried feasible rows; all feasible rows once every one was tried."""
        rows = self._feasible[~self._tried_R[self._feasible]]
        return rows if len(rows) else self._feasible

    def lowest(self, scores_R: np.ndarray) -> int:
        """Return the untried row with the lowest score."""
        rows = self.untried
        return int(rows[np.argmin(scores_R[rows])])

    def in_turn(self, points_ND: np.ndarray) -> Iterator[int]:
        """Yield the feasible row nearest to each point, in order; skip rows that were tried."""
        for point_D in points_ND:
            row = self.nearest(point_D)
            if row in self.untried:
                yield row

    def take(self, row: int) -> dict:
        """Mark a row as tried and return its configuration."""
        self._tried_R[row] = True
        return dict(self.setting.configurations[row])

    def mark(self, trial: Trial) -> int | None:
        """Mark the row of a trial as tried and return the row; None for an invalid trial."""
        if trial.row is not None:
            self._tried_R[trial.row] = True
        return trial.row

    def row_of(self, config: dict) -> int:
        """Return the feasible row nearest to a configuration."""
        return self.nearest(coordinates.project([config], *[self.setting.space] * 2)[0])

    def nearest(self, unit_D: np.ndarray, untried: bool = False) -> int:
        """Return the feasible row, or the untried row, nearest to a point [D']."""
        rows = self.untried if untried else self._feasible
        return int(rows[np.argmin(((self.units_RD[rows] - unit_D) ** 2).sum(-1))])
