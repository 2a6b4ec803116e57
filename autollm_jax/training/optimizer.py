"""AdamW with warm-up, decay and clipping."""

import dataclasses

import jax.numpy as jnp
import optax

DECAYS = ("constant", "cosine", "linear", "wsd")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101) and its schedule."""

    learning_rate: float  # peak
    warmup_fraction: float = 0.1  # of all steps, linear from 0
    decay: str = "cosine"
    final_fraction: float = 0.1  # the last step's learning rate as a fraction of the peak
    decay_fraction: float = 0.2  # wsd only: the share of all steps spent decaying
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float = 1.0  # global gradient norm; 0 is no clipping

    def __post_init__(self):
        if self.decay not in DECAYS:
            raise ValueError(f"decay={self.decay!r} must be one of {', '.join(DECAYS)}")


def schedule_shape(config: OptimizerConfig, steps) -> optax.Schedule:
    """The schedule of a run of `steps` steps (a number, or a traced one), with peak 1.

    `wsd` (warm-up, stable, decay: arXiv 2404.06395) stays at the peak until its last
    `decay_fraction`, then falls linearly.
    """
    steps = jnp.asarray(steps, jnp.float32)
    warmup = jnp.maximum(1.0, jnp.round(config.warmup_fraction * steps))

    def shape(step):
        step = jnp.asarray(step, jnp.float32)
        rise = (step + 1) / warmup
        left = jnp.clip((steps - step) / jnp.maximum(1.0, steps - warmup), 0.0, 1.0)
        if config.decay == "constant":
            fall = jnp.ones_like(step)
        elif config.decay == "linear":
            fall = left
        elif config.decay == "cosine":
            fall = 0.5 * (1 - jnp.cos(jnp.pi * left))
        else:
            fall = jnp.clip(
                (steps - step) / jnp.maximum(1.0, config.decay_fraction * steps), 0.0, 1.0
            )
        fall = config.final_fraction + (1 - config.final_fraction) * fall
        return jnp.minimum(rise, fall)

    return shape


def make_optimizer(config: OptimizerConfig, steps, learning_rate=None):
    """Make the optax transformation for a run of `steps` steps.

    Args:
      config: the hyperparameters.
      steps: the run's length, which the schedule needs; a sweep may trace it.
      learning_rate: a peak that replaces the config's; a traced scalar lets a sweep vmap over it.

    Returns:
      An `optax.GradientTransformation`. Weights decay, norm scales do not.
    """
    peak = config.learning_rate if learning_rate is None else learning_rate
    shape = schedule_shape(config, steps)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(
        clip,
        optax.adamw(
            lambda step: peak * shape(step),
            b1=config.b1,
            b2=config.b2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decays,
        ),
    )


def decays(params):
    """Which parameters weight decay applies to: all but norm scales."""
    return {
        name: decays(child) if isinstance(child, dict) else name != "scale"
        for name, child in params.items()
    }
