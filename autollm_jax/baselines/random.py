"""Random search."""

import numpy as np

from autollm_jax.baselines.base import Candidates, Problem
from autollm_jax.forecasts.base import draw_seed


class RandomSearch:
    """Draw feasible measured configurations uniformly, without replacement.

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
    >>> method = BASELINES["random"](Problem(dear.setting, (cheap,), budget=3), seed=0)
    >>> sorted(method.ask()["rate"] for _ in range(3))
    [0.0001, 0.001, 0.01]

    Args:
      problem: the setting and the budget; random search reads no evidence.
      seed: of the draws.
    """

    def __init__(self, problem: Problem, seed: int):
        self._candidates = Candidates(problem.setting)
        self._rng = np.random.default_rng(draw_seed(problem.setting, seed))

    def ask(self) -> dict:
        return self._candidates.take(int(self._rng.choice(self._candidates.untried)))

    def tell(self, trial) -> None:
        self._candidates.mark(trial)
