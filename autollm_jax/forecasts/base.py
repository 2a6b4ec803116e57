"""The one interface of all forecasts: (setting, evidence, trials) to a mean and a deviation.

A forecast is made once for a setting and its evidence. All its methods are functions of the trials:
it keeps no state of an episode, so that one forecast serves any number of episodes. It reads the
setting, the outcomes of the evidence and the trials, and never an outcome that was not tried.
"""

import abc
import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from autollm_jax.errors import UserError
from autollm_jax.forecasts import coordinates
from autollm_jax.forecasts.acquisition import expected_best
from autollm_jax.forecasts.gathering import TargetScale
from autollm_jax.forecasts.landscapes import Law
from autollm_jax.forecasts.relevance import by_relevance
from autollm_jax.gym.cells import Cells
from autollm_jax.gym.environment import Trial
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting

# What a forecast knows of a trial: the row that answered, and its loss (inf where it failed).
Seen = tuple[tuple[int, float], ...]

# Share of a row's own expected regret in the cost of trying it next (docs/experiments.md, 47).
TASTE = 0.05


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What is expected of configurations, in units of regret.

    Attributes:
      mean_R: the expected (outcome - optimum) / (median - optimum) [R]. 0 is the best outcome that
        the evidence lets one expect, so that less than 0 may occur. Forecasts learn from regrets
        that are cut at about 1: far from the optimum a mean says only that a row is bad.
      deviation_R: the standard deviation of that [R].
      level: the loss (lower is better) that stands for 0; nan where nothing tells it.
      unit: one unit of regret, in the objective's units.
      sign: 1 where a lower outcome is better, else -1.
    """

    mean_R: np.ndarray
    deviation_R: np.ndarray
    level: float
    unit: float
    sign: float

    def outcomes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and deviation [R] in the objective's units; means are nan without a level."""
        mean_R = self.sign * (self.level + self.unit * self.mean_R)
        return mean_R, self.unit * self.deviation_R

    def take(self, rows: np.ndarray) -> "Prediction":
        """Return the prediction of some rows, in their order."""
        return dataclasses.replace(
            self, mean_R=self.mean_R[rows], deviation_R=self.deviation_R[rows]
        )


class Forecast(abc.ABC):
    """What the evidence and the trials let one expect of a setting's configurations.

    A kind of forecast says how scores are distributed (`posterior`). It may also say how cells are
    ranked (`ranking`); by default that is the expected improvement.

    Attributes:
      setting: the question.
      evidence: experiments with their outcomes.
      seed: of draws, where the forecast draws.
      nearest: the evidence that it can use, the most relevant experiment first.
      law: where its optimum should lie; None where no law moves landscapes.
      centre_row: the feasible row nearest to the law's optimum; None without a law.
      unit: one unit of regret (median - optimum) as expected, in the objective's units.
    """

    law: Law | None = None
    centre_row: int | None = None
    nearest: tuple[Experiment, ...]
    unit: float

    def __init__(self, setting: Setting, evidence: Sequence[Experiment], seed: int = 0):
        self.setting = setting
        self.evidence = tuple(evidence)
        self.seed = seed
        self.nearest = by_relevance(evidence, setting)
        self.scale = TargetScale(setting, self.evidence)
        self.unit = self.scale.unit
        self._posteriors: dict[Seen, tuple] = {}

    @abc.abstractmethod
    def posterior(self, seen: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the rows' score, given tried rows and their losses.

        A score is a regret, up to a constant that all rows share.

        Returns:
          Mean [R], deviation [R], and the scores [T] that the T trials had on the same scale.
        """

    def predict(self, trials: Sequence[Trial] = ()) -> Prediction:
        """Predict all configurations of the setting, in units of regret."""
        seen = self.seen(trials)
        mean_R, deviation_R, _ = self._posterior(seen)
        level, unit = self._level(seen, mean_R)
        return Prediction(mean_R, deviation_R, level, unit, self.setting.objective.sign)

    def scored(self, trials: Sequence[Trial] = ()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return mean and deviation [R] of the rows' scores, and the trials' scores [T]."""
        return self._posterior(self.seen(trials))

    def predict_at(
        self,
        configurations: Sequence[Mapping],
        trials: Sequence[Trial] = (),
        parameters: Sequence[float] | None = None,
    ) -> Prediction:
        """Predict any N configurations of the setting's space, in units of regret.

        Args:
          configurations: any of the space, run or not.
          trials: those made so far on this setting.
          parameters: of each configuration; needed where the setting knows those of its own and
            one of these is not among them.

        Raises:
          InvalidConfiguration: a configuration is not in the space.
          UserError: the parameters are needed and missing.
        """
        setting, row_N = including(self.setting, configurations, parameters)
        same = len(setting.cells) == len(self.setting.cells)
        forecast = self if same else self.over(setting)
        return forecast.predict(trials).take(row_N)

    def over(self, setting: Setting) -> "Forecast":
        """Make the same forecast of another setting."""
        return type(self)(setting, self.evidence, self.seed)

    def ranking(self, trials: Sequence[Trial] = ()) -> np.ndarray:
        """Return the numbers [R] whose least is the row to try next, tried rows among them.

        By default the mean before any trial, then the expected improvement with its sign changed.
        """
        mean_R, deviation_R, score_T = self._posterior(self.seen(trials))
        return expected_best(mean_R, deviation_R, score_T)

    def expected_regrets(self, trials: Sequence[Trial] = ()) -> np.ndarray:
        """Return the regret [R] expected to remain after trying each row next.

        It is relative to the best open row, cut at 1, and inf where a row was tried or is not
        feasible.
        """
        rank_R, open_R = self.ranking(trials), self.open_rows(trials)
        least = rank_R[open_R].min(initial=np.inf)
        return np.where(open_R, np.clip(rank_R - least, 0.0, 1.0), np.inf)

    def costs(self, trials: Sequence[Trial] = ()) -> np.ndarray:
        """Return `expected_regrets` [R] and a share of the regret that the row itself is to have.

        Where trials have left little to gain, every row's expected remaining regret is alike, and
        the least one is of the least known row. The share prefers a row that is good itself.
        """
        mean_R, open_R = self.scored(trials)[0], self.open_rows(trials)
        least = mean_R[open_R].min(initial=np.inf)
        return self.expected_regrets(trials) + TASTE * np.clip(mean_R - least, 0.0, 1.0)

    def open_rows(self, trials: Sequence[Trial]) -> np.ndarray:
        """Tell which rows [R] are feasible and untried."""
        open_R = np.array(self.setting.feasible_R, bool)
        open_R[[row for row, _ in self.seen(trials)]] = False
        return open_R

    def seen(self, trials: Sequence[Trial]) -> Seen:
        """Return the tried rows and their losses, inf where a run failed; no invalid trials."""
        pairs = ((trial.row, trial.loss(self.setting)) for trial in trials)
        return tuple((row, loss) for row, loss in pairs if row is not None)

    def start_row(self) -> int:
        """Return the feasible row to try where neither evidence nor trial tells rows apart."""
        space, feasible_R = self.setting.space, self.setting.feasible_R
        return nearest_feasible(
            coordinates.project([self.setting.default], space, space)[0], self.units_RD, feasible_R
        )

    @functools.cached_property
    def units_RD(self) -> np.ndarray:
        """The rows' coordinates on the setting's own scale [R, D'] (see coordinates.py)."""
        return coordinates.project(
            self.setting.configurations, self.setting.space, self.setting.space
        )

    @functools.cached_property
    def counterpart(self) -> int:
        """The feasible row most like the best one of the most relevant experiment.

        Without evidence it is the row most like the default.
        """
        if not self.nearest:
            return self.start_row()
        lead, setting = self.nearest[0], self.setting
        best = lead.configurations[lead.outcomes.best_row]
        unit_D = coordinates.project([best], lead.space, setting.space, setting.default)[0]
        return nearest_feasible(unit_D, self.units_RD, setting.feasible_R)

    def _posterior(self, seen: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if seen not in self._posteriors:
            self._posteriors[seen] = self.posterior(seen)
        return self._posteriors[seen]

    def _level(self, seen: Seen, mean_R: np.ndarray) -> tuple[float, float]:
        """Return the loss of score 0 and the unit of regret, for scores on `scale`."""
        del mean_R
        return self.scale.anchored(np.array([loss for _, loss in seen]))


def nearest_feasible(unit_D: np.ndarray, units_RD: np.ndarray, feasible_R: np.ndarray) -> int:
    """Return the feasible row nearest to a point, the first of equals."""
    rows = np.flatnonzero(feasible_R)
    return int(rows[np.argmin(((units_RD[rows] - unit_D) ** 2).sum(-1))])


def fitted_level(seen: Seen, mean_R: np.ndarray, unit: float, otherwise: float = math.nan) -> float:
    """Return the level at which the predicted means agree best with the trials.

    Where no trial has an outcome, it is `otherwise`.
    """
    gaps = [loss - unit * mean_R[row] for row, loss in seen if math.isfinite(loss)]
    return float(np.mean(gaps)) if gaps else otherwise


def including(
    setting: Setting, configurations: Sequence[Mapping], parameters: Sequence[float] | None = None
) -> tuple[Setting, np.ndarray]:
    """Add configurations to those of a setting, after its own.

    Returns:
      The setting, and the row of each configuration [N].

    Raises:
      InvalidConfiguration: a configuration is not in the space.
      UserError: the parameters of a new configuration are needed and missing.
    """
    added = [setting.space.validate(config) for config in configurations]
    cells, row_M = Cells.pool(setting.space, [*setting.configurations, *added])
    row_N, known = row_M[len(setting.cells) :], setting.parameters_R
    if known is not None and len(cells) > len(setting.cells):
        if parameters is None or len(parameters) != len(added):
            raise UserError(
                f"{setting.id}: `parameters` has to give one number for each of the "
                f"{len(added)} configurations, since one of them is not among the setting's own"
            )
        sizes_R = np.zeros(len(cells))
        sizes_R[row_N] = parameters
        sizes_R[: len(known)] = known
        known = sizes_R
    return dataclasses.replace(setting, cells=cells, parameters_R=known), row_N


def draw_seed(setting: Setting, seed: int) -> int:
    """Return a seed that differs between settings, whose draws would else go together."""
    own = zlib.crc32(setting.id.encode())
    return int(np.random.SeedSequence([seed, own]).generate_state(1)[0])
