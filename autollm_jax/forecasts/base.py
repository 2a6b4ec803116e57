"""What every forecast has: the target's open side, its trials, and which cells may be tried."""

import abc
from collections.abc import Iterator, Sequence

import numpy as np

from autollm_jax.forecasts import coordinates
from autollm_jax.gym.environment import Trial
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting


class BaseForecast(abc.ABC):
    """What the evidence, and trials so far, let one expect of each measured cell of the target.

    It reads the target's open side (its cells) and its trials, never an outcome that was not tried.

    Attributes:
      target: the question.
      nearest: the usable evidence, most relevant first.
      law: where its optimum should lie; None without evidence, or where no law moves landscapes.
      centre_row: the measured cell nearest to the law's prediction (None without a law).
      counterpart: the feasible cell most like the best of the most relevant cheap experiment, or
        like the default configuration without evidence.
      unit: one unit of regret there (median - optimum), in the objective's units, as expected.
    """

    law = None
    centre_row: int | None = None

    def __init__(self, target: Setting, nearest: Sequence[Experiment]):
        self.target = target
        self.nearest = tuple(nearest)
        self.unit = 1.0
        self.counterpart = self._counterpart()

    def _counterpart(self) -> int:
        space, config, origin = self.target.space, self.target.default, self.target.space
        if self.nearest:
            origin = self.nearest[0].space
            config = self.nearest[0].configurations[self.nearest[0].outcomes.best_row]
        wanted_D = coordinates.project([config], origin, space, self.target.default)[0]
        x_RD = coordinates.project(self.target.configurations, space, space)
        away_R = ((x_RD - wanted_D) ** 2).sum(axis=1)
        return int(np.where(self.target.feasible_R, away_R, np.inf).argmin())

    def row_of(self, trial: Trial) -> int | None:
        """Return the target's row that answered a trial, None for an invalid one."""
        return trial.row

    def expected_regrets(self, trials: Sequence[Trial]) -> np.ndarray:
        """Return the regret [R] expected to remain after trying each cell next.

        It is inf where a cell was tried, or lies over the limit.
        """
        seen = tuple(self._seen(trials))
        expected_R = np.clip(self._expected(seen), 0.0, 1.0).astype(float)
        expected_R[~np.asarray(self.target.feasible_R)] = np.inf
        for row, _ in seen:
            expected_R[row] = np.inf
        return expected_R

    @abc.abstractmethod
    def _expected(self, seen: Sequence[tuple[int, float]]) -> np.ndarray:
        """Forecast all cells [R] from the tried rows and their losses."""

    def _seen(self, trials: Sequence[Trial]) -> Iterator[tuple[int, float]]:
        """Yield the tried rows and their losses, inf where a run is not ok."""
        for trial in trials:
            if trial.row is not None:
                yield trial.row, trial.loss(self.target)
