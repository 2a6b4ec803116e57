"""The agent's own forecast, averaged with what a Gaussian process over all evidence expects.

The two err differently: the own one moves single cheap landscapes and trusts them, the process
pools every table and trusts none. Their mean is better than either on changed copies of low tables,
where its weight was chosen too (docs/experiments.md). What is said of the evidence (law, effects,
the nearest experiment) stays the own forecast's.
"""

from collections.abc import Sequence

import numpy as np

from autollm_jax.agent.base_forecast import BaseForecast
from autollm_jax.baselines.base import Problem
from autollm_jax.baselines.gaussian_process import GaussianProcess
from autollm_jax.gym.environment import Trial
from autollm_jax.gym.experiments import Experiment

BUDGET = 5  # that a problem has to name; the process does not read it


class PanelForecast(BaseForecast):
    """A forecast that averages another one and the Gaussian process.

    Attributes:
      own: the forecast whose view of the evidence the prompt quotes.
      own_weight: its share; the process has the rest, where there is evidence.
    """

    def __init__(self, own: BaseForecast, evidence: Sequence[Experiment], own_weight: float):
        self.own, self.own_weight = own, own_weight if evidence else 1.0
        self.target, self.nearest, self.unit = own.target, own.nearest, own.unit
        self.law, self.centre_row, self.counterpart = own.law, own.centre_row, own.counterpart
        self._problem = Problem(own.target, tuple(evidence), BUDGET)
        self._process, self._told = None, ()
        self._scores: dict = {}

    def _expected(self, seen: Sequence[tuple[int, float]]) -> np.ndarray:
        return self.own._expected(seen)

    def expected_regrets(self, trials: Sequence[Trial]) -> np.ndarray:
        """Return the regret [R] expected to remain after trying each cell next."""
        own_R = self.own.expected_regrets(trials)
        if self.own_weight == 1.0:
            return own_R
        score_R = self._expected_scores(tuple(trials))
        least = score_R[np.isfinite(own_R)].min(initial=np.inf)
        if not np.isfinite(least):  # every cell was tried
            return own_R
        process_R = np.clip(score_R - least, 0.0, 1.0)
        open_R = np.isfinite(own_R)
        mean_R = np.full(len(own_R), np.inf)
        mean_R[open_R] = self.own_weight * own_R[open_R] + (1 - self.own_weight) * process_R[open_R]
        return mean_R

    def _expected_scores(self, trials: tuple[Trial, ...]) -> np.ndarray:
        """Ask the process, which is told of the trials one by one; answers are kept."""
        seen = tuple(self._seen(trials))
        if seen not in self._scores:
            if self._process is None or self._told != trials[: len(self._told)]:
                self._process, self._told = GaussianProcess(self._problem, 0), ()
            for trial in trials[len(self._told) :]:
                self._process.tell(trial)
            self._told = trials
            self._scores[seen] = self._process.expected_scores()
        return self._scores[seen]
