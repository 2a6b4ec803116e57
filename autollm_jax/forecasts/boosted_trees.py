"""Gradient-boosted trees on the evidence.

Trees are flat beyond what they saw, and the target lies beyond: in fidelity, and under a limit in
size. So that this is no handicap, three things are done that a practised user would do too:

- scores are relative to each experiment's best and median (see evidence.py), and its points are
  moved along the law that the optima follow, so that there is little level or place to extrapolate;
- the trees are boosted from a ridge regression on the features and their squares, which does
  extrapolate;
- rows count by how near their experiment is to the target, the target's own trials most.

An ensemble over bags says how sure they are: the first trial is the cell with the lowest mean, the
later ones have the greatest expected improvement.

LightGBM it is (Ke et al., NeurIPS 2017) and not scikit-learn: it is what RegMix fits to mixtures
(arXiv 2407.01492), and on these small tables an ensemble takes it a third of the time.
"""

import lightgbm
import numpy as np

from autollm_jax.baselines.base import Candidates, Problem, draw_seed
from autollm_jax.forecasts import coordinates
from autollm_jax.forecasts.acquisition import expected_best
from autollm_jax.forecasts.gathering import TargetScale, gather, move_along_law

EVIDENCE_ROWS = 2000
# All of this was chosen on cheap experiments.
DECAY = 1.0  # a row's weight falls by e over this distance in log fidelity
TRIAL_WEIGHT = 30.0  # of a trial, where a row of the evidence has 1 on average
OFFSET_VARIANCE = 4.0  # of the target's own level, in squared scores, as the Gaussian process has
RIDGE = 0.3  # penalty on the standardised features' slopes, per unit of weight
MEMBERS = 6
ROUNDS = 50
PARAMETERS = {
    "objective": "regression",
    "learning_rate": 0.1,
    "num_leaves": 16,
    "min_data_in_leaf": 5,
    "min_data_in_bin": 1,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "feature_fraction": 0.8,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


class BoostedTrees:
    """Try the cell with the lowest prediction, then the greatest expected improvement."""

    def __init__(self, problem: Problem, seed: int):
        self._problem = problem
        self._candidates = Candidates(problem.setting)
        self._scale = TargetScale(problem)
        self._seed = draw_seed(problem, seed) % 2**30
        self._rows: list[int] = []
        self._trials: list = []
        evidence = gather(problem, EVIDENCE_ROWS)
        points_ND = move_along_law(problem, evidence)
        self._x_NX = np.concatenate([points_ND, evidence.sizes_NS, evidence.fidelities_NF], axis=1)
        self._y_N = evidence.scores_N
        units_RD = self._candidates.units_RD
        sizes_RS = coordinates.relative_sizes(problem.setting)[:, : evidence.sizes_NS.shape[1]]
        self._x_RX = np.concatenate([units_RD, sizes_RS, np.zeros((len(units_RD), 2))], axis=1)
        if len(evidence):
            distance_N = np.sqrt((evidence.fidelities_NF**2).sum(1))
            weight_N = np.exp(-(distance_N - distance_N.min()) / DECAY)
            self._weight_N = weight_N / weight_N.mean()
            self._before_MR = self._predict(self._x_NX, self._y_N, self._weight_N)

    def ask(self) -> dict:
        if not len(self._y_N):
            return self._ask_cold()
        return self._candidates.take(self._candidates.lowest(self.expected_scores()))

    def expected_scores(self) -> np.ndarray:
        """Return what `expected_best` says of every cell [R], given evidence (some) and trials."""
        mean_R, scores_T = self._before_MR.mean(0), self._scale.scores(self._trials)
        if not self._trials:
            return mean_R
        # The target's level was extrapolated: what all trials have in common is laid to it.
        surprise_T = scores_T - mean_R[self._rows]
        scores_T = scores_T - surprise_T.sum() / (len(scores_T) + 1 / OFFSET_VARIANCE)
        member_MR = self._predict(
            np.concatenate([self._x_NX, self._x_RX[self._rows]]),
            np.concatenate([self._y_N, scores_T]),
            np.concatenate([self._weight_N, np.full(len(scores_T), TRIAL_WEIGHT)]),
        )
        return expected_best(member_MR.mean(0), member_MR.std(0) + 1e-9, scores_T)

    def tell(self, trial) -> None:
        row = self._candidates.mark(trial)
        if row is not None:
            self._rows.append(row)
            self._trials.append(trial)

    def _ask_cold(self) -> dict:
        """Try the default, then the least of the ridge regression on what was tried."""
        if not self._trials:
            return self._candidates.take(self._candidates.row_of(self._problem.setting.default))
        rows, x_TX = self._candidates.untried, self._x_RX[self._rows]
        scores_T = self._scale.scores(self._trials)
        trend_R = ridge(x_TX, scores_T, np.ones(len(scores_T)), self._x_RX)
        return self._candidates.take(int(rows[np.argmin(trend_R[rows])]))

    def _predict(self, x_NX, y_N, weight_N) -> np.ndarray:
        """Fit the ensemble; return what each member predicts of every cell [M, R]."""
        at_NX = np.concatenate([x_NX, self._x_RX])
        trend_N, trend_R = np.split(ridge(x_NX, y_N, weight_N, at_NX), [len(y_N)])
        data = lightgbm.Dataset(
            x_NX, y_N - trend_N, weight=weight_N, params=PARAMETERS, free_raw_data=False
        )
        members = [
            lightgbm.train(PARAMETERS | {"seed": self._seed + m}, data, ROUNDS)
            for m in range(MEMBERS)
        ]
        return trend_R + np.stack([m.predict(self._x_RX, num_threads=1) for m in members])


def ridge(x_NX, y_N, weight_N, at_MX) -> np.ndarray:
    """Fit a weighted ridge regression on the features and their squares; evaluate it.

    Args:
      x_NX: features, which are standardised here; constant ones are left out.
      y_N: what to predict.
      weight_N: what each row counts.
      at_MX: where to predict it.

    Returns:
      [M] predictions.
    """
    centre_X, deviation_X = x_NX.mean(0), x_NX.std(0)
    varies_X = deviation_X > 1e-9

    def design(points_MX):
        z_MX = (points_MX - centre_X)[:, varies_X] / deviation_X[varies_X]
        return np.concatenate([np.ones((len(z_MX), 1)), z_MX, z_MX**2], axis=1)

    design_NP = design(x_NX)
    weighted_NP = design_NP * weight_N[:, None]
    penalty_P = np.full(design_NP.shape[1], RIDGE * weight_N.sum())
    penalty_P[0] = 0.0
    slopes_P = np.linalg.solve(weighted_NP.T @ design_NP + np.diag(penalty_P), weighted_NP.T @ y_N)
    return design(at_MX) @ slopes_P
