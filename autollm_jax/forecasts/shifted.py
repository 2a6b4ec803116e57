"""The forecast over few numeric dimensions: cheap landscapes, moved along a law.

The cheap landscapes nearest in fidelity are moved so that their centres lie where the law says,
give or take its error. The trials so far weigh these hypotheses by how well they explain the
differences between outcomes, and the forecast of a cell is the regret that is expected to remain
after trying it: one-step look-ahead, as in expected improvement, over transferred landscapes.
"""

import math
from collections.abc import Sequence

import numpy as np

from autollm_jax.forecasts.base import BaseForecast
from autollm_jax.forecasts.landscapes import (
    CAP,
    Landscape,
    coordinates_RD,
    fit_law,
    landscape,
    log_fidelity,
    nearest_first,
    usable,
)
from autollm_jax.gym.environment import Trial
from autollm_jax.gym.experiments import Experiment

NEAREST = 3  # cheap experiments whose shapes the forecast uses
SHIFTS = np.linspace(-2.0, 2.0, 9)  # in deviations of the law
SHIFT_WIDENING = 1.6  # chosen on Step Law low: the law's own error bars are too narrow
SCALES = (np.array([-0.6, -0.3, 0.0, 0.3, 0.6]), 0.4)  # octaves around the law's scale, deviation
SHAPE_ERROR = 0.3  # relative error of a predicted difference in regret
CELL_ERROR = 0.06  # regret of a single cell around its smooth landscape


class ShiftedForecast(BaseForecast):
    """A forecast over a space whose landscapes can be moved (`evidence.is_shiftable`)."""

    def __init__(self, target: Experiment, evidence: Sequence[Experiment]):
        super().__init__(target, nearest_first(usable(evidence, target), target))
        x_RD = coordinates_RD(target)
        if self.nearest:
            self.law = fit_law(self.nearest, target)
            self.unit = self.law.scale
            away_R = ((x_RD - self.law.centre_D) ** 2).sum(axis=1)
            self.centre_row = int(np.where(target.feasible_R, away_R, np.inf).argmin())
        regret_HR, weight_H = self._hypotheses(x_RD)
        regret_HR = regret_HR - regret_HR.min(axis=1, keepdims=True)
        self._regret_HR = regret_HR.astype(np.float32)
        self._cut_HR = np.minimum(self._regret_HR, 1.0)
        self._log_weight_H = np.log(weight_H)

    def _hypotheses(self, x_RD):
        """Return regrets [H, R] of all cells under each hypothesis, and prior weights [H]."""
        target = self.target
        here = log_fidelity(target.fidelity)
        distances = [float(np.abs(log_fidelity(e.fidelity) - here).sum()) for e in self.nearest]
        if not self.nearest:
            return self._without_evidence(x_RD)
        regrets, weights = [], []
        for other, distance in list(zip(self.nearest, distances, strict=True))[:NEAREST]:
            land = landscape(other)
            closeness = 2.0 ** (-(distance - distances[0]) / 2)
            regrets.append(self._shifted(land, x_RD))
            weights.append(closeness * self._shift_weights(x_RD.shape[1]))
        return np.concatenate(regrets), np.concatenate(weights)

    @staticmethod
    def _shift_weights(dimensions: int) -> np.ndarray:
        grid = np.meshgrid(*[SHIFTS] * dimensions, indexing="ij")
        return np.exp(-0.5 * sum(axis**2 for axis in grid)).ravel()

    def _shifted(self, land: Landscape, x_RD: np.ndarray) -> np.ndarray:
        """Return the landscape's regrets [S, R] of the cells, for each shift of its centre."""
        if any(dimension.is_continuous for dimension in self.target.space.dimensions):
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
        row, _ = self.target.match(self.target.default)
        spread = 1.5 * SHIFTS
        shifts = np.stack(np.meshgrid(*[spread] * x_RD.shape[1], indexing="ij"), axis=-1)
        centres = x_RD[row] + shifts.reshape(-1, 1, x_RD.shape[1])
        bowl = 0.25 * ((x_RD[None] - centres) ** 2).sum(axis=-1)
        return np.minimum(bowl, CAP), self._shift_weights(x_RD.shape[1])

    def weights(self, trials: Sequence[Trial]) -> np.ndarray:
        """Weigh the hypotheses [H] by how well they explain differences between the trials."""
        return self._weights(tuple(self._seen(trials)))

    def _weights(self, seen) -> np.ndarray:
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

    def _expected(self, seen) -> np.ndarray:
        weight_H = self._weights(seen).astype(np.float32)
        best = min(seen, key=lambda pair: pair[1], default=None)
        if best is None or not math.isfinite(best[1]):
            return weight_H @ self._cut_HR
        best_H1 = self._cut_HR[:, best[0], None]
        gain_HR = _expected_drop(self._cut_HR - best_H1, math.sqrt(2) * CELL_ERROR)
        return weight_H @ np.maximum(best_H1 - gain_HR, 0.0)


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
