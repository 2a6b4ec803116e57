"""AdamW with warm-up, decay and clipping.

A schedule counts optimizer updates. A stage whose steps are rollouts makes several updates a step,
so `updates_of` derives the number of updates from the stage's settings, for every caller.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import optax

DECAYS = ("constant", "cosine", "linear", "wsd")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101) and its schedule."""

    learning_rate: float  # peak
    warmup_fraction: float = 0.1  # share of all updates, linear from 0
    decay: str = "cosine"  # of DECAYS
    final_fraction: float = 0.1  # the last update's learning rate as a fraction of the peak
    decay_fraction: float = 0.2  # wsd only: share of all updates spent decaying
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float = 1.0  # global gradient norm; 0 is no clipping

    def __post_init__(self):
        if self.decay not in DECAYS:
            raise ValueError(f"decay={self.decay!r} must be one of {', '.join(DECAYS)}")


def updates_per_rollout(rows: int, minibatch_rows: int, epochs: int) -> int:
    """Count the optimizer updates of a rollout whose rows are all informative."""
    return epochs * -(-rows // minibatch_rows)


def updates_of(stage: Mapping) -> int:
    """Count the optimizer updates of a stage, at most; a schedule ends with the last one.

    GRPO leaves rows without information out, and may therefore make fewer.

    Args:
      stage: a stage's settings, `steps` among them. Where a step is a rollout, `groups`,
        `group_size`, `minibatch_rows` and `epochs` too.
    """
    if "groups" not in stage:
        return stage["steps"]
    rows = stage["groups"] * stage["group_size"]
    return stage["steps"] * updates_per_rollout(rows, stage["minibatch_rows"], stage["epochs"])


def schedule_shape(config: OptimizerConfig, updates) -> optax.Schedule:
    """Make the schedule of a run, with peak 1.

    `wsd` (warm-up, stable, decay: arXiv 2404.06395) stays at the peak until its last
    `decay_fraction`, then falls linearly.

    Args:
      config: the schedule's settings.
      updates: the run's length in optimizer updates, a number or a traced scalar.

    Returns:
      A function of the number of updates done (from 0) to the learning rate over its peak.
    """
    updates = jnp.asarray(updates, jnp.float32)
    warmup = jnp.maximum(1.0, jnp.round(config.warmup_fraction * updates))

    def shape(done):
        done = jnp.asarray(done, jnp.float32)
        rise = (done + 1) / warmup
        left = jnp.clip((updates - done) / jnp.maximum(1.0, updates - warmup), 0.0, 1.0)
        if config.decay == "constant":
            fall = jnp.ones_like(done)
        elif config.decay == "linear":
            fall = left
        elif config.decay == "cosine":
            fall = 0.5 * (1 - jnp.cos(jnp.pi * left))
        else:
            fall = jnp.clip(
                (updates - done) / jnp.maximum(1.0, config.decay_fraction * updates), 0.0, 1.0
            )
        fall = config.final_fraction + (1 - config.final_fraction) * fall
        return jnp.minimum(rise, fall)

    return shape


def make_optimizer(
    config: OptimizerConfig, updates, learning_rate=None
) -> optax.GradientTransformation:
    """Make the optax transformation of a run.

    Args:
      config: the hyperparameters.
      updates: the run's length in optimizer updates (`updates_of`), which the schedule needs; a
        sweep may trace it.
      learning_rate: a peak that replaces the config's; a traced scalar lets a sweep vmap over it.

    Returns:
      The transformation. Weights decay, norm scales do not.
    """
    peak = config.learning_rate if learning_rate is None else learning_rate
    shape = schedule_shape(config, updates)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(
        clip,
        optax.adamw(
            lambda done: peak * shape(done),
            b1=config.b1,
            b2=config.b2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decays,
        ),
    )


def decays(params):
    """Return the parameters' tree with True where weight decay applies: all but norm scales."""
    return {
        name: decays(child) if isinstance(child, dict) else name != "scale"
        for name, child in params.items()
    }
