"""Masked sums and means: sums and counts travel, division comes last."""

import jax
import jax.numpy as jnp

# A metric on its way through microbatches and devices: (sum, count).
Metric = tuple[jax.Array, jax.Array]


def masked_sum(x: jax.Array, mask: jax.Array) -> Metric:
    """Sum `x` where `mask` is set.

    Args:
      x: values of any shape; those outside the mask may be anything, NaN too.
      mask: the same shape, boolean or 0/1.

    Returns:
      The sum and the number of values in it, both f32 scalars.
    """
    mask = mask.astype(bool)
    return jnp.where(mask, x, 0.0).sum(dtype=jnp.float32), mask.sum(dtype=jnp.float32)


def divide(metric: Metric) -> jax.Array:
    """Turn (sum, count) into a mean; nothing counted gives 0."""
    total, count = metric
    return total / jnp.maximum(count, 1.0)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Average `x` where `mask` is set; an empty mask gives 0."""
    return divide(masked_sum(x, mask))
