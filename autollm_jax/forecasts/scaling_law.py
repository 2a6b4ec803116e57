"""A scaling law of the optimum, fitted to the cheap experiments' optima."""

from collections.abc import Sequence

import numpy as np

from autollm_jax.forecasts import coordinates
from autollm_jax.forecasts.base import Forecast, Seen, fitted_level
from autollm_jax.forecasts.gathering import extrapolate, gather
from autollm_jax.forecasts.relevance import relevant_evidence
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting

ROWS = 1000  # of the evidence, that the bowl is fitted to
LEAST_CURVATURE = 1e-3  # regret over the squared width of the space: a bowl, however flat
FLAT = 1.0  # the curvature, and the deviation, without evidence


class ScalingLaw(Forecast):
    """Predict the optimum from parameters and tokens, and a bowl around it.

    For each numeric dimension, the optimum's coordinate (the logarithm of a log-ordinal value) is
    a linear function of log parameters and log tokens, fitted by least squares to the evidence's
    optima: the form of the laws of Kaplan et al. (arXiv 2001.08361) and Step Law (arXiv
    2503.04715). Where the evidence does not determine a slope, the least one around the mean is
    taken. Categories and mixtures have no scale: there the mean of the optima stands.

    The mean is c |x - optimum|^2. Its curvature c is fitted by least squares to the regrets of the
    evidence around each experiment's own optimum; the deviation is that fit's residual. Trials
    change neither: rows are ranked by their distance from the optimum.

    >>> from autollm_jax.gym.experiments import Fidelity, make_experiment
    >>> from autollm_jax.gym.spaces import Dimension, Space
    >>> space = Space((Dimension("rate", "log-ordinal", (0.001, 0.002, 0.004, 0.008)),))
    >>> rates = [{"rate": r} for r in (0.001, 0.002, 0.004, 0.008)]
    >>> def made(name, parameters, losses):
    ...     return make_experiment(
    ...         source="mine", task="pretraining", name=name, space=space,
    ...         fidelity=Fidelity("low", parameters, 1e9, 6e9 * parameters),
    ...         configurations=rates, outcomes=losses, default=rates[0],
    ...         default_origin="the first")
    >>> evidence = made("1M", 1e6, [6, 4, 2, 1]), made("2M", 2e6, [4, 2, 1, 2])
    >>> forecast = ScalingLaw(made("4M", 4e6, [2, 1, 2, 4]).setting, evidence)
    >>> forecast.setting.configurations[int(forecast.predict().mean_R.argmin())]
    {'rate': 0.002}
    """

    def __init__(self, setting: Setting, evidence: Sequence[Experiment], seed: int = 0):
        super().__init__(setting, evidence, seed)
        self.optimum_D = predict_optimum(setting, evidence)
        self._away_R = ((self.units_RD - self.optimum_D) ** 2).sum(-1)
        self._curvature, self._deviation = _bowl(setting, evidence)

    def posterior(self, seen: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        mean_R = self._curvature * self._away_R
        scores_T = self.scale.scores(np.array([loss for _, loss in seen]))
        return mean_R, np.full(len(mean_R), self._deviation), scores_T

    def ranking(self, trials=()) -> np.ndarray:
        del trials  # The law does not learn from them.
        return self._away_R

    def _level(self, seen: Seen, mean_R: np.ndarray) -> tuple[float, float]:
        level, unit = super()._level(seen, mean_R)
        return (level if self.scale.known else fitted_level(seen, mean_R, unit)), unit


def predict_optimum(setting: Setting, evidence: Sequence[Experiment]) -> np.ndarray:
    """Extrapolate the evidence's optima to a setting.

    Returns:
      [D'] coordinates on the setting's scale; the default configuration's without evidence.
    """
    relevant = relevant_evidence(evidence, setting)
    if not relevant:
        return coordinates.project([setting.default], setting.space, setting.space)[0]
    optima_ED = np.concatenate(
        [
            coordinates.project(
                [e.configurations[e.outcomes.best_row]], e.space, setting.space, setting.default
            )
            for e in relevant
        ]
    )
    fidelities_EF = np.stack([e.fidelity.log for e in relevant])
    law_D = extrapolate(fidelities_EF, optima_ED, setting.fidelity.log)
    mean_D = optima_ED.mean(0)
    spans = coordinates.columns(setting.space)
    for dimension in setting.space.dimensions:
        if dimension.is_numeric:
            mean_D[spans[dimension.name]] = law_D[spans[dimension.name]]
    # Beyond the window the nearest row is on its edge; the other dimensions must not pay for it.
    return np.clip(mean_D, 0.0, 1.0)


def _bowl(setting: Setting, evidence: Sequence[Experiment]) -> tuple[float, float]:
    """Fit regret = c |x - own optimum|^2 to the evidence; return c and the residual's deviation."""
    rows = gather(setting, evidence, ROWS)
    if not len(rows):
        return FLAT, FLAT
    first_E = np.unique(rows.experiments_N, return_index=True)[1]  # the best row comes first
    away_ND = rows.points_ND - rows.points_ND[first_E][rows.experiments_N]
    squared_N = (away_ND**2).sum(-1)
    curvature = float(squared_N @ rows.scores_N) / max(float(squared_N @ squared_N), 1e-12)
    curvature = max(curvature, LEAST_CURVATURE)
    return curvature, max(float(np.std(rows.scores_N - curvature * squared_N)), 1e-6)
