"""A Gaussian process over configuration and fidelity, fitted on the evidence and the trials.

The prior of an experiment's score (see evidence.py) at z = (configuration, its relative size where
that is known, log fidelity) is

  a quadratic trend: its cross terms let the bowl move with fidelity, as scaling laws say it does
  + a Matern-5/2 process with one length-scale a dimension (ARD)
  + a constant of the target's own, since its level is only extrapolated
  + noise.

Variances, length-scales and noise maximise the marginal likelihood of a part of the evidence.
(Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, chapters 2 and 5; expected
improvement after Jones et al., 1998.)
"""

import numpy as np
from scipy import linalg, optimize, stats

from autollm_jax.baselines import coordinates
from autollm_jax.baselines.base import Candidates, Problem, draw_seed
from autollm_jax.baselines.evidence import TargetScale, gather

FIT_ROWS = 240  # rows that the hyperparameters are fitted on
ROWS = 1000  # rows that the posterior is conditioned on
JITTER = 1e-8
OFFSET_VARIANCE = 4.0  # of the target's own constant, in squared scores
# Log-normal priors keep the hyperparameters in reason where the evidence says little.
PRIOR_MEAN = {"trend": -1.0, "process": -2.0, "noise": -5.0, "length": 0.0}
PRIOR_DEVIATION = 2.0


class GaussianProcess:
    """Try the lowest posterior mean, then the greatest expected improvement."""

    def __init__(self, problem: Problem, seed: int):
        self._problem = problem
        self._candidates = Candidates(problem.experiment)
        self._scale = TargetScale(problem)
        self._rows: list[int] = []
        self._trials: list = []
        evidence = gather(problem, ROWS)
        z_NZ = np.concatenate(
            [evidence.points_ND, evidence.sizes_NS, evidence.fidelities_NF], axis=1
        )
        units_RD = self._candidates.units_RD
        sizes_RS = coordinates.relative_sizes(problem.experiment)[:, : evidence.sizes_NS.shape[1]]
        z_RZ = np.concatenate([units_RD, sizes_RS, np.zeros((len(units_RD), 2))], axis=1)
        self._warm = len(evidence) > 0
        reference = z_NZ if self._warm else z_RZ
        centre_Z, deviation_Z = reference.mean(0), reference.std(0)
        unit_Z = np.where(deviation_Z > 1e-9, deviation_Z, 1.0)
        z_NZ, self._z_RZ = (z_NZ - centre_Z) / unit_Z, (z_RZ - centre_Z) / unit_Z
        self._theta_P = _prior_mean(z_NZ.shape[1])
        if self._warm:
            chosen = np.random.default_rng(draw_seed(problem, seed)).permutation(len(z_NZ))[
                :FIT_ROWS
            ]
            self._theta_P = fit(z_NZ[chosen], evidence.scores_N[chosen])
        # The evidence stays as it is, so it is conditioned on once; trials are added in `ask`.
        k_NN = kernel(self._theta_P, z_NZ, z_NZ)
        k_NN[np.diag_indices_from(k_NN)] += np.exp(self._theta_P[2]) + JITTER
        factor_NN = np.linalg.cholesky(k_NN)
        self._half_NR = linalg.solve_triangular(
            factor_NN, kernel(self._theta_P, z_NZ, self._z_RZ), lower=True
        )
        half_N = linalg.solve_triangular(factor_NN, evidence.scores_N, lower=True)
        self._mean_R = self._half_NR.T @ half_N
        self._variance_R = (
            kernel_diagonal(self._theta_P, self._z_RZ) + OFFSET_VARIANCE - (self._half_NR**2).sum(0)
        )

    def ask(self) -> dict:
        if not self._trials and not self._warm:
            return self._candidates.take(self._candidates.row_of(self._problem.experiment.default))
        rows = self._candidates.untried
        mean_R, variance_R = self.posterior()
        if not self._trials:
            return self._candidates.take(int(rows[np.argmin(mean_R[rows])]))
        best = self._scale.scores(self._trials).min()
        gain_R = improvement(mean_R[rows], np.sqrt(variance_R[rows]), best)
        return self._candidates.take(int(rows[np.argmax(gain_R)]))

    def tell(self, trial) -> None:
        row = self._candidates.mark(trial)
        if row is not None:
            self._rows.append(row)
            self._trials.append(trial)

    def posterior(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance of the score of every cell [R], given evidence and trials.

        The target's constant is part of the score, so that an improvement does not depend on it.
        """
        if not self._trials:
            return self._mean_R, self._variance_R
        t = self._rows
        covariance_TR = (
            kernel(self._theta_P, self._z_RZ[t], self._z_RZ)
            + OFFSET_VARIANCE
            - self._half_NR[:, t].T @ self._half_NR
        )
        noise_TT = (np.exp(self._theta_P[2]) + JITTER) * np.eye(len(t))
        factor_TT = np.linalg.cholesky(covariance_TR[:, t] + noise_TT)
        half_TR = linalg.solve_triangular(factor_TT, covariance_TR, lower=True)
        surprise_T = self._scale.scores(self._trials) - self._mean_R[t]
        half_T = linalg.solve_triangular(factor_TT, surprise_T, lower=True)
        variance_R = self._variance_R - (half_TR**2).sum(0)
        return self._mean_R + half_TR.T @ half_T, np.maximum(variance_R, 1e-12)


def improvement(mean_R: np.ndarray, deviation_R: np.ndarray, best: float) -> np.ndarray:
    """Return the expected improvement over `best`, for scores of which less is better."""
    gap_R = (best - mean_R) / deviation_R
    gain_R = deviation_R * (gap_R * stats.norm.cdf(gap_R) + stats.norm.pdf(gap_R))
    # Far from any improvement the sum is nothing but rounding: there only the order counts.
    return np.where(gap_R > -6, gain_R, 1e-30 * gap_R)


def kernel(theta_P: np.ndarray, a_NZ: np.ndarray, b_MZ: np.ndarray) -> np.ndarray:
    """Return prior covariances [N, M]: the quadratic trend and the Matern-5/2 process.

    Args:
      theta_P: logarithms of trend variance, process variance, noise variance and Z length-scales.
      a_NZ: standardised inputs.
      b_MZ: standardised inputs.
    """
    trend = np.exp(theta_P[0]) * _trend(a_NZ, b_MZ)
    return trend + np.exp(theta_P[1]) * _matern(_distance(theta_P, a_NZ, b_MZ))


def kernel_diagonal(theta_P: np.ndarray, a_NZ: np.ndarray) -> np.ndarray:
    """Return prior variances [N]."""
    return np.exp(theta_P[0]) * _trend_diagonal(a_NZ) + np.exp(theta_P[1])


def fit(z_NZ: np.ndarray, scores_N: np.ndarray) -> np.ndarray:
    """Maximise the marginal likelihood (times the hyperparameters' prior) by L-BFGS."""
    start_P = _prior_mean(z_NZ.shape[1])
    squared_ZNN = (z_NZ.T[:, :, None] - z_NZ.T[:, None, :]) ** 2
    trend_NN = _trend(z_NZ, z_NZ)
    found = optimize.minimize(
        _negative_log_posterior,
        start_P,
        args=(squared_ZNN, trend_NN, scores_N),
        jac=True,
        method="L-BFGS-B",
        bounds=[(m - 6, m + 6) for m in start_P],
        options={"maxiter": 60},
    )
    return found.x


def _negative_log_posterior(theta_P, squared_ZNN, trend_NN, scores_N):
    """Return the negative log posterior of the hyperparameters and its gradient."""
    trend, process, noise = np.exp(theta_P[:3])
    inverse_Z = np.exp(-2 * theta_P[3:])
    distance_NN = np.sqrt(np.tensordot(inverse_Z, squared_ZNN, 1))
    matern_NN = process * _matern(distance_NN)
    n = len(scores_N)
    k_NN = trend * trend_NN + matern_NN + (noise + JITTER) * np.eye(n)
    factor = linalg.cho_factor(k_NN, lower=True)
    weights_N = linalg.cho_solve(factor, scores_N)
    inner_NN = linalg.cho_solve(factor, np.eye(n)) - np.outer(weights_N, weights_N)
    # d Matern-5/2 / d log length = 5/3 (1 + sqrt5 d) exp(-sqrt5 d) x squared / length^2
    root_NN = np.sqrt(5) * distance_NN
    slope_NN = inner_NN * (process * 5 / 3 * (1 + root_NN) * np.exp(-root_NN))
    gradient_P = 0.5 * np.concatenate(
        [
            [
                trend * np.sum(inner_NN * trend_NN),
                np.sum(inner_NN * matern_NN),
                noise * np.trace(inner_NN),
            ],
            inverse_Z * np.tensordot(squared_ZNN, slope_NN, 2),
        ]
    )
    value = 0.5 * scores_N @ weights_N + np.log(np.diag(factor[0])).sum()
    away_P = (theta_P - _prior_mean(len(inverse_Z))) / PRIOR_DEVIATION
    return value + 0.5 * away_P @ away_P, gradient_P + away_P / PRIOR_DEVIATION


def _prior_mean(inputs: int) -> np.ndarray:
    heads = [PRIOR_MEAN[name] for name in ("trend", "process", "noise")]
    # More inputs spread points further apart: longer lengths keep neighbours neighbours.
    return np.array(heads + [PRIOR_MEAN["length"] + 0.5 * np.log(inputs)] * inputs)


def _trend(a_NZ, b_MZ):
    return (1 + a_NZ @ b_MZ.T / np.sqrt(a_NZ.shape[1])) ** 2


def _trend_diagonal(a_NZ):
    return (1 + (a_NZ**2).sum(1) / np.sqrt(a_NZ.shape[1])) ** 2


def _distance(theta_P, a_NZ, b_MZ):
    a, b = a_NZ / np.exp(theta_P[3:]), b_MZ / np.exp(theta_P[3:])
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
    return np.sqrt(np.maximum(squared, 0.0))


def _matern(distance):
    root = np.sqrt(5) * distance
    return (1 + root + root**2 / 3) * np.exp(-root)
