"""Conditioning a Gaussian forecast on the trials: the closed form that several forecasts share."""

from collections.abc import Callable, Sequence

import numpy as np

from autollm_jax.forecasts.base import Forecast, Seen, fitted_level
from autollm_jax.forecasts.matern import matern
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting

LEVEL_VARIANCE = 4.0  # of the setting's own level, in squared scores: it is only extrapolated
LENGTH = 0.35  # of the kernel, as a share of each coordinate's range
LEAST_DEVIATION = 0.03  # of a row's score
TRIAL_NOISE = 0.0025  # variance of a trial's score around the row's own


def condition(
    mean_R: np.ndarray,
    variance_R: np.ndarray,
    covariance: Callable[[np.ndarray], np.ndarray],
    noise: float,
    tried: Sequence[int],
    scores_T: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Condition the rows' scores on those of some of them.

    A score is the row's own plus a level that all rows share, of which little is known.

    Args:
      mean_R: expected scores [R] before any trial.
      variance_R: their variances [R], the level's not included.
      covariance: rows [T] -> their covariances with all rows [T, R], the level's not included.
      noise: variance of a trial's score around the row's own.
      tried: T rows.
      scores_T: the scores of their trials.

    Returns:
      Mean [R] and deviation [R]. Without trials the deviation is that of the rows' own scores.
    """
    if not len(tried):
        return mean_R, np.sqrt(np.maximum(variance_R, 1e-12))
    rows_T = np.asarray(tried)
    covariance_TR = covariance(rows_T) + LEVEL_VARIANCE
    covariance_TT = covariance_TR[:, rows_T] + noise * np.eye(len(rows_T))
    gain_TR = np.linalg.solve(covariance_TT, covariance_TR)
    variance_R = variance_R + LEVEL_VARIANCE - (covariance_TR * gain_TR).sum(0)
    return mean_R + (scores_T - mean_R[rows_T]) @ gain_TR, np.sqrt(np.maximum(variance_R, 1e-6))


class Conditioned(Forecast):
    """Another forecast's expectations before any trial, conditioned on the trials.

    It lends a forecast that learns nothing from trials, or learns slowly, a Matern-5/2 process over
    the setting's own coordinates, of the forecast's own deviation.

    Args:
      forecast: the other forecast.
    """

    def __init__(self, forecast: Forecast):
        super().__init__(forecast.setting, forecast.evidence, forecast.seed)
        self.forecast = forecast
        mean_R, deviation_R, _ = forecast.posterior(())
        self._mean_R = np.asarray(mean_R, float)
        self._deviation_R = np.maximum(np.asarray(deviation_R, float), LEAST_DEVIATION)

    @classmethod
    def of(cls, make: Callable[..., Forecast]) -> Callable[..., "Conditioned"]:
        """Return a maker from (setting, evidence, seed), given the other forecast's maker."""

        def conditioned(setting: Setting, evidence: Sequence[Experiment], seed: int = 0):
            return cls(make(setting, evidence, seed))

        return conditioned

    def over(self, setting: Setting) -> "Conditioned":
        return Conditioned(self.forecast.over(setting))

    def posterior(self, seen: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scores_T = self.scale.scores(np.array([loss for _, loss in seen]))
        tried = [row for row, _ in seen]
        known = self._mean_R, self._deviation_R**2, self._covariance, TRIAL_NOISE
        return *condition(*known, tried, scores_T), scores_T

    def _covariance(self, rows_T: np.ndarray) -> np.ndarray:
        units_RD = self.units_RD
        squared_TR = ((units_RD[rows_T, None] - units_RD[None]) ** 2).sum(-1)
        near_TR = matern(squared_TR / (LENGTH**2 * max(units_RD.shape[1], 1)))
        return self._deviation_R[rows_T, None] * self._deviation_R * near_TR

    def _level(self, seen: Seen, mean_R: np.ndarray) -> tuple[float, float]:
        level, unit = super()._level(seen, mean_R)
        return (fitted_level(seen, mean_R, unit, level)), unit
