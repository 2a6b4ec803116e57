"""The default configuration first, then random search."""

from autollm_jax.baselines.base import Problem
from autollm_jax.baselines.random import RandomSearch


class DefaultFirst(RandomSearch):
    """Try the experiment's default configuration, then draw as random search does."""

    def __init__(self, problem: Problem, seed: int):
        super().__init__(problem, seed)
        self._default = problem.setting.default

    def ask(self) -> dict:
        if self._default is None:
            return super().ask()
        row, self._default = self._candidates.row_of(self._default), None
        return self._candidates.take(row)
