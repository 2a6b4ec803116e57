"""The base of peers whose acquisition is computed for every row of the table."""

import abc

import numpy as np

from autollm_jax.baselines.base import Candidates, Problem
from autollm_jax.forecasts import coordinates
from autollm_jax.forecasts.gathering import Rows, TargetScale, gather
from autollm_jax.forecasts.relevance import relevant_evidence


class RanksRows(abc.ABC):
    """Tries the untried feasible row that a model ranks first.

    A model sees what the other baselines see: coordinates on the target's scale, beside them the
    row's relative size where all parameters are known, and outcomes on the scale of regret
    (`gathering.gather`; 0 is an experiment's best, 1 its median, everything worse and every failed
    run). Without evidence the default configuration comes first.

    Args:
      problem: the target and its evidence.
      rows: greatest number of evidence rows, an equal share of each experiment, spread evenly over
        the experiment's rows in order of outcome.
      experiments: greatest number of experiments, the most relevant ones.
    """

    def __init__(self, problem: Problem, rows: int, experiments: int | None = None):
        setting = problem.setting
        evidence = relevant_evidence(problem.evidence, setting)[:experiments]
        self._setting = setting
        self._candidates = Candidates(setting)
        self._scale = TargetScale(setting, problem.evidence)
        self._evidence: Rows = gather(setting, evidence, rows)
        sizes_RS = coordinates.relative_sizes(setting)[:, : self._evidence.sizes_NS.shape[1]]
        self._rows_RX = np.concatenate([self._candidates.units_RD, sizes_RS], axis=1)
        self._points_NX = np.concatenate(
            [self._evidence.points_ND, self._evidence.sizes_NS], axis=1
        )
        everything = np.concatenate([self._rows_RX, self._points_NX])
        self._low_X, self._high_X = everything.min(0), everything.max(0)
        self._tried: list[int] = []
        self._losses: list[float] = []

    @abc.abstractmethod
    def _ranking(self, tried_T: np.ndarray, scores_T: np.ndarray) -> np.ndarray:
        """Return a number for each row [R]; the row of the least one is tried next.

        Args:
          tried_T: rows of the trials.
          scores_T: their outcomes, on the scale of the evidence's scores.
        """

    def ask(self) -> dict:
        """Return the next configuration to try."""
        if not len(self._evidence) and not self._tried:
            return self._candidates.take(self._candidates.row_of(self._setting.default))
        scores_T = self._scale.scores(np.array(self._losses))
        ranking_R = self._ranking(np.array(self._tried, int), scores_T)
        return self._candidates.take(self._candidates.lowest(ranking_R))

    def tell(self, trial) -> None:
        """Learn from the trial of the last configuration."""
        row = self._candidates.mark(trial)
        if row is not None:
            self._tried.append(row)
            self._losses.append(trial.loss(self._setting))
