"""The measured side of an experiment: outcomes and regret, and the seal on what is held out."""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np


class HeldOutError(RuntimeError):
    """Somebody read a held-out experiment's outcomes outside `exec_config`: a bug, never caught."""


class Measured(NamedTuple):
    """What one measured row says: outcome in the objective's units, status, and both regrets."""

    outcome: float
    status: str
    regret: float
    regret_minmax: float


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Outcomes:
    """The measured side of an experiment, one entry per configuration (R).

    Attributes:
      outcomes_R: the objective in its own units, nan where none was measured.
      status_R: `ok`, `diverged` or `infeasible`.
      seconds_R: duration, nan where not recorded.
      squares_R, freedom_R: over a configuration's repeated seeds, the squared deviations from their
        mean and one less than their number.
      minimize: whether lower outcomes are better.
    """

    outcomes_R: np.ndarray
    status_R: np.ndarray
    seconds_R: np.ndarray
    squares_R: np.ndarray
    freedom_R: np.ndarray
    minimize: bool

    def __post_init__(self):
        for array in (self.outcomes_R, self.status_R, self.seconds_R):
            array.setflags(write=False)

    @property
    def _sign(self) -> float:
        return 1.0 if self.minimize else -1.0

    @functools.cached_property
    def _losses_R(self) -> np.ndarray:
        """Lower is better; +inf where a run is not ok."""
        ok_R = (self.status_R == "ok") & np.isfinite(self.outcomes_R)
        return np.where(ok_R, self._sign * self.outcomes_R, np.inf)

    @functools.cached_property
    def best_row(self) -> int:
        return int(np.argmin(self._losses_R))

    @property
    def optimum(self) -> float:
        return float(self.outcomes_R[self.best_row])

    @functools.cached_property
    def median(self) -> float:
        """The middling outcome of what could be run; the worst ok one where most runs diverged."""
        losses = self._losses_R[self.status_R != "infeasible"]
        loss = np.median(losses)
        if not np.isfinite(loss):
            loss = losses[np.isfinite(losses)].max()
        return float(self._sign * loss)

    @functools.cached_property
    def noise(self) -> float:
        """The noise floor: standard deviation over repeated seeds, pooled; nan without repeats.

        Of the configurations up to the median alone: regrets are told apart there, and runs far
        from the optimum are noisier.
        """
        good_R = self._losses_R <= self._sign * self.median
        freedom = self.freedom_R[good_R].sum()
        return math.sqrt(self.squares_R[good_R].sum() / freedom) if freedom else math.nan

    @functools.cached_property
    def worst(self) -> float:
        """The worst finite outcome, diverged runs' included: min-max regret's other end."""
        counted_R = np.isfinite(self.outcomes_R) & (self.status_R != "infeasible")
        return float(self._sign * (self._sign * self.outcomes_R[counted_R]).max())

    def _scaled(self, outcome: float, end: float) -> float:
        gap, scale = self._sign * (outcome - self.optimum), self._sign * (end - self.optimum)
        if scale <= 0:
            return float(gap > 0)
        return min(max(gap / scale, 0.0), 1.0)

    def regret(self, outcome: float, status: str) -> float:
        if status != "ok" or not math.isfinite(outcome):
            return 1.0
        return self._scaled(outcome, self.median)

    def regret_minmax(self, outcome: float, status: str) -> float:
        if status not in ("ok", "diverged") or not math.isfinite(outcome):
            return 1.0
        return self._scaled(outcome, self.worst)

    @functools.cached_property
    def regrets_R(self) -> np.ndarray:
        pairs = zip(self.outcomes_R.tolist(), self.status_R.tolist(), strict=True)
        regrets_R = np.array([self.regret(outcome, status) for outcome, status in pairs])
        regrets_R.setflags(write=False)
        return regrets_R

    def measured(self, row: int) -> Measured:
        outcome, status = float(self.outcomes_R[row]), str(self.status_R[row])
        if math.isnan(outcome):
            outcome = math.nan  # one object, so that two trials without an outcome compare equal
        return Measured(
            outcome, status, self.regret(outcome, status), self.regret_minmax(outcome, status)
        )


class SealedOutcomes:
    """Outcomes that nobody may read: any attribute raises HeldOutError, on copies as well."""

    __slots__ = ("_inside", "_name")

    def __init__(self, inside: Outcomes, name: str):
        self._inside = inside
        self._name = name

    def __getattr__(self, attribute: str):
        raise HeldOutError(
            f"{self._name} is held out: `{attribute}` may not be read, outcomes come from trials"
        )

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce_ex__(self, protocol):
        # A pickle would carry the outcomes in the clear.
        raise HeldOutError(f"{self._name} is held out: it cannot be pickled")

    def __repr__(self):
        return "<sealed>"
