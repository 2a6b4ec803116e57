"""The base of methods that propose points of a continuous space; the nearest row is tried."""

import abc

import numpy as np

from autollm_jax.baselines.base import Candidates, Problem
from autollm_jax.forecasts import coordinates
from autollm_jax.forecasts.gathering import TargetScale, gather, move_along_law

# Greatest number of draws per trial. A proposal is drawn again while the cell nearest to it was
# tried already; after the last draw the nearest untried cell is taken.
REDRAWS = 20


class ProposesPoints(abc.ABC):
    """Tries the row nearest to each proposed point, and tells the proposer the row and its score.

    Without evidence the default configuration comes first. With evidence it does not, because the
    evidence says more than a default and a trial is dear. The proposer learns from the row that was
    run, not from the point that it proposed.

    Args:
      problem: the target and its evidence.
      rows: greatest number of evidence rows.

    Attributes:
      redraws: greatest number of draws per trial.
    """

    redraws = REDRAWS

    def __init__(self, problem: Problem, rows: int):
        self._problem = problem
        self._candidates = Candidates(problem.setting)
        self._scale = TargetScale(problem.setting, problem.evidence)
        self._losses: list[float] = []
        gathered = gather(problem.setting, problem.evidence, rows)
        self._warm = len(gathered) > 0
        self._points_ND = move_along_law(problem.setting, problem.evidence, gathered)
        self._scores_N = gathered.scores_N
        # The search range covers evidence and target: if the target's choices are other ones than
        # the evidence's, no evidence is cut off.
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
        """Learn the score of the last trial's row [D'], on the scale of regret."""

    def ask(self) -> dict:
        if not self._warm and not self._losses:
            row = self._candidates.row_of(self._problem.setting.default)
            return self._candidates.take(row)
        untried = set(self._candidates.untried.tolist())
        for _ in range(self.redraws):
            point_D = self._propose()
            for columns in self._mixtures:
                # The proposer draws each weight by itself; weights must sum to 1.
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
