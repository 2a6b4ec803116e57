"""The forecast over mixtures, architectures and many dimensions: cheap surfaces plus a difference.

    1. mean: the cheap surfaces of the target's objective, the nearest weighing most; a
       configuration that was itself run cheaply keeps a part of what set it apart there.
    2. covariance: what the nearest surface leaves open, plus a Gaussian process for how the target
       differs from it, plus what each configuration has of its own.
    3. draws of the target's whole landscape from that; the trials so far condition them by
       Matheron's rule (Wilson et al., arXiv 2011.04026), up to the unknown level.
    4. the forecast of a cell is the regret that remains after trying it, mean over the draws.

Of more than CELLS cells, those of the lowest mean are drawn: the others would gain nothing, and are
taken to teach nothing where they are tried.
"""

import math
from collections.abc import Sequence

import numpy as np

from autollm_jax.forecasts.base import Forecast, Seen, fitted_level
from autollm_jax.forecasts.relevance import (
    fidelity_distance,
    named_differences,
    relevant_evidence,
)
from autollm_jax.forecasts.surfaces import CAP, PERSISTENT, Surface, place, surfaces
from autollm_jax.gym.environment import Trial
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting

NEAREST = 3  # surfaces that the mean is taken over
# Variance of how a target differs from a surface, relative to the surface's. On held-out rows of
# low tables more than this promises less than it keeps.
DIFFERENCE = 0.1
STRANGE = 0.25  # weight of a surface for each named thing (problem, backbone) it has of its own
CELLS, DRAWS = 128, 192
LEVEL_VARIANCE = 1e4  # of the target's unknown level, in squared units
JITTER = 1e-4
SCALES = np.array([-0.8, -0.4, 0.0, 0.4, 0.8])  # octaves around the expected unit of regret
SCALE_DEVIATION = 0.5
FAILED = 1.2  # regret that a run which was not ok is taken for


def _factor(covariance_MM: np.ndarray) -> np.ndarray:
    """Return the Cholesky factor [M, M]; rounding may ask for more jitter than JITTER."""
    for jitter in JITTER * 10.0 ** np.arange(6):
        try:
            return np.linalg.cholesky(covariance_MM + jitter * np.eye(len(covariance_MM)))
        except np.linalg.LinAlgError:
            continue
    raise np.linalg.LinAlgError("a forecast's covariance matrix is far from positive")


class SurfaceTransfer(Forecast):
    """A forecast over any space, from the surfaces of the relevant evidence."""

    def __init__(self, setting: Setting, evidence: Sequence[Experiment], seed: int = 0):
        super().__init__(setting, evidence, seed)
        found = surfaces(relevant_evidence(evidence, setting), setting)[:NEAREST]
        feasible = np.flatnonzero(setting.feasible_R)
        if found:
            mean_R, nearest = self._transferred(found), found[0]
            x_RD = nearest.scaled(setting)
            self.unit = self._unit_of(nearest)
        else:
            self.unit = 1.0
            mean_R, nearest, x_RD = self._without_evidence(), None, None
        order = feasible[np.argsort(mean_R[feasible], kind="stable")]
        # Of cells that gain equally little, the one of the lower mean comes first.
        self._tie_R = np.zeros(len(mean_R))
        self._tie_R[order] = 1e-6 * np.arange(len(order)) / max(len(order), 1)
        self._rows = order[:CELLS]
        self._place_R = np.full(len(mean_R), -1)
        self._place_R[self._rows] = np.arange(len(self._rows))
        self._mean_R = mean_R
        self._mean_M = mean_R[self._rows]
        self._covariance_MM = self._covariance(nearest, x_RD)
        factor_MM = _factor(self._covariance_MM)
        # The same draws for everybody: a forecast is a function of what is known. Each comes with
        # its mirror image, so that their mean is exact.
        half_SM = np.random.default_rng(2011_04026).normal(size=(DRAWS // 2, len(self._rows)))
        normal_SM = np.concatenate([half_SM, -half_SM])
        self._draws_SM = self._mean_M + normal_SM @ factor_MM.T

    def _transferred(self, found: Sequence[Surface]) -> np.ndarray:
        """Average the surfaces' means over all cells [R], in units of regret."""
        setting, first = self.setting, found[0].members[0]
        means, weights = [], []
        for surface in found:
            lead = surface.members[0]
            nearer = fidelity_distance(first, setting) - fidelity_distance(lead, setting)
            strange = named_differences(lead, setting) - named_differences(first, setting)
            weights.append(2.0**nearer * STRANGE**strange)
            means.append(surface.mean(surface.scaled(setting)) / self._unit_of(surface))
        return np.average(means, axis=0, weights=weights)

    def _unit_of(self, surface: Surface) -> float:
        """Return a unit of regret of the surface's most relevant experiment."""
        lead = next(e for e in self.nearest if e in surface.members)
        return lead.spread_unit

    def _without_evidence(self) -> np.ndarray:
        """Expect a plain bowl around the default."""
        x_RD = place(self.setting, self.setting)
        row, _ = self.setting.match(self.setting.default)
        return np.minimum(((x_RD - x_RD[row]) ** 2).sum(axis=1), CAP)

    def _covariance(self, nearest: Surface | None, x_RD) -> np.ndarray:
        """Return the covariances [M, M] of the kept cells, in squared units of regret."""
        if nearest is None:
            x_MD = place(self.setting, self.setting)[self._rows]
            squared_MM = ((x_MD[:, None] - x_MD[None]) ** 2).sum(-1)
            return 0.25 * np.exp(-0.5 * squared_MM) + 0.01 * np.eye(len(x_MD))
        x_MD = x_RD[self._rows]
        unknown_MM = nearest.covariance(x_MD) + DIFFERENCE * nearest.correlation(x_MD)
        own = (1 - PERSISTENT) * nearest.variance * nearest.noise
        unknown_MM[np.diag_indices(len(x_MD))] += own
        return (nearest.deviation / self.unit) ** 2 * unknown_MM

    def ranking(self, trials: Sequence[Trial] = ()) -> np.ndarray:
        """Return the regret [R] expected to remain after trying each row, over the draws."""
        seen = self.seen(trials)
        tried = [kept for row, _ in seen if (kept := self._place_R[row]) >= 0]
        draws, weights = self._draws(seen)
        if len(draws) == 1:
            return self._remaining(draws[0], tried)
        remaining = [self._remaining(draws_SM, tried) for draws_SM in draws]
        return np.average(remaining, axis=0, weights=weights)

    def expected_regrets(self, trials: Sequence[Trial] = ()) -> np.ndarray:
        """Return the ranking itself, which is a regret: cut to [0, 1], inf where not open."""
        remaining_R = np.clip(self.ranking(trials), 0.0, 1.0).astype(float)
        return np.where(self.open_rows(trials), remaining_R, np.inf)

    def posterior(self, seen: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        draws, weights = self._draws(seen)
        regrets = [d_SM - d_SM.min(axis=1, keepdims=True) for d_SM in draws]
        mean_M = np.average([r_SM.mean(axis=0) for r_SM in regrets], axis=0, weights=weights)
        square_M = np.average([(r_SM**2).mean(axis=0) for r_SM in regrets], axis=0, weights=weights)
        variance_M = np.maximum(square_M - mean_M**2, JITTER)
        # A row that was not drawn keeps its surface's mean; trials are taken to teach it nothing.
        low = np.average([d_SM.min(axis=1).mean() for d_SM in draws], weights=weights)
        mean_R = self._mean_R - low
        deviation_R = np.full(len(mean_R), math.sqrt(np.mean(np.diag(self._covariance_MM))))
        mean_R[self._rows], deviation_R[self._rows] = mean_M, np.sqrt(variance_M)
        level = fitted_level(seen, mean_R, self.unit)
        scores_T = (np.array([loss for _, loss in seen]) - level) / self.unit
        return mean_R, deviation_R, scores_T

    def _level(self, seen: Seen, mean_R: np.ndarray) -> tuple[float, float]:
        """Take the level from the trials that were ok; without any, the extrapolated one."""
        level = fitted_level(seen, mean_R, self.unit)
        return (self.scale.anchored(np.zeros(0))[0] if math.isnan(level) else level), self.unit

    def _draws(self, seen: Seen) -> tuple[list[np.ndarray], np.ndarray]:
        """Return conditioned draws [S, M] for each size of a unit of regret, and their weights.

        The size of a unit is only expected: from two trials on, differences between them tell more.
        """
        if len(seen) < 2:
            return [self._conditioned(seen, 0.0)[0]], np.ones(1)
        options = [self._conditioned(seen, octaves) for octaves in SCALES]
        log_weights = np.array([w for _, w in options]) - 0.5 * (SCALES / SCALE_DEVIATION) ** 2
        return [draws for draws, _ in options], np.exp(log_weights - log_weights.max())

    def _remaining(self, draws_SM: np.ndarray, tried: list[int]) -> np.ndarray:
        """Return the expected regret after trying each cell [R], the best of them counting."""
        regret_SM = np.minimum(draws_SM - draws_SM.min(axis=1, keepdims=True), 1.0)
        best_S1 = regret_SM[:, tried].min(axis=1, keepdims=True, initial=1.0)
        remaining_R = np.full(len(self._place_R), float(best_S1.mean()))
        remaining_R[self._rows] = np.minimum(regret_SM, best_S1).mean(axis=0)
        return remaining_R + self._tie_R

    def _conditioned(self, seen, octaves: float) -> tuple[np.ndarray, float]:
        """Condition the draws on the trials; return them and the trials' log likelihood.

        Args:
          seen: rows and losses.
          octaves: how many octaves larger than expected a unit of regret is taken to be.
        """
        seen = [(self._place_R[row], loss) for row, loss in seen if self._place_R[row] >= 0]
        finite = [loss for _, loss in seen if math.isfinite(loss)]
        if not seen or not finite:
            return self._failed(seen), 0.0
        unit, low = self.unit * 2.0**octaves, min(finite)
        t = np.array([kept for kept, _ in seen])
        y_T = np.array([(loss - low) / unit if math.isfinite(loss) else FAILED for _, loss in seen])
        y_T = np.minimum(y_T, CAP)
        covariance_MT = self._covariance_MM[:, t]
        covariance_TT = covariance_MT[t] + LEVEL_VARIANCE + 10 * JITTER * np.eye(len(t))
        gap_T = y_T - self._mean_M[t]
        solved_T = np.linalg.solve(covariance_TT, gap_T)
        _, log_determinant = np.linalg.slogdet(covariance_TT)
        # A density of losses, so that units of different size compare.
        likelihood = -0.5 * (gap_T @ solved_T + log_determinant) - len(finite) * math.log(unit)
        gap_ST = y_T - self._draws_SM[:, t]
        gain_TM = np.linalg.solve(covariance_TT, covariance_MT.T)
        return self._draws_SM + gap_ST @ gain_TM, float(likelihood)

    def _failed(self, seen) -> np.ndarray:
        """Return the draws, raised around trials of which none was ok.

        Only differences count, so that what a cell shares with the average one is taken off.
        """
        draws_SM = self._draws_SM
        for kept, _ in seen:
            near_M = self._covariance_MM[kept] - self._covariance_MM[kept].mean()
            near_M = near_M / (near_M[kept] + JITTER)
            floor_S = draws_SM.min(axis=1) + FAILED
            draws_SM = draws_SM + np.outer(np.maximum(floor_S - draws_SM[:, kept], 0.0), near_M)
        return draws_SM
