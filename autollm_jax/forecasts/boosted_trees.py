"""Gradient-boosted trees on the evidence.

Trees are flat beyond the values that they saw, and the setting lies beyond them: in fidelity, and
under a limit in size. A practised user would therefore do three things, which are done here:

- scores are relative to each experiment's best and median (see gathering.py), and its points are
  moved along the law of the optima, so that there is little level or place to extrapolate;
- the trees are boosted from a ridge regression on the features and their squares, which does
  extrapolate;
- rows count by how near their experiment is to the setting, the setting's own trials most.

An ensemble over bags gives the deviation.

The library is LightGBM (Ke et al., NeurIPS 2017) and not scikit-learn: RegMix fits it to mixtures
(arXiv 2407.01492), and on these small tables an ensemble takes a third of the time.
"""

from collections.abc import Sequence

import lightgbm
import numpy as np

from autollm_jax.forecasts import coordinates
from autollm_jax.forecasts.base import Forecast, Seen, draw_seed
from autollm_jax.forecasts.conditioning import LEVEL_VARIANCE
from autollm_jax.forecasts.gathering import gather, move_along_law
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting

EVIDENCE_ROWS = 2000
# All of this was chosen on cheap experiments.
DECAY = 1.0  # a row's weight falls by e over this distance in log fidelity
TRIAL_WEIGHT = 30.0  # of a trial, where a row of the evidence has 1 on average
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


class BoostedTrees(Forecast):
    """An ensemble of boosted trees; without evidence, a ridge regression on the trials.

    The first trial is the row of the lowest mean, later ones have the greatest expected
    improvement.

    >>> from autollm_jax.gym.experiments import Fidelity, make_experiment
    >>> from autollm_jax.gym.spaces import Dimension, Space
    >>> rates = tuple(2.0**n for n in range(-12, -4))
    >>> space = Space((Dimension("rate", "log-ordinal", rates),))
    >>> def made(name, parameters):
    ...     return make_experiment(
    ...         source="mine", task="pretraining", name=name, space=space,
    ...         fidelity=Fidelity("low", parameters, 1e9, 6e9 * parameters),
    ...         configurations=[{"rate": r} for r in rates],
    ...         outcomes=[abs(n) for n in range(-3, 5)],
    ...         default={"rate": rates[0]}, default_origin="the first")
    >>> forecast = BoostedTrees(made("2M", 2e6).setting, [made("1M", 1e6)])
    >>> forecast.predict().mean_R.shape
    (8,)
    """

    def __init__(self, setting: Setting, evidence: Sequence[Experiment], seed: int = 0):
        super().__init__(setting, evidence, seed)
        self._draw_seed = draw_seed(setting, seed) % 2**30
        rows = gather(setting, evidence, EVIDENCE_ROWS)
        points_ND = move_along_law(setting, evidence, rows)
        self._x_NX = np.concatenate([points_ND, rows.sizes_NS, rows.fidelities_NF], axis=1)
        self._y_N = rows.scores_N
        units_RD = self.units_RD
        sizes_RS = coordinates.relative_sizes(setting)[:, : rows.sizes_NS.shape[1]]
        self._x_RX = np.concatenate([units_RD, sizes_RS, np.zeros((len(units_RD), 2))], axis=1)
        if len(rows):
            distance_N = np.sqrt((rows.fidelities_NF**2).sum(1))
            weight_N = np.exp(-(distance_N - distance_N.min()) / DECAY)
            self._weight_N = weight_N / weight_N.mean()
            self._before_MR = self._predict(self._x_NX, self._y_N, self._weight_N)

    def posterior(self, seen: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tried = [row for row, _ in seen]
        scores_T = self.scale.scores(np.array([loss for _, loss in seen]))
        if not len(self._y_N):
            mean_R, deviation_R = self._without_evidence(tried, scores_T)
            return mean_R, deviation_R, scores_T
        mean_R = self._before_MR.mean(0)
        if not seen:
            return mean_R, self._before_MR.std(0) + 1e-9, scores_T
        # The setting's level was extrapolated: the surprise that all trials share is laid to it.
        surprise_T = scores_T - mean_R[tried]
        surprise = surprise_T.sum() / (len(scores_T) + 1 / LEVEL_VARIANCE)
        scores_T = scores_T - surprise
        member_MR = self._predict(
            np.concatenate([self._x_NX, self._x_RX[tried]]),
            np.concatenate([self._y_N, scores_T]),
            np.concatenate([self._weight_N, np.full(len(scores_T), TRIAL_WEIGHT)]),
        )
        return member_MR.mean(0), member_MR.std(0) + 1e-9, scores_T

    def ranking(self, trials=()) -> np.ndarray:
        """Return the expected improvement's numbers; without evidence, the trend's means."""
        if len(self._y_N):
            return super().ranking(trials)
        return self._posterior(self.seen(trials))[0]

    def _level(self, seen: Seen, mean_R: np.ndarray) -> tuple[float, float]:
        level, unit = super()._level(seen, mean_R)
        if not seen:
            return level, unit
        # The means are those of scores less the trials' common surprise: it belongs to the level.
        losses_T = np.array([loss for _, loss in seen])
        surprise = self.scale.scores(losses_T)[0] - self._posterior(seen)[2][0]
        return level + unit * surprise, unit

    def _without_evidence(self, tried: list[int], scores_T: np.ndarray):
        """Return the ridge regression's mean [R] on what was tried, and the spread of scores."""
        rows = len(self._x_RX)
        if not tried:
            return np.zeros(rows), np.ones(rows)
        trend_R = ridge(self._x_RX[tried], scores_T, np.ones(len(scores_T)), self._x_RX)
        return trend_R, np.full(rows, max(float(scores_T.std()), 1e-6))

    def _predict(self, x_NX, y_N, weight_N) -> np.ndarray:
        """Fit the ensemble; return each member's prediction of every row [M, R]."""
        at_NX = np.concatenate([x_NX, self._x_RX])
        trend_N, trend_R = np.split(ridge(x_NX, y_N, weight_N, at_NX), [len(y_N)])
        if len(y_N) * PARAMETERS["bagging_fraction"] < 1:  # a bag would be empty
            return np.tile(trend_R, (MEMBERS, 1))
        data = lightgbm.Dataset(
            x_NX, y_N - trend_N, weight=weight_N, params=PARAMETERS, free_raw_data=False
        )
        members = [
            lightgbm.train(PARAMETERS | {"seed": self._draw_seed + m}, data, ROUNDS)
            for m in range(MEMBERS)
        ]
        return trend_R + np.stack(
            [np.asarray(m.predict(self._x_RX, num_threads=1)) for m in members]
        )


def ridge(x_NX, y_N, weight_N, at_MX) -> np.ndarray:
    """Fit a weighted ridge regression on the features and their squares; evaluate it.

    Args:
      x_NX: features, which are standardised here; constant ones are left out.
      y_N: the values to predict.
      weight_N: the weight of each row.
      at_MX: the features to predict them for.

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
