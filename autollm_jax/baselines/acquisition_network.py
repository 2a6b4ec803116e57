"""The network of the neural acquisition process: its inputs, parameters, state and decision.

Each cell of the target has a token, made of the cell's inputs. The token attends to the evidence's
rows once, and to the trials at every step. The network also reads the cell's mean and deviation
under a Gaussian process (see deep_kernel.py).

Letters: C cells, N evidence rows, T trials, Z inputs, D token width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from autollm_jax.forecasts import deep_kernel as kernels
from autollm_jax.forecasts.deep_kernel import TARGET, Points
from autollm_jax.forecasts.problem_arrays import INPUTS

TRIED = -1e9  # the acquisition value of a cell that was tried or is padding
STATE = 6  # numbers that describe a cell at a step
# Parameters that each search space has of its own; index 0 is for spaces that were not learned.
OWN = ("embed", "scale")


@dataclass(frozen=True)
class Settings:
    """Sizes of the network and of its training; neural_acquisition.py says how they were chosen."""

    steps: int = 90
    problems: int = 12  # per step
    rollouts: int = 4  # episodes per problem
    trials: int = 5  # per episode
    rows: int = 96  # evidence rows
    cells: int = 96  # target cells in training
    width: int = 32
    heads: int = 4
    layers: int = 1  # attention layers over the evidence; one more reads the trials
    learning_rate: float = 3e-3
    auxiliary: float = 0.3  # weight of the score prediction's negative log likelihood
    entropy: float = 0.003  # weight of the policy's entropy
    unnamed: float = 0.1  # share of problems played as if their search space were unknown


class State(NamedTuple):
    """The state of an episode after some trials.

    Attributes:
      mean_C: the surrogate's posterior mean of each cell's score.
      variance_C: the surrogate's posterior variance.
      half_TC: whitened covariances of the trials with the cells.
      tokens_TD: tokens of the trials.
      z_TZ: scaled inputs of the trials.
      done_T: whether each trial has been made.
      untried_C: whether each cell is left to try.
      best: the lowest score so far; inf before the first trial.
      count: number of trials made.
    """

    mean_C: jax.Array
    variance_C: jax.Array
    half_TC: jax.Array
    tokens_TD: jax.Array
    z_TZ: jax.Array
    done_T: jax.Array
    untried_C: jax.Array
    best: jax.Array
    count: jax.Array


class View(NamedTuple):
    """The cells after the evidence was read: points, whitened covariances [N, C], tokens [C, D]."""

    cells: Points
    half_NC: jax.Array
    tokens_CD: jax.Array


class Inputs(NamedTuple):
    """A padded problem: evidence inputs, scores, experiments and mask; cell inputs and mask."""

    z_NZ: jax.Array
    y_N: jax.Array
    e_N: jax.Array
    mask_N: jax.Array
    z_CZ: jax.Array
    mask_C: jax.Array


def init_params(rng: np.random.Generator, s: Settings, active_S: Sequence[int]) -> dict:
    """Draw the parameters. The first policy prefers cells whose surrogate mean is low.

    Args:
      rng: source of the draws.
      s: sizes of the network.
      active_S: for each search space, the number of inputs that vary; entry 0 is for spaces that
        were not learned.
    """
    d = s.width

    def draw(*shape, scale=1.0):
        return scale * rng.normal(size=shape) / np.sqrt(shape[-2])

    attention = {f"{k}{i}": draw(d, d) for i in range(s.layers + 1) for k in "qkvo"}
    attention |= {f"up{i}": draw(d, 2 * d) for i in range(s.layers + 1)}
    attention |= {f"down{i}": draw(2 * d, d, scale=0.3) for i in range(s.layers + 1)}
    attention |= {f"near{i}": np.linspace(-2.0, 2.0, s.heads) for i in range(s.layers + 1)}
    started = [kernels.start(active, INPUTS) for active in active_S]
    params = attention | {k: v for k, v in started[0].items() if k != "scale"}
    params |= {
        "embed": np.stack([rng.normal(size=(INPUTS, d)) / np.sqrt(a) for a in active_S]),
        "scale": np.stack([p["scale"] for p in started]),
        "row": draw(2, d),
        "trial": draw(3, d),
        "state": draw(STATE, d),
        "head": draw(d, 3, scale=0.01),
        "direct": np.array([0.0, -2.0, 0.0, 0.0, 0.0, 0.0]),
    }
    return {k: np.asarray(v, np.float32) for k, v in params.items()}


def regard(params: dict, inputs: Inputs) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the surrogate's mean [C], variance [C] and whitened covariances [N, C]."""
    rows, cells = _points(params, inputs)
    fit = kernels.condition(params, rows, inputs.y_N, inputs.mask_N)
    return kernels.predict(params, fit, cells)


def _points(params: dict, inputs: Inputs) -> tuple[Points, Points]:
    scale_Z = jnp.exp(params["scale"])[None, :]
    rows_NZ, cells_CZ = inputs.z_NZ * scale_Z, inputs.z_CZ * scale_Z
    target_C = jnp.full(len(cells_CZ), TARGET)
    return Points(rows_NZ, rows_NZ, inputs.e_N), Points(cells_CZ, cells_CZ, target_C)


def look(
    params: dict, inputs: Inputs, regarded: tuple, trials: int, s: Settings
) -> tuple[View, State]:
    """Read the evidence once; return the cells after that, and the state before any trial.

    Args:
      params: the parameters of one search space (`of_space`).
      inputs: the padded problem.
      regarded: the result of `regard`.
      trials: the greatest number of trials that the state holds.
      s: sizes of the network.
    """
    mean_C, variance_C, half_NC = regarded
    (rows_NZ, _, _), cells = _points(params, inputs)
    cells_CZ = cells.z_NZ
    about_N2 = jnp.stack([inputs.y_N, jnp.ones_like(inputs.y_N)], axis=1)
    tokens_ND = inputs.z_NZ @ params["embed"] + about_N2 @ params["row"]
    tokens_CD = inputs.z_CZ @ params["embed"]
    squared_CN = kernels.squared_distance(cells_CZ, rows_NZ)
    for layer in range(s.layers):
        tokens_CD = _block(params, layer, tokens_CD, tokens_ND, squared_CN, inputs.mask_N, s)
    count, d = len(cells_CZ), s.width
    empty = State(
        mean_C,
        variance_C,
        jnp.zeros((trials, count)),
        jnp.zeros((trials, d)),
        jnp.zeros((trials, INPUTS)),
        jnp.zeros(trials, bool),
        inputs.mask_C,
        jnp.array(jnp.inf),
        jnp.array(0),
    )
    return View(cells, half_NC, tokens_CD), empty


def decide(params: dict, view: View, state: State, s: Settings) -> tuple:
    """Return acquisition values [C] (TRIED where tried), predicted means and log deviations [C]."""
    deviation_C = jnp.sqrt(state.variance_C)
    among_C = state.untried_C / state.untried_C.sum()
    centre = (among_C * state.mean_C).sum()
    spread = jnp.sqrt((among_C * (state.mean_C - centre) ** 2).sum() + 1e-6)
    best = jnp.where(jnp.isfinite(state.best), state.best, centre)
    about_CS = jnp.stack(
        [
            jnp.clip((best - state.mean_C) / deviation_C, -5.0, 5.0),
            jnp.clip((state.mean_C - centre) / spread, -5.0, 5.0),
            jnp.log(deviation_C),
            jnp.clip(state.mean_C, -2.0, 2.0),
            jnp.full_like(deviation_C, state.count / (1 + state.count)),
            jnp.ones_like(deviation_C),
        ],
        axis=1,
    )
    tokens_CD = view.tokens_CD + about_CS @ params["state"]
    squared_CT = kernels.squared_distance(view.cells.z_NZ, state.z_TZ)
    tokens_CD = _block(params, s.layers, tokens_CD, state.tokens_TD, squared_CT, state.done_T, s)
    out_C3 = tokens_CD @ params["head"]
    value_C = out_C3[:, 0] + about_CS @ params["direct"]
    mean_C = state.mean_C + out_C3[:, 1] * deviation_C
    value_C = jnp.where(state.untried_C, value_C, TRIED)
    return value_C, mean_C, jnp.log(deviation_C) + out_C3[:, 2]


def advance(params: dict, view: View, state: State, cell: jax.Array, score: jax.Array) -> State:
    """Return the state after a trial of `cell` that had `score`."""
    point = Points(*(a[cell][None] for a in view.cells))
    k_C = kernels.kernel(params, point, view.cells)[0] - view.half_NC[:, cell] @ view.half_NC
    k_C = k_C - state.half_TC[:, cell] @ state.half_TC
    deviation = jnp.sqrt(jnp.maximum(k_C[cell], 1e-8) + kernels.noise(params))
    half_C, surprise = k_C / deviation, (score - state.mean_C[cell]) / deviation
    about_3 = jnp.stack([score, jnp.clip(surprise, -5.0, 5.0), jnp.ones_like(score)])
    token_D = view.tokens_CD[cell] + about_3 @ params["trial"]
    t = state.count
    return State(
        state.mean_C + half_C * surprise,
        jnp.maximum(state.variance_C - half_C**2, 1e-8),
        state.half_TC.at[t].set(half_C),
        state.tokens_TD.at[t].set(token_D),
        state.z_TZ.at[t].set(point.z_NZ[0]),
        state.done_T.at[t].set(True),
        state.untried_C.at[cell].set(False),
        jnp.minimum(state.best, score),
        t + 1,
    )


def _block(params, layer: int, query_QD, key_KD, squared_QK, mask_K, s: Settings) -> jax.Array:
    """Attend to the keys (possibly none), then apply an MLP; both have a residual connection."""
    heads, size = s.heads, s.width // s.heads

    def split(x_ND, name):
        x_NHS = (_norm(x_ND) @ params[f"{name}{layer}"]).reshape(-1, heads, size)
        return x_NHS.transpose(1, 0, 2)

    q_HQS, k_HKS, v_HKS = split(query_QD, "q"), split(key_KD, "k"), split(key_KD, "v")
    near_H = jnp.exp(params[f"near{layer}"])
    logits_HQK = q_HQS @ k_HKS.transpose(0, 2, 1) / np.sqrt(size)
    logits_HQK = logits_HQK - near_H[:, None, None] * squared_QK[None]
    logits_HQK = jnp.where(mask_K[None, None, :], logits_HQK, -1e9)
    # A null key with a fixed logit: the softmax is defined without evidence and without trials.
    logits_HQK = jnp.pad(logits_HQK, ((0, 0), (0, 0), (1, 0)), constant_values=-4.0)
    mixed_HQS = jax.nn.softmax(logits_HQK)[:, :, 1:] @ v_HKS
    mixed_QD = mixed_HQS.transpose(1, 0, 2).reshape(-1, s.width)
    query_QD = query_QD + mixed_QD @ params[f"o{layer}"]
    return query_QD + jax.nn.gelu(_norm(query_QD) @ params[f"up{layer}"]) @ params[f"down{layer}"]


def _norm(x_ND: jax.Array) -> jax.Array:
    return x_ND * jax.lax.rsqrt((x_ND**2).mean(1, keepdims=True) + 1e-6)


def of_space(params: dict, space: jax.Array) -> dict:
    """Return the parameters of one search space."""
    return {k: v[space] if k in OWN else v for k, v in params.items()}
