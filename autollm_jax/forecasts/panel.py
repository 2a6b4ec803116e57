"""The mean of what the agent's own forecast and some surrogates over all evidence expect.

They err differently: the own forecast moves single cheap landscapes and trusts them; a Gaussian
process and boosted trees pool every table and trust none. Equal weights, because fitted ones are no
better than the noise they are fitted on (Bates and Granger, 1969; Stock and Watson, 2004; and
docs/experiments.md). What is said of the evidence (law, effects, the nearest experiment) stays the
own forecast's.
"""

from collections.abc import Sequence

import numpy as np

from autollm_jax.baselines.base import Problem
from autollm_jax.forecasts.base import BaseForecast
from autollm_jax.forecasts.boosted_trees import BoostedTrees
from autollm_jax.forecasts.gaussian_process import GaussianProcess
from autollm_jax.gym.environment import Trial
from autollm_jax.gym.experiments import Experiment

OWN = "own"
SURROGATES = {"gaussian_process": GaussianProcess, "boosted_trees": BoostedTrees}
BUDGET = 5  # that a problem has to name; surrogates do not read it


class PanelForecast(BaseForecast):
    """A forecast that averages its members'.

    Attributes:
      own: the forecast whose view of the evidence the prompt quotes.
      members: who is averaged: `own`, and names of surrogates; `own` alone without evidence.
    """

    def __init__(self, own: BaseForecast, evidence: Sequence[Experiment], members: Sequence[str]):
        self.own, self.members = own, tuple(members) if evidence else (OWN,)
        self.target, self.nearest, self.unit = own.target, own.nearest, own.unit
        self.law, self.centre_row, self.counterpart = own.law, own.centre_row, own.counterpart
        problem = Problem(own.target, tuple(evidence), BUDGET)
        self._surrogates = {
            name: _Surrogate(SURROGATES[name], problem) for name in self.members if name != OWN
        }

    def _expected(self, seen: Sequence[tuple[int, float]]) -> np.ndarray:
        return self.own._expected(seen)

    def expected_regrets(self, trials: Sequence[Trial]) -> np.ndarray:
        """Return the regret [R] expected to remain after trying each cell next."""
        own_R = self.own.expected_regrets(trials)
        open_R = np.isfinite(own_R)
        seen = tuple(self._seen(trials))
        views = []
        for name in self.members:
            if name == OWN:
                views.append(own_R[open_R])
                continue
            score_R = self._surrogates[name].expected_scores(tuple(trials), seen)[open_R]
            views.append(np.clip(score_R - score_R.min(initial=np.inf), 0.0, 1.0))
        mean_R = np.full(len(own_R), np.inf)
        mean_R[open_R] = np.mean(views, axis=0)
        return mean_R


class _Surrogate:
    """A baseline that is told of trials one by one, and whose answers are kept."""

    def __init__(self, method: type, problem: Problem):
        self._method, self._problem = method, problem
        self._asked, self._told = None, ()
        self._scores: dict = {}

    def expected_scores(self, trials: tuple[Trial, ...], seen: tuple) -> np.ndarray:
        """Return the scores [R] expected after each next trial, given trials and what they saw."""
        if seen not in self._scores:
            if self._asked is None or self._told != trials[: len(self._told)]:
                self._asked, self._told = self._method(self._problem, 0), ()
            for trial in trials[len(self._told) :]:
                self._asked.tell(trial)
            self._told = trials
            self._scores[seen] = self._asked.expected_scores()
        return self._scores[seen]
