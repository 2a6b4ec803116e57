"""The forecast over few numeric dimensions: cheap landscapes, moved along a law.

The cheap landscapes nearest in fidelity are moved so that their centres lie where the law says,
give or take its error. The trials so far weigh these hypotheses by how well they explain the
differences between outcomes, and the forecast of a cell is the regret that is expected to remain
after trying it: one-step look-ahead, as in expected improvement, over transferred landscapes.
"""

import math
from collections.abc import Sequence

import numpy as np

from autollm_jax.forecasts.base import Forecast, Seen, fitted_level
from autollm_jax.forecasts.landscapes import (
    CAP,
    Landscape,
    coordinates_RD,
    fit_law,
    landscape,
    octaves,
    usable,
)
from autollm_jax.gym.environment import Trial
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting

NEAREST = 3  # cheap experiments whose shapes the forecast uses
SHIFTS = np.linspace(-2.0, 2.0, 9)  # in deviations of the law
SHIFT_WIDENING = 1.6  # chosen on Step Law low: the law's own error bars are too narrow
SCALES = (np.array([-0.6, -0.3, 0.0, 0.3, 0.6]), 0.4)  # octaves around the law's scale, deviation
SHAPE_ERROR = 0.3  # relative error of a predicted difference in regret
CELL_ERROR = 0.06  # regret of a single cell around its smooth landscape


class Shifted(Forecast):
    """A forecast over a space whose landscapes can be moved (`landscapes.is_shiftable`)."""

    def __init__(self, setting: Setting, evidence: Sequence[Experiment], seed: int = 0):
        super().__init__(setting, evidence, seed)
        self.nearest = usable(evidence, setting)
        x_RD = coordinates_RD(setting)
        if self.nearest:
            self.law = fit_law(self.nearest, setting)
            self.unit = self.law.scale
            away_R = ((x_RD - self.law.centre_D) ** 2).sum(axis=1)
            self.centre_row = int(np.where(setting.feasible_R, away_R, np.inf).argmin())
        else:
            self.unit = 1.0
        regret_HR, weight_H = self._hypotheses(x_RD)
        regret_HR = regret_HR - regret_HR.min(axis=1, keepdims=True)
        self._regret_HR = regret_HR.astype(np.float32)
        self._cut_HR = np.minimum(self._regret_HR, 1.0)
        self._log_weight_H = np.log(weight_H)

    def _hypotheses(self, x_RD):
        """Return regrets [H, R] of all cells under each hypothesis, and prior weights [H]."""
        if not self.nearest:
            return self._without_evidence(x_RD)
        distances = [float(np.abs(octaves(e, self.setting)).sum()) for e in self.nearest[:NEAREST]]
        regrets, weights = [], []
        for experiment, distance in zip(self.nearest, distances, strict=False):
            closeness = 2.0 ** (-(distance - distances[0]) / 2)
            regrets.append(self._shifted(landscape(experiment), x_RD))
            weights.append(closeness * self._shift_weights(x_RD.shape[1]))
        return np.concatenate(regrets), np.concatenate(weights)

    @staticmethod
    def _shift_weights(dimensions: int) -> np.ndarray:
        grid = np.meshgrid(*[SHIFTS] * dimensions, indexing="ij")
        return np.exp(-0.5 * sum(axis**2 for axis in grid)).ravel()

    def _shifted(self, land: Landscape, x_RD: np.ndarray) -> np.ndarray:
        """Return the landscape's regrets [S, R] of the cells, for each shift of its centre."""
        assert self.law is not None
        if any(dimension.is_continuous for dimension in self.setting.space.dimensions):
            shifts_DS = [
                centre + SHIFT_WIDENING * deviation * SHIFTS
                for centre, deviation in zip(self.law.centre_D, self.law.deviation_D, strict=True)
            ]
            away = [
                x_R - shifts_S[:, None] for x_R, shifts_S in zip(x_RD.T, shifts_DS, strict=True)
            ]
            return land.shifted(away).reshape(-1, len(x_RD))
        axes, index_RD = [], []
        for x_R, centre, deviation in zip(
            x_RD.T, self.law.centre_D, self.law.deviation_D, strict=True
        ):
            levels, index_R = np.unique(x_R, return_inverse=True)
            shifts = centre + SHIFT_WIDENING * deviation * SHIFTS
            axes.append((levels[None, :] - shifts[:, None]).ravel())
            index_RD.append(np.arange(len(SHIFTS))[:, None] * len(levels) + index_R[None, :])
        grid = land.on_grid(axes)
        if len(axes) == 1:
            return grid[index_RD[0]]
        if len(axes) == 2:
            picked = grid[index_RD[0][:, None, :], index_RD[1][None, :, :]]
        else:
            picked = grid[
                index_RD[0][:, None, None, :],
                index_RD[1][None, :, None, :],
                index_RD[2][None, None, :, :],
            ]
        return picked.reshape(-1, len(x_RD))

    def _without_evidence(self, x_RD):
        """Expect a plain bowl around the default: a quarter of the regret an octave off."""
        row, _ = self.setting.match(self.setting.default)
        spread = 1.5 * SHIFTS
        shifts = np.stack(np.meshgrid(*[spread] * x_RD.shape[1], indexing="ij"), axis=-1)
        centres = x_RD[row] + shifts.reshape(-1, 1, x_RD.shape[1])
        bowl = 0.25 * ((x_RD[None] - centres) ** 2).sum(axis=-1)
        return np.minimum(bowl, CAP), self._shift_weights(x_RD.shape[1])

    def _weights(self, seen: Seen) -> np.ndarray:
        """Weigh the hypotheses [H] by how well they explain differences between the trials."""
        log_H = self._log_weight_H
        best = min(seen, key=lambda pair: pair[1], default=None)
        if best is not None and math.isfinite(best[1]) and len(seen) > 1:
            octaves, deviation = SCALES if self.law is not None else (np.zeros(1), 1.0)
            unit = self.unit
            log_HS = log_H[:, None] - 0.5 * (octaves / deviation) ** 2
            for row, loss in dict(seen).items():
                if row == best[0]:
                    continue
                if not math.isfinite(loss):
                    short_H = np.maximum(1.2 - self._regret_HR[:, row], 0.0)
                    log_HS = log_HS - 0.5 * (short_H / 0.3)[:, None] ** 2
                    continue
                expected_H = self._regret_HR[:, row] - self._regret_HR[:, best[0]]
                observed_S = np.minimum((loss - best[1]) / (unit * 2.0**octaves), CAP)
                variance_H = 2 * CELL_ERROR**2 + (SHAPE_ERROR * expected_H) ** 2
                gap_HS = observed_S[None] - expected_H[:, None]
                log_HS = log_HS - 0.5 * gap_HS**2 / variance_H[:, None]
                log_HS = log_HS - 0.5 * np.log(variance_H)[:, None]
            top = log_HS.max()
            weight_H = np.exp(log_HS - top).sum(axis=1)
        else:
            for row, loss in seen:
                if not math.isfinite(loss):
                    short_H = np.maximum(1.2 - self._regret_HR[:, row], 0.0)
                    log_H = log_H - 0.5 * (short_H / 0.3) ** 2
            weight_H = np.exp(log_H - log_H.max())
        return weight_H / weight_H.sum()

    def posterior(self, seen: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weight_H = self._weights(seen)
        mean_R = weight_H @ self._regret_HR
        square_R = weight_H @ self._regret_HR**2
        variance_R = np.maximum(square_R - mean_R**2, 0.0) + CELL_ERROR**2
        level = fitted_level(seen, mean_R, self.unit)
        scores_T = (np.array([loss for _, loss in seen]) - level) / self.unit
        return mean_R.astype(float), np.sqrt(variance_R).astype(float), scores_T

    def _level(self, seen: Seen, mean_R: np.ndarray) -> tuple[float, float]:
        """Take the level from the trials that were ok; without any, the extrapolated one."""
        level = fitted_level(seen, mean_R, self.unit)
        return (self.scale.anchored(np.zeros(0))[0] if math.isnan(level) else level), self.unit

    def ranking(self, trials: Sequence[Trial] = ()) -> np.ndarray:
        """Return the regret [R] expected to remain after trying each row, over the hypotheses."""
        seen = self.seen(trials)
        weight_H = self._weights(seen).astype(np.float32)
        best = min(seen, key=lambda pair: pair[1], default=None)
        if best is None or not math.isfinite(best[1]):
            return weight_H @ self._cut_HR
        best_H1 = self._cut_HR[:, best[0], None]
        gain_HR = _expected_drop(self._cut_HR - best_H1, math.sqrt(2) * CELL_ERROR)
        return weight_H @ np.maximum(best_H1 - gain_HR, 0.0)

    def expected_regrets(self, trials: Sequence[Trial] = ()) -> np.ndarray:
        """Return the ranking itself, which is a regret: cut to [0, 1], inf where not open."""
        remaining_R = np.clip(self.ranking(trials), 0.0, 1.0).astype(float)
        return np.where(self.open_rows(trials), remaining_R, np.inf)


def _expected_drop(gap: np.ndarray, deviation: float) -> np.ndarray:
    """Return about E[max(0, -(gap + noise))]: exact for normal noise at gap 0 and far away."""
    return 0.5 * (np.sqrt(gap * gap + np.float32(0.637 * deviation**2)) - gap)


def step_costs(nearest: Sequence[Experiment], step: float = 1.0) -> np.ndarray:
    """Return the rise of regret [D, 2] one octave below and above the centre, mean over tables."""
    rises = []
    for experiment in nearest[:NEAREST]:
        land = landscape(experiment)
        dimensions = len(land.centre_D)
        x = np.zeros((2 * dimensions + 1, dimensions))
        for d in range(dimensions):
            x[2 * d + 1, d], x[2 * d + 2, d] = -step, step
        regret = land(x)
        rises.append((regret[1:] - regret[0]).reshape(dimensions, 2))
    return np.clip(np.mean(rises, axis=0), 0.0, 1.0)
