"""A Gaussian process over configuration and fidelity, fitted on the evidence and the trials.

The prior of an experiment's score (see gathering.py) at z = (configuration, its relative size where
that is known, log fidelity) is

  a quadratic trend: its cross terms let the bowl move with fidelity, as scaling laws say it does
  + a Matern-5/2 process with one length-scale a dimension (ARD)
  + a constant of the setting's own, since its level is only extrapolated
  + noise.

Variances, length-scales and noise maximise the marginal likelihood of a part of the evidence; the
posterior is exact, given as much of it as is of use and every trial. (Rasmussen and Williams,
Gaussian Processes for Machine Learning, 2006, chapters 2 and 5; expected improvement after Jones
et al., 1998.) It is not weakened to be quick: in double precision, rows and inputs are padded to a
few sizes and masked, so that a handful of compilations serves every setting and number of trials.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from scipy import optimize

from autollm_jax import host
from autollm_jax.forecasts import coordinates
from autollm_jax.forecasts.base import Forecast, Seen
from autollm_jax.forecasts.conditioning import LEVEL_VARIANCE
from autollm_jax.forecasts.gathering import gather
from autollm_jax.forecasts.matern import matern
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Fidelity, Setting

FIT_ROWS = 256  # rows that the hyperparameters are fitted on, about
ROWS = 1000  # rows that the posterior is conditioned on, about
JITTER = 1e-8
# Log-normal priors keep the hyperparameters in reason where the evidence says little.
PRIOR_MEAN = {"trend": -1.0, "process": -2.0, "noise": -5.0, "length": 0.0}
PRIOR_DEVIATION = 2.0
# Arrays are padded to the first of these sizes that holds them, beyond the last to its multiples.
ROW_SIZES = (128, 256, 512, 1024)
INPUT_SIZES = (8, 32)
CELL_SIZES = (128, 256, 512)
TRIAL_SIZES = (8,)


class GaussianProcess(Forecast):
    """A Gaussian process on the evidence and the trials; nothing is drawn.

    The first trial is the row of the lowest mean, later ones have the greatest expected
    improvement. The setting's constant is part of the score: an improvement does not depend on it.

    >>> from autollm_jax.gym.experiments import Fidelity, make_experiment
    >>> from autollm_jax.gym.spaces import Dimension, Space
    >>> rates = tuple(2.0**n for n in range(-12, -4))
    >>> space = Space((Dimension("rate", "log-ordinal", rates),))
    >>> def made(name, parameters):
    ...     return make_experiment(
    ...         source="mine", task="pretraining", name=name, space=space,
    ...         fidelity=Fidelity("low", parameters, 1e9, 6e9 * parameters),
    ...         configurations=[{"rate": r} for r in rates],
    ...         outcomes=[n**2 for n in range(-3, 5)],
    ...         default={"rate": rates[0]}, default_origin="the first")
    >>> forecast = GaussianProcess(made("2M", 2e6).setting, [made("1M", 1e6)])
    >>> int(forecast.predict().mean_R.argmin())
    3
    """

    def __init__(self, setting: Setting, evidence: Sequence[Experiment], seed: int = 0):
        super().__init__(setting, evidence, seed)
        rows = gather(setting, evidence, ROWS)
        z_NZ = np.concatenate([rows.points_ND, rows.sizes_NS, rows.fidelities_NF], axis=1)
        units_RD = self.units_RD
        sizes_RS = coordinates.relative_sizes(setting)[:, : rows.sizes_NS.shape[1]]
        z_RZ = np.concatenate([units_RD, sizes_RS, np.zeros((len(units_RD), 2))], axis=1)
        reference = z_NZ if len(rows) else z_RZ
        centre_Z, deviation_Z = reference.mean(0), reference.std(0)
        unit_Z = np.where(deviation_Z > 1e-9, deviation_Z, 1.0)
        self._centre_Z, self._unit_Z = centre_Z, unit_Z
        z_NZ, z_RZ = (z_NZ - centre_Z) / unit_Z, (z_RZ - centre_Z) / unit_Z
        self._inputs = float(z_NZ.shape[1])
        self._theta_P = prior_mean(z_NZ.shape[1])
        if len(rows):
            # Each experiment's rows are in order of outcome: every third, say, is a fair part.
            part = slice(None, None, -(-len(z_NZ) // FIT_ROWS))
            self._theta_P = fit(z_NZ[part], rows.scores_N[part])
        used_N = pad(np.ones(len(z_NZ)), ROW_SIZES)
        self._z_RZ = pad(z_RZ, CELL_SIZES, INPUT_SIZES)
        self._theta_P = _pad_theta(self._theta_P)
        self._evidence = pad(z_NZ, ROW_SIZES, INPUT_SIZES), used_N
        # The evidence stays as it is, so it is conditioned on once; `posterior` adds the trials.
        with _in_float64():
            given = _condition(
                self._theta_P,
                self._inputs,
                self._evidence[0],
                pad(rows.scores_N, ROW_SIZES),
                used_N,
                self._z_RZ,
            )
        # As arrays of NumPy, which other processes read in float64, too.
        self._given = tuple(map(np.asarray, given))

    def posterior(self, seen: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        mean_R, variance_R = self._given[1:]
        scores_T = self.scale.scores(np.array([loss for _, loss in seen]))
        if seen:
            tried = np.array([row for row, _ in seen])
            with _in_float64():
                mean_R, variance_R = _update(
                    self._theta_P,
                    self._inputs,
                    self._given,
                    self._z_RZ,
                    pad(tried, TRIAL_SIZES),
                    pad(scores_T, TRIAL_SIZES),
                    pad(np.ones(len(tried)), TRIAL_SIZES),
                )
        else:  # all rows share the level's variance, which says nothing about any of them
            variance_R = np.maximum(np.asarray(variance_R) - LEVEL_VARIANCE, 1e-12)
        count = len(self.units_RD)
        return np.asarray(mean_R)[:count], np.sqrt(np.asarray(variance_R)[:count]), scores_T

    def reduction(self, row: int, rows: np.ndarray, fidelities: Sequence[Fidelity]) -> np.ndarray:
        """Return what runs at other fidelities would tell of a row.

        Args:
          row: of the setting.
          rows: N configurations of the setting.
          fidelities: F fidelities to run each of them at.

        Returns:
          [F, N] the share of the variance of the row's score that each such run would take away,
          given the evidence and no trial.
        """
        z_RZ = np.asarray(self._z_RZ)
        inputs, own = int(self._inputs), z_RZ[row]
        points = [own]
        for fidelity in fidelities:
            relative_2 = np.nan_to_num(fidelity.log - self.setting.fidelity.log)
            z_NZ = z_RZ[rows].copy()
            ends = slice(inputs - 2, inputs)  # the last inputs are the fidelity's
            z_NZ[:, ends] = (relative_2 - self._centre_Z[ends]) / self._unit_Z[ends]
            points += list(z_NZ)
        z_JZ = pad(np.stack(points), CELL_SIZES)
        with _in_float64():
            covariance_J, variance_J = map(
                np.asarray, _joint(self._theta_P, self._inputs, *self._evidence, z_JZ)
            )
        noise = np.exp(self._theta_P[2]) + JITTER
        share_J = covariance_J**2 / ((variance_J + noise) * max(float(variance_J[0]), JITTER))
        return share_J[1 : len(points)].reshape(len(fidelities), len(rows))


@contextlib.contextmanager
def _in_float64() -> Iterator[None]:
    """Compute on the CPU in float64, which a TPU has not."""
    with host.on_cpu(), jax.enable_x64(True):
        yield


def pad(array: np.ndarray, *sizes: tuple[int, ...]) -> np.ndarray:
    """Append zeros to the leading axes, each up to one of its sizes."""
    counts = []
    for length, steps in zip(array.shape, sizes, strict=False):
        fitting = [step for step in steps if step >= length]
        counts.append((fitting or [-(-length // steps[-1]) * steps[-1]])[0] - length)
    widths = [(0, count) for count in counts] + [(0, 0)] * (array.ndim - len(counts))
    return np.pad(array, widths)


def prior_mean(inputs: int) -> np.ndarray:
    """Return the mean of the hyperparameters' prior [3 + inputs]."""
    heads = [PRIOR_MEAN[name] for name in ("trend", "process", "noise")]
    # More inputs spread points further apart: longer lengths keep neighbours neighbours.
    return np.array(heads + [PRIOR_MEAN["length"] + 0.5 * np.log(inputs)] * inputs)


def _pad_theta(theta_P: np.ndarray) -> np.ndarray:
    """Append a length-scale of 1 for each input that is padding."""
    return np.concatenate([theta_P[:3], pad(theta_P[3:], INPUT_SIZES)])


def fit(z_NZ: np.ndarray, scores_N: np.ndarray) -> np.ndarray:
    """Maximise the marginal likelihood (times the hyperparameters' prior) by L-BFGS.

    The result is remembered: other seeds and budgets on the same experiment ask for it again.

    Args:
      z_NZ: standardised inputs.
      scores_N: their scores.

    Returns:
      [3 + Z] logarithms of trend variance, process variance, noise variance and Z length-scales.
    """
    columns = np.column_stack([z_NZ, scores_N])
    return _fit(columns.shape, columns.tobytes()).copy()


@functools.lru_cache(maxsize=512)
def _fit(shape: tuple[int, int], columns: bytes) -> np.ndarray:
    *z_ZN, scores_N = np.frombuffer(columns).reshape(shape).T
    inputs = len(z_ZN)
    start_P = prior_mean(inputs)
    data = pad(np.array(z_ZN).T, ROW_SIZES, INPUT_SIZES), pad(scores_N, ROW_SIZES)
    used_N, mean_P = pad(np.ones(len(scores_N)), ROW_SIZES), _pad_theta(start_P)

    def objective(theta_P):
        value, gradient_P = _loss_and_gradient(
            _pad_theta(theta_P), float(inputs), *data, used_N, mean_P
        )
        if not np.isfinite(value):  # numerically no covariance any more: the search must turn back
            return 1e25, np.zeros(len(theta_P))
        return float(value), np.asarray(gradient_P)[: len(theta_P)]

    bounds = [(m - 6, m + 6) for m in start_P]
    with _in_float64():
        found = optimize.minimize(
            objective, start_P, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60}
        )
    return found.x


def negative_log_posterior(theta_P, inputs, z_NZ, scores_N, used_N, mean_P) -> jax.Array:
    """Return the negative log posterior of the hyperparameters, up to a constant.

    Args:
      theta_P: logarithms of trend variance, process variance, noise variance and Z length-scales.
      inputs: how many of the Z inputs are no padding.
      z_NZ: standardised inputs, 0 where padding.
      scores_N: their scores, 0 where padding.
      used_N: 1, or 0 for a row that is padding.
      mean_P: the prior's mean.
    """
    away_P = (theta_P - mean_P) / PRIOR_DEVIATION
    fit = _negative_log_likelihood(_covariance(theta_P, inputs, z_NZ, used_N), scores_N)
    return fit + 0.5 * away_P @ away_P


@jax.custom_vjp
def _negative_log_likelihood(k_NN, scores_N):
    return _likelihood_forward(k_NN, scores_N)[0]


def _likelihood_forward(k_NN, scores_N):
    factor_NN = jnp.linalg.cholesky(k_NN)
    inverse_NN = solve_triangular(factor_NN, jnp.eye(len(k_NN)), lower=True)
    half_N = inverse_NN @ scores_N
    value = 0.5 * half_N @ half_N + jnp.log(jnp.diagonal(factor_NN)).sum()
    return value, (inverse_NN, half_N)


def _likelihood_backward(kept, slope):
    """Give (K^-1 - K^-1 y y' K^-1) / 2: quicker than to differentiate the factorisation."""
    inverse_NN, half_N = kept
    weights_N = half_N @ inverse_NN
    outer_NN = weights_N[:, None] * weights_N[None, :]
    return 0.5 * slope * (inverse_NN.T @ inverse_NN - outer_NN), slope * weights_N


_negative_log_likelihood.defvjp(_likelihood_forward, _likelihood_backward)
_loss_and_gradient = jax.jit(jax.value_and_grad(negative_log_posterior))


def _kernel(theta_P, inputs, a_NZ, b_MZ):
    """Return prior covariances [N, M]: the quadratic trend and the Matern-5/2 process."""
    trend_NM = (1 + a_NZ @ b_MZ.T / jnp.sqrt(inputs)) ** 2
    inverse_1Z = jnp.exp(-theta_P[None, 3:])
    a_NZ, b_MZ = a_NZ * inverse_1Z, b_MZ * inverse_1Z
    squared_NM = (a_NZ**2).sum(1)[:, None] + (b_MZ**2).sum(1)[None, :] - 2 * a_NZ @ b_MZ.T
    process_NM = matern(squared_NM, floor=2e-21)
    return jnp.exp(theta_P[0]) * trend_NM + jnp.exp(theta_P[1]) * process_NM


def _kernel_diagonal(theta_P, inputs, a_NZ):
    trend_N = (1 + (a_NZ**2).sum(1) / jnp.sqrt(inputs)) ** 2
    return jnp.exp(theta_P[0]) * trend_N + jnp.exp(theta_P[1])


def _covariance(theta_P, inputs, z_NZ, used_N):
    """Return the covariance of the rows' scores; padding is independent of all."""
    k_NN = _kernel(theta_P, inputs, z_NZ, z_NZ) * (used_N[:, None] * used_N[None, :])
    return k_NN + jnp.diag(_noise(theta_P, used_N))


def _noise(theta_P, used_N):
    return jnp.where(used_N > 0, jnp.exp(theta_P[2]) + JITTER, 1.0)


@jax.jit
def _condition(theta_P, inputs, z_NZ, scores_N, used_N, z_RZ):
    """Return the cells' whitened covariances [N, R] with the evidence, their mean and variance."""
    factor_NN = jnp.linalg.cholesky(_covariance(theta_P, inputs, z_NZ, used_N))
    covariance_NR = _kernel(theta_P, inputs, z_NZ, z_RZ) * used_N[:, None]
    half_NR = solve_triangular(factor_NN, covariance_NR, lower=True)
    half_N = solve_triangular(factor_NN, scores_N, lower=True)
    prior_R = _kernel_diagonal(theta_P, inputs, z_RZ) + LEVEL_VARIANCE
    return half_NR, half_NR.T @ half_N, prior_R - (half_NR**2).sum(0)


@jax.jit
def _joint(theta_P, inputs, z_NZ, used_N, z_JZ):
    """Return posterior covariances [J] of points with the first one, and their variances [J]."""
    factor_NN = jnp.linalg.cholesky(_covariance(theta_P, inputs, z_NZ, used_N))
    covariance_NJ = _kernel(theta_P, inputs, z_NZ, z_JZ) * used_N[:, None]
    half_NJ = solve_triangular(factor_NN, covariance_NJ, lower=True)
    prior_J = _kernel(theta_P, inputs, z_JZ[:1], z_JZ)[0]
    variance_J = _kernel_diagonal(theta_P, inputs, z_JZ) - (half_NJ**2).sum(0)
    return prior_J - half_NJ[:, 0] @ half_NJ, jnp.maximum(variance_J, JITTER)


@jax.jit
def _update(theta_P, inputs, given, z_RZ, rows_T, scores_T, used_T):
    """Return mean and variance of the cells [R] given trials on some of them, too."""
    half_NR, mean_R, variance_R = given
    prior_TR = _kernel(theta_P, inputs, z_RZ[rows_T], z_RZ) + LEVEL_VARIANCE
    covariance_TR = (prior_TR - half_NR[:, rows_T].T @ half_NR) * used_T[:, None]
    covariance_TT = covariance_TR[:, rows_T] * used_T[None, :]
    factor_TT = jnp.linalg.cholesky(covariance_TT + jnp.diag(_noise(theta_P, used_T)))
    half_TR = solve_triangular(factor_TT, covariance_TR, lower=True)
    surprise_T = (scores_T - mean_R[rows_T]) * used_T
    half_T = solve_triangular(factor_TT, surprise_T, lower=True)
    variance_R = jnp.maximum(variance_R - (half_TR**2).sum(0), 1e-12)
    return mean_R + half_TR.T @ half_T, variance_R
