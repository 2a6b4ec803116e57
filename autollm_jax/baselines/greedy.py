"""Greedy baselines: each tries the row that its forecast ranks first."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from autollm_jax.baselines.base import Candidates, Problem
from autollm_jax.forecasts.advisers import FORECASTS, counsel
from autollm_jax.forecasts.base import Forecast
from autollm_jax.gym.environment import Trial
from autollm_jax.gym.experiments import Experiment


class Greedy:
    """Try the untried row of the lowest `Forecast.ranking`.

    Without evidence the first trial is the forecast's `start_row`: the default configuration,
    unless the forecast learned a better one.

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
    >>> method = BASELINES["nearest_experiment"](Problem(dear.setting, (cheap,), budget=1), seed=0)
    >>> method.ask()
    {'rate': 0.001}

    Args:
      make_forecast: makes the forecast from (setting, evidence, seed).
      problem: the setting, its evidence and the budget.
      seed: of the forecast.
    """

    def __init__(self, make_forecast: Callable[..., Forecast], problem: Problem, seed: int):
        self._candidates = Candidates(problem.setting)
        self.forecast = make_forecast(problem.setting, problem.evidence, seed)
        self._trials: list[Trial] = []

    def ask(self) -> dict:
        """Return the next configuration to try."""
        if not self.forecast.evidence and not self._trials:
            return self._candidates.take(self.forecast.start_row())
        return self._candidates.take(self._candidates.lowest(self.forecast.ranking(self._trials)))

    def tell(self, trial: Trial) -> None:
        """Learn from the trial of the last configuration."""
        if self._candidates.mark(trial) is not None:
            self._trials.append(trial)


def greedy(name: str) -> Callable[[Problem, int], Greedy]:
    """Return the maker of the greedy baseline of a forecast, by the forecast's name."""
    return functools.partial(_greedy, name)


def _greedy(name: str, problem: Problem, seed: int) -> Greedy:
    if problem.failing and name == "panel":
        return Greedy(functools.partial(counsel, failing=problem.failing), problem, seed)
    return Greedy(FORECASTS[name], problem, seed)


class GreedyFSBO(Greedy):
    """The greedy baseline of the meta-learned forecast (see forecasts/fsbo.py)."""

    def __init__(self, problem: Problem, seed: int, learned: dict):
        from autollm_jax.forecasts.fsbo import FSBO

        def make_forecast(setting, evidence, seed):
            return FSBO(setting, evidence, seed, learned=learned)

        super().__init__(make_forecast, problem, seed)

    @classmethod
    def learn(
        cls, training: Sequence[Experiment], seed: int, progress: bool, share: float = 1.0
    ) -> dict[str, np.ndarray]:
        """Learn the surrogates of all search spaces (see `MetaLearned.learn`)."""
        from autollm_jax.forecasts.fsbo import FSBO

        return FSBO.learn(training, seed, progress, share)
