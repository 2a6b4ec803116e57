"""An adviser that fails: another forecast whose expectations are made wrong on purpose.

A policy meets such advisers in training, so that it learns to doubt, and in a stress test.
"""

import numpy as np
from scipy.spatial import KDTree

from autollm_jax.forecasts.base import Forecast, Seen, draw_seed

FAILURES = ("reversed", "shifted", "noisy")
SHIFT = 0.35  # of the unit cube's side


class Failing(Forecast):
    """A forecast that expects the wrong rows to be good; it learns from trials as the right one.

    reversed  the best rows are said to be the worst
    shifted   the landscape lies elsewhere: each row is expected what another row deserves
    noisy     each row's expectation is off by as much as the rows differ

    Args:
      forecast: what the adviser would say.
      failure: one of FAILURES.
    """

    def __init__(self, forecast: Forecast, failure: str):
        super().__init__(forecast.setting, forecast.evidence, forecast.seed)
        self.forecast, self.failure = forecast, failure
        self.nearest, self.unit = forecast.nearest, forecast.unit
        random = np.random.default_rng(draw_seed(self.setting, self.seed))
        R, D = self.units_RD.shape
        self._noise_R = random.standard_normal(R)
        shift_D = SHIFT * random.choice([-1.0, 1.0], D)
        # Where a shifted point leaves the cube it comes back from the border, as light would.
        points_RD = 1.0 - np.abs(1.0 - np.abs(self.units_RD + shift_D))
        self._elsewhere_R = KDTree(self.units_RD).query(points_RD)[1]

    def over(self, setting) -> "Failing":
        return Failing(self.forecast.over(setting), self.failure)

    def posterior(self, seen: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        mean_R, deviation_R, scores_T = self.forecast._posterior(seen)
        if self.failure == "reversed":
            wrong_R = mean_R.max() + mean_R.min() - mean_R
        elif self.failure == "shifted":
            wrong_R = mean_R[self._elsewhere_R]
        else:
            wrong_R = mean_R + mean_R.std() * self._noise_R
        return wrong_R, deviation_R, scores_T
