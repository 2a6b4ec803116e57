"""The base of methods that propose points of a continuous space, of which only rows are tried."""

import abc

import numpy as np

from autollm_jax.baselines.base import Candidates, Problem
from autollm_jax.forecasts import coordinates
from autollm_jax.forecasts.gathering import TargetScale, gather, move_along_law

# A proposal whose nearest cell was tried is drawn again this often before the next cell is taken.
REDRAWS = 20


class ProposesPoints(abc.ABC):
    """Tries the row nearest to each proposed point, and tells the proposer of that row.

    The default configuration comes first where there is no evidence, and else not: with evidence it
    would spend a trial of five on less than is known. The proposer is told of the row that was run,
    not of its proposal.

    Args:
      problem: the target and its evidence.
      rows: greatest number of evidence rows.
    """

    def __init__(self, problem: Problem, rows: int):
        self._problem = problem
        self._candidates = Candidates(problem.setting)
        self._scale = TargetScale(problem.setting, problem.evidence)
        self._losses: list[float] = []
        gathered = gather(problem.setting, problem.evidence, rows)
        self._warm = len(gathered) > 0
        self._points_ND = move_along_law(problem.setting, problem.evidence, gathered)
        self._scores_N = gathered.scores_N
        # The search range covers evidence and target: a window that slid cuts nothing off.
        points_ND = np.concatenate([self._candidates.units_RD, self._points_ND])
        self._low_D, self._high_D = points_ND.min(0), points_ND.max(0)
        space = problem.setting.space
        spans = coordinates.columns(space)
        self._mixtures = [spans[d.name] for d in space.dimensions if d.kind == "simplex"]

    @abc.abstractmethod
    def _propose(self) -> np.ndarray:
        """Return the next point [D'] in the target's scale."""

    @abc.abstractmethod
    def _learn(self, point_D: np.ndarray, score: float) -> None:
        """Take in the score of the last trial's row, on the scale of regret."""

    def ask(self) -> dict:
        if not self._warm and not self._losses:
            row = self._candidates.row_of(self._problem.setting.default)
            return self._candidates.take(row)
        untried = set(self._candidates.untried.tolist())
        for _ in range(REDRAWS):
            point_D = self._propose()
            for columns in self._mixtures:
                # Weights are drawn one by one; only their shares mean anything.
                point_D[columns] /= max(point_D[columns].sum(), 1e-12)
            row = self._candidates.nearest(point_D)
            if row in untried:
                return self._candidates.take(row)
        return self._candidates.take(self._candidates.nearest(point_D, untried=True))

    def tell(self, trial) -> None:
        row = self._candidates.mark(trial)
        if row is None:
            return
        self._losses.append(trial.loss(self._problem.setting))
        scores_T = self._scale.scores(np.array(self._losses))
        self._learn(self._candidates.units_RD[row], float(scores_T[-1]))
