"""The default configuration first, then random search."""

from autollm_jax.baselines.base import Problem
from autollm_jax.baselines.random import RandomSearch


class DefaultFirst(RandomSearch):
    """Try the setting's default configuration first, then draw as `RandomSearch` does.

    >>> from autollm_jax.baselines import BASELINES, Problem
    >>> from autollm_jax.gym.experiments import Fidelity, make_experiment
    >>> from autollm_jax.gym.spaces import Dimension, Space
    >>> space = Space((Dimension("rate", "log-ordinal", (1e-4, 1e-3, 1e-2)),))
    >>> rates = [{"rate": 1e-4}, {"rate": 1e-3}, {"rate": 1e-2}]
    >>> def made(name, parameters, losses):
    ...     return make_experiment(
    ...         source="mine", task="pretraining", name=name, space=space,
    ...         fidelity=Fidelity("low", parameters, 1e9, 6e9 * parameters),
    ...         configurations=rates, outcomes=losses, default=rates[0],
    ...         default_origin="the first")
    >>> cheap, dear = made("1M", 1e6, [3, 2, 4]), made("2M", 2e6, [2, 1, 3])
    >>> method = BASELINES["default"](Problem(dear.setting, (cheap,), budget=1), seed=0)
    >>> method.ask()
    {'rate': 0.0001}

    Args:
      problem: the setting and the budget; no evidence is read.
      seed: of the draws.
    """

    def __init__(self, problem: Problem, seed: int):
        super().__init__(problem, seed)
        self._default = problem.setting.default

    def ask(self) -> dict:
        if self._default is None:
            return super().ask()
        row, self._default = self._candidates.row_of(self._default), None
        return self._candidates.take(row)
