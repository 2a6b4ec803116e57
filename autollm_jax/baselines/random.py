"""Random search."""

import numpy as np

from autollm_jax.baselines.base import Candidates, Problem
from autollm_jax.forecasts.base import draw_seed


class RandomSearch:
    """Draw measured cells uniformly, without replacement."""

    def __init__(self, problem: Problem, seed: int):
        self._candidates = Candidates(problem.setting)
        self._rng = np.random.default_rng(draw_seed(problem.setting, seed))

    def ask(self) -> dict:
        return self._candidates.take(int(self._rng.choice(self._candidates.untried)))

    def tell(self, trial) -> None:
        self._candidates.mark(trial)
