"""A Gaussian process with a learned kernel, in JAX, shared by both meta-learned methods.

The prior of a score at inputs z with features f is the sum of

  a quadratic trend in z, whose cross terms let the optimum move with fidelity as scaling laws do,
  a Matern-5/2 process over f,
  a constant per experiment, because a target's level is only extrapolated,
  noise.

Letters: N and M points, R cells, Z inputs, F features.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from autollm_jax.forecasts.matern import matern

TARGET = -1  # experiment index of the target
NOISE_FLOOR = 1e-4
# Start values of learning: the mean, and the logarithms of the variances.
HYPERPARAMETERS = {"mean": 0.6, "trend": -1.0, "process": -1.0, "offset": -3.0, "noise": -4.0}


class Points(NamedTuple):
    """Points of the process: inputs [N, Z], features [N, F], experiment indices [N]."""

    z_NZ: jax.Array
    f_NF: jax.Array
    e_N: jax.Array


class Fit(NamedTuple):
    """A process conditioned on rows, with mask [N], Cholesky factor [N, N], whitened scores [N]."""

    rows: Points
    mask_N: jax.Array
    factor_NN: jax.Array
    white_N: jax.Array


def start(active: int, inputs: int) -> dict[str, np.ndarray]:
    """Return the start values of the hyperparameters.

    Args:
      active: number of inputs that vary.
      inputs: Z.
    """
    # Distances grow with the number of inputs; smaller scales keep near points correlated.
    scale_Z = np.full(inputs, -0.25 * np.log(active))
    return {k: np.asarray(v, np.float32) for k, v in (HYPERPARAMETERS | {"scale": scale_Z}).items()}


def kernel(params: dict, a: Points, b: Points) -> jax.Array:
    """Return prior covariances [N, M] of the scores."""
    process_NM = matern(squared_distance(a.f_NF, b.f_NF), floor=1e-10)
    same_NM = (a.e_N[:, None] == b.e_N[None, :]).astype(process_NM.dtype)
    trend_NM = (1 + a.z_NZ @ b.z_NZ.T) ** 2
    variance = {k: jnp.exp(params[k]) for k in ("trend", "process", "offset")}
    return (
        variance["trend"] * trend_NM
        + variance["process"] * process_NM
        + variance["offset"] * same_NM
    )


def diagonal(params: dict, a: Points) -> jax.Array:
    """Return prior variances [N]."""
    constant = jnp.exp(params["process"]) + jnp.exp(params["offset"])
    return jnp.exp(params["trend"]) * (1 + (a.z_NZ**2).sum(1)) ** 2 + constant


def noise(params: dict) -> jax.Array:
    """Return the variance of the noise."""
    return jnp.exp(params["noise"]) + NOISE_FLOOR


def condition(params: dict, rows: Points, y_N: jax.Array, mask_N: jax.Array) -> Fit:
    """Condition the process on the scores of rows; rows that are masked out have no effect."""
    both_NN = mask_N[:, None] & mask_N[None, :]
    k_NN = jnp.where(both_NN, kernel(params, rows, rows), 0.0)
    factor_NN = jnp.linalg.cholesky(k_NN + jnp.diag(jnp.where(mask_N, noise(params), 1.0)))
    away_N = jnp.where(mask_N, y_N - params["mean"], 0.0)
    white_N = jax.scipy.linalg.solve_triangular(factor_NN, away_N, lower=True)
    return Fit(rows, mask_N, factor_NN, white_N)


def negative_log_likelihood(fit: Fit) -> jax.Array:
    """Return the negative log marginal likelihood per row, in nats, without its constant."""
    total = 0.5 * (fit.white_N**2).sum() + jnp.log(jnp.diagonal(fit.factor_NN)).sum()
    return total / fit.mask_N.sum()


def predict(params: dict, fit: Fit, cells: Points) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return posterior mean [R], variance [R] and whitened covariances with the rows [N, R]."""
    k_NR = jnp.where(fit.mask_N[:, None], kernel(params, fit.rows, cells), 0.0)
    half_NR = jax.scipy.linalg.solve_triangular(fit.factor_NN, k_NR, lower=True)
    variance_R = diagonal(params, cells) - (half_NR**2).sum(0)
    return params["mean"] + half_NR.T @ fit.white_N, jnp.maximum(variance_R, 1e-8), half_NR


def squared_distance(a_NF: jax.Array, b_MF: jax.Array) -> jax.Array:
    """Return squared Euclidean distances [N, M]."""
    squared_NM = (a_NF**2).sum(1)[:, None] + (b_MF**2).sum(1)[None, :] - 2 * a_NF @ b_MF.T
    return jnp.maximum(squared_NM, 0.0)
