"""The best rows of the most relevant cheap experiment, best first."""

from collections.abc import Sequence

import numpy as np

from autollm_jax.forecasts import coordinates
from autollm_jax.forecasts.base import Forecast, Seen, fitted_level
from autollm_jax.forecasts.relevance import relevant_evidence
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting

CHUNK = 64  # points that are compared with all rows at once


class NearestExperiment(Forecast):
    """Carry the regrets of the most relevant experiment over to the setting's rows.

    Each row of the experiment, best first, is mapped to the setting's nearest feasible row. The
    rows that it reaches are ranked in this order; then those that the next experiment reaches, and
    so on; last, the others by their distance from the default. Rows of regret 1 are not carried
    over: a diverged one and a middling one both have it.

    The mean is the regret of the row's best image in the most relevant experiment, 1 where there
    is none. The deviation is the root mean square difference between two experiments' images of a
    row, and the spread of the regrets where there is but one experiment. Trials change neither.

    >>> from autollm_jax.gym.experiments import Fidelity, make_experiment
    >>> from autollm_jax.gym.spaces import Dimension, Space
    >>> space = Space((Dimension("layers", "ordinal", (2, 4, 8)),))
    >>> layers = [{"layers": n} for n in (2, 4, 8)]
    >>> def made(name, parameters, losses):
    ...     return make_experiment(
    ...         source="mine", task="architecture", name=name, space=space,
    ...         fidelity=Fidelity("low", parameters, 1e9, 6e9 * parameters),
    ...         configurations=layers, outcomes=losses, default=layers[0],
    ...         default_origin="the first")
    >>> forecast = NearestExperiment(made("2M", 2e6, [0, 0, 1]), [made("1M", 1e6, [2, 1, 3])])
    >>> forecast.predict().mean_R
    array([1., 0., 1.])
    """

    def __init__(self, setting: Setting, evidence: Sequence[Experiment], seed: int = 0):
        super().__init__(setting, evidence, seed)
        rows = len(setting.configurations)
        self._mean_R = np.ones(rows)
        self._rank_R = np.full(rows, np.inf)
        images, placed = [], 0
        for experiment in relevant_evidence(evidence, setting):
            order_N, regret_N = self._images(experiment)
            regret_R = np.full(rows, np.nan)
            # Written backwards, so that the first of a row's images stays.
            regret_R[order_N[::-1]] = regret_N[::-1]
            rank_R = np.full(rows, np.inf)
            rank_R[order_N[::-1]] = placed + np.arange(len(order_N))[::-1]
            self._rank_R = np.minimum(self._rank_R, rank_R)
            placed += len(order_N)
            images.append(regret_R)
        if images:
            self._mean_R = np.where(np.isnan(images[0]), 1.0, images[0])
        self._deviation = _deviation(images)
        away_R = (
            (self.units_RD - coordinates.project([setting.default], setting.space, setting.space))
            ** 2
        ).sum(-1)
        left_R = np.isinf(self._rank_R)
        self._rank_R[left_R] = placed + away_R[left_R]

    def _images(self, experiment: Experiment) -> tuple[np.ndarray, np.ndarray]:
        """Return the setting's rows nearest to the experiment's, best first [N]; their regrets."""
        setting, regrets_R = self.setting, experiment.spread_regrets_R
        order = np.argsort(regrets_R, kind="stable")
        order = order[regrets_R[order] < 1]
        points_ND = coordinates.project(
            [experiment.configurations[r] for r in order],
            experiment.space,
            setting.space,
            setting.default,
        )
        feasible = np.flatnonzero(setting.feasible_R)
        units_FD, found = self.units_RD[feasible], []
        for start in range(0, len(points_ND), CHUNK):
            away_CFD = units_FD[None] - points_ND[start : start + CHUNK, None]
            found.append(feasible[(away_CFD**2).sum(-1).argmin(1)])
        return np.concatenate([np.zeros(0, int), *found]), regrets_R[order]

    def posterior(self, seen: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scores_T = self.scale.scores(np.array([loss for _, loss in seen]))
        return self._mean_R, np.full(len(self._mean_R), self._deviation), scores_T

    def ranking(self, trials=()) -> np.ndarray:
        del trials  # Nothing is learned from them.
        return self._rank_R

    def _level(self, seen: Seen, mean_R: np.ndarray) -> tuple[float, float]:
        level, unit = super()._level(seen, mean_R)
        return (level if self.scale.known else fitted_level(seen, mean_R, unit)), unit


def _deviation(images: Sequence[np.ndarray]) -> float:
    """Return how far two experiments' regrets of a row are apart (root mean square)."""
    if len(images) > 1:
        gaps_R = images[0] - images[1]
        if np.isfinite(gaps_R).any():
            return max(float(np.sqrt(np.nanmean(gaps_R**2))), 1e-6)
    spread = float(np.nanstd(images[0])) if images and np.isfinite(images[0]).any() else 1.0
    return max(spread, 1e-6)
