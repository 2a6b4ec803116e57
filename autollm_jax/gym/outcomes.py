"""Outcomes of an experiment's runs: statuses, losses, regrets and the noise floor."""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

# One unit of regret is never smaller, so that a division by it is safe.
LEAST_UNIT = 1e-12


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a run is judged by: the outcome's name, and whether lower values are better."""

    metric: str = "loss"
    minimize: bool = True

    @property
    def sign(self) -> float:
        """The factor from an outcome to a loss: 1 where lower is better, else -1."""
        return 1.0 if self.minimize else -1.0


class Measured(NamedTuple):
    """One measured row: outcome in the objective's units, status, and both regrets."""

    outcome: float
    status: str
    regret: float
    regret_minmax: float


def middling(loss_R: np.ndarray, weights_R: np.ndarray) -> float:
    """Return the weighted median of losses; the worst finite one where the median is infinite.

    >>> middling(np.array([1.0, 2.0, 5.0]), np.ones(3)), middling(np.array([1.0, 2.0, 5.0]),
    ...     np.array([1.0, 1.0, 4.0]))
    (2.0, 5.0)

    Args:
      loss_R: lower is better; inf where a run failed, but not everywhere.
      weights_R: positive.
    """
    if (weights_R == weights_R[0]).all():
        loss = np.median(loss_R)
    else:
        order = np.argsort(loss_R, kind="stable")
        below_R = np.cumsum(weights_R[order])
        loss = loss_R[order][np.searchsorted(below_R, below_R[-1] / 2)]
    return float(loss if np.isfinite(loss) else loss_R[np.isfinite(loss_R)].max())


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Outcomes:
    """The outcomes of an experiment, one entry per configuration (R rows).

    Attributes:
      values_R: the objective in its own units, nan where none was measured.
      status_R: `ok`, `diverged` or `infeasible`.
      seconds_R: the run's duration, nan where not recorded.
      squares_R: the sum of squared deviations of repeated seeds from the configuration's mean.
      freedom_R: the degrees of freedom of those squares: the number of seeds less one.
      runs_R: the number of runs that were pooled.
      objective: the outcome's name and direction.
    """

    values_R: np.ndarray
    status_R: np.ndarray
    seconds_R: np.ndarray
    squares_R: np.ndarray
    freedom_R: np.ndarray
    runs_R: np.ndarray
    objective: Objective

    def __post_init__(self):
        for array in (self.values_R, self.status_R, self.seconds_R):
            array.setflags(write=False)

    @property
    def sign(self) -> float:
        """The factor from an outcome to a loss (see `Objective`)."""
        return self.objective.sign

    @functools.cached_property
    def ok_R(self) -> np.ndarray:
        """Whether each row ran to its end with a finite outcome [R]."""
        return (self.status_R == "ok") & np.isfinite(self.values_R)

    @functools.cached_property
    def losses_R(self) -> np.ndarray:
        """The outcomes with lower values better [R]; +inf where a run is not ok."""
        return np.where(self.ok_R, self.sign * self.values_R, np.inf)

    @functools.cached_property
    def best_row(self) -> int:
        """The row of the best ok outcome, the first of equals."""
        return int(np.argmin(self.losses_R))

    @property
    def optimum(self) -> float:
        """The best ok outcome, y*."""
        return float(self.values_R[self.best_row])

    @functools.cached_property
    def median(self) -> float:
        """The median outcome of what could be run, m; the worst ok one where most runs diverged."""
        losses = self.losses_R[self.status_R != "infeasible"]
        return self.sign * middling(losses, np.ones(len(losses)))

    def spread_unit(self, weights_R: np.ndarray) -> float:
        """Return |m - y*| with m the weighted median of what could be run, at least `LEAST_UNIT`.

        It is for learning from a table, not for scoring on it. Where optimisers chose the rows,
        the median row is one of a crowd near the optimum. In units of it all the rest of the space
        is out of scale, and looks alike.

        Args:
          weights_R: how much each row counts in the space (`Cells.weights_R`); with equal weights
            the return value is `unit`.
        """
        ran_R = self.status_R != "infeasible"
        middle = middling(self.losses_R[ran_R], weights_R[ran_R])
        return max(middle - self.sign * self.optimum, LEAST_UNIT)

    @property
    def unit(self) -> float:
        """One unit of regret in the objective's units: |m - y*|, at least `LEAST_UNIT`."""
        return max(abs(self.median - self.optimum), LEAST_UNIT)

    @functools.cached_property
    def noise(self) -> float:
        """The noise floor: standard deviation over repeated seeds, pooled; nan without repeats.

        Only configurations up to the median count: regrets are told apart there, and runs far from
        the optimum are noisier.
        """
        good_R = self.losses_R <= self.sign * self.median
        freedom = self.freedom_R[good_R].sum()
        return math.sqrt(self.squares_R[good_R].sum() / freedom) if freedom else math.nan

    @property
    def noise_regret(self) -> float:
        """The noise floor in units of regret; nan without repeats or where all runs are alike."""
        return self.noise / self.unit if self.median != self.optimum else math.nan

    @functools.cached_property
    def worst(self) -> float:
        """The worst finite outcome, diverged runs included: the far end of min-max regret."""
        counted_R = np.isfinite(self.values_R) & (self.status_R != "infeasible")
        return float(self.sign * (self.sign * self.values_R[counted_R]).max())

    def _scaled(self, outcome: float, end: float) -> float:
        gap, scale = self.sign * (outcome - self.optimum), self.sign * (end - self.optimum)
        if scale <= 0:
            return float(gap > 0)
        return min(max(gap / scale, 0.0), 1.0)

    def regret(self, outcome: float, status: str = "ok") -> float:
        """Score an outcome: clip((y - y*) / (m - y*), 0, 1); 1 unless the status is ok."""
        if status != "ok" or not math.isfinite(outcome):
            return 1.0
        return self._scaled(outcome, self.median)

    def regret_minmax(self, outcome: float, status: str = "ok") -> float:
        """Score an outcome between the best and the worst finite one (as HPO-B does)."""
        if status not in ("ok", "diverged") or not math.isfinite(outcome):
            return 1.0
        return self._scaled(outcome, self.worst)

    @functools.cached_property
    def regrets_R(self) -> np.ndarray:
        """The regret of each row [R]."""
        pairs = zip(self.values_R.tolist(), self.status_R.tolist(), strict=True)
        regrets_R = np.array([self.regret(outcome, status) for outcome, status in pairs])
        regrets_R.setflags(write=False)
        return regrets_R

    @functools.cached_property
    def uncut_regrets_R(self) -> np.ndarray:
        """(y - y*) / (m - y*) of each row [R], not cut at 1; +inf where a run is not ok."""
        return (self.losses_R - self.sign * self.optimum) / self.unit

    def measured(self, row: int) -> Measured:
        """Return one row."""
        outcome, status = float(self.values_R[row]), str(self.status_R[row])
        return Measured(
            outcome, status, self.regret(outcome, status), self.regret_minmax(outcome, status)
        )

    def take(self, rows: np.ndarray) -> "Outcomes":
        """Return the outcomes of some rows, in their order."""
        columns = [f.name for f in dataclasses.fields(self) if f.name.endswith("_R")]
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in columns})

    def with_values(self, values_R: np.ndarray) -> "Outcomes":
        """Return these outcomes with other values [R]."""
        return dataclasses.replace(self, values_R=values_R)
