"""Extrapolates every configuration's own regret over fidelity, as far as the evidence bears it.

A law moves one optimum, in few dimensions. Here each configuration has a line of its own: its
regrets on the smoothed cheap tables (surfaces.py), over the logarithm of the compute. How steep the
lines may be is asked of the evidence itself: its dearest table is predicted from the cheaper ones
with several penalties on the slope, and the penalty that predicts it best is kept. So a drift that
goes on is extrapolated, in any number of dimensions and over mixtures and categories too; one that
does not repeat is taken for noise, and the mean of the cheap tables remains.

Letters: E tables, R rows of the setting, L slopes' penalties.
"""

from collections.abc import Sequence

import numpy as np

from autollm_jax.forecasts.base import Forecast, Seen, fitted_level
from autollm_jax.forecasts.conditioning import TRIAL_NOISE, condition
from autollm_jax.forecasts.relevance import named_differences, relevant_evidence
from autollm_jax.forecasts.surfaces import CAP, Surface, place, surfaces
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting

MOST_TABLES = 8  # the most relevant ones
# Deviation of a slope, in regret over a factor e of compute: none is a mean over the tables.
SLOPES = (1e-3, 0.03, 0.1, 0.3)
UNTESTED = 0.03  # where fewer than three fidelities cannot tell
TABLE_ERROR = 0.1  # deviation of a table's regret from its configuration's line
STRANGE = 0.25  # weight of a table for each named thing (problem, backbone) it has of its own
FADING = 0.35  # a table's weight falls by e over this many factors e of compute, to the power -1
GOOD = 1.0  # the check counts rows of a lower regret


class Drift(Forecast):
    """Regrets of the smoothed cheap tables, extrapolated row by row over the log of compute.

    The mean is the lines' value at the setting. The deviation is the root mean square error of the
    check on the dearest cheap table, greater the further the setting lies beyond it. Trials
    condition both, with the nearest surface's correlation.

    >>> from autollm_jax.gym.experiments import Fidelity, make_experiment
    >>> from autollm_jax.gym.spaces import Dimension, Space
    >>> rates = tuple(2.0**n for n in range(-12, -4))
    >>> space = Space((Dimension("rate", "log-ordinal", rates),))
    >>> def made(name, parameters, best):
    ...     return make_experiment(
    ...         source="mine", task="pretraining", name=name, space=space,
    ...         fidelity=Fidelity("low", parameters, 1e9, 6e9 * parameters),
    ...         configurations=[{"rate": r} for r in rates],
    ...         outcomes=[(n - best) ** 2 for n in range(8)],
    ...         default={"rate": rates[0]}, default_origin="the first")
    >>> evidence = made("1M", 1e6, 5), made("2M", 2e6, 4), made("4M", 4e6, 3)
    >>> forecast = Drift(made("8M", 8e6, 2).setting, evidence)
    >>> int(forecast.predict().mean_R.argmin())
    2
    """

    def __init__(self, setting: Setting, evidence: Sequence[Experiment], seed: int = 0):
        super().__init__(setting, evidence, seed)
        found = surfaces(relevant_evidence(evidence, setting), setting)[:MOST_TABLES]
        rows = len(setting.cells)
        self._surface = found[0] if found else None
        if not found:
            x_RD = place(setting, setting)
            row, _ = setting.match(setting.default)
            self._mean_R = np.minimum(((x_RD - x_RD[row]) ** 2).sum(axis=1), CAP)
            self._x_RD, self._deviation_R = x_RD, np.full(rows, 0.5)
            return
        self._x_RD = found[0].scaled(setting)
        regrets_ER = np.stack([_regrets(surface, setting) for surface in found])
        leads = [surface.members[0] for surface in found]
        place_E = np.array([_compute(lead, setting) for lead in leads])
        weight_E = np.array([_weight(lead, setting, leads[0]) for lead in leads])
        slope, error = _choose_slope(regrets_ER, place_E, weight_E)
        self._mean_R = _lines(regrets_ER, place_E, weight_E, slope, 0.0)
        self._mean_R = self._mean_R - self._mean_R[np.array(setting.feasible_R, bool)].min()
        beyond = max(float(np.abs(place_E).min()), 0.0)
        self._deviation_R = np.full(rows, np.hypot(error, slope * beyond))

    def posterior(self, seen: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tried = [row for row, _ in seen]
        scores_T = self.scale.scores(np.array([loss for _, loss in seen]))
        known = self._mean_R, self._deviation_R**2, self._covariance, TRIAL_NOISE
        return *condition(*known, tried, scores_T), scores_T

    def _covariance(self, rows_T: np.ndarray) -> np.ndarray:
        scale = self._deviation_R[0] ** 2
        if self._surface is None:
            squared_TR = ((self._x_RD[rows_T, None] - self._x_RD[None]) ** 2).sum(-1)
            return scale * np.exp(-0.5 * squared_TR)
        return scale * self._surface.correlation(self._x_RD[rows_T], self._x_RD)

    def _level(self, seen: Seen, mean_R: np.ndarray) -> tuple[float, float]:
        level, unit = super()._level(seen, mean_R)
        return (fitted_level(seen, mean_R, unit, level)), unit


def _regrets(surface: Surface, setting: Setting) -> np.ndarray:
    """Return a surface's regrets at the setting's rows [R], in its own units, cut at CAP."""
    mean_R = surface.mean(surface.scaled(setting)) / surface.members[0].spread_unit
    best = mean_R[np.array(setting.feasible_R, bool)].min()
    return np.minimum(mean_R - best, CAP)


def _compute(experiment: Setting, setting: Setting) -> float:
    """Return the log of the compute relative to the setting's: parameters times tokens."""
    return float(np.nansum(experiment.fidelity.log - setting.fidelity.log))


def _weight(experiment: Setting, setting: Setting, nearest: Setting) -> float:
    """Return a table's weight: it falls with distance and with what is named differently."""
    farther = abs(_compute(experiment, setting)) - abs(_compute(nearest, setting))
    strange = named_differences(experiment, setting) - named_differences(nearest, setting)
    return float(np.exp(-FADING * max(farther, 0.0)) * STRANGE ** max(strange, 0))


def _lines(regrets_ER, place_E, weight_E, slope: float, at: float) -> np.ndarray:
    """Fit a line a row, its slope a priori of deviation `slope` around 0; evaluate it [R]."""
    x_E2 = np.stack([np.ones_like(place_E), place_E - at], axis=1)
    weighted_2E = (x_E2 * weight_E[:, None]).T / TABLE_ERROR**2
    gram_22 = weighted_2E @ x_E2 + np.diag([1e-9, slope**-2])
    return np.linalg.solve(gram_22, weighted_2E @ regrets_ER)[0]


def _choose_slope(regrets_ER, place_E, weight_E) -> tuple[float, float]:
    """Return the slopes' deviation that predicts the dearest table best, and the error of that."""
    dearest = int(place_E.argmax())
    others = np.flatnonzero(place_E < place_E[dearest] - 1e-6)
    good_R = regrets_ER[dearest] < GOOD
    if not len(others):
        spread = float(np.std(regrets_ER - regrets_ER.mean(0))) if len(place_E) > 1 else 0.3
        return UNTESTED, max(spread, 0.05)
    errors = []
    for slope in SLOPES:
        at = float(place_E[dearest])
        said_R = _lines(regrets_ER[others], place_E[others], weight_E[others], slope, at)
        gap_R = said_R - regrets_ER[dearest]
        errors.append(float(np.std(gap_R[good_R])))
    if len(set(place_E[others].round(6).tolist())) < 2:
        return UNTESTED, max(errors[SLOPES.index(UNTESTED)], 0.05)
    best = int(np.argmin(errors))
    return SLOPES[best], max(errors[best], 0.05)
