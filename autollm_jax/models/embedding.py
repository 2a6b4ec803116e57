"""Looking tokens up in an embedding table that is split over devices."""

import functools

import jax
import jax.numpy as jnp

from autollm_jax.sharding.rules import constrain


def look_up(table_VD: jax.Array, tokens_BT: jax.Array, dtype: str) -> jax.Array:
    """Return the tokens' rows of a table; the gradient is summed in f32.

    The table's fsdp shards are gathered before use, like those of every parameter, and as numbers
    of type `dtype`. A sum of the gradients in bfloat16 would lose most of a frequent token's.

    Args:
      table_VD: f32, or of type `dtype` already.
      tokens_BT: token ids.
      dtype: "float32" or "bfloat16".

    Returns:
      x_BTD, of type `dtype`.
    """
    if table_VD.dtype == dtype:
        return _rows(table_VD, tokens_BT)
    return _rounded(dtype, table_VD.shape[0], table_VD, tokens_BT)


def _rows(table_VD, tokens_BT):
    return jnp.take(constrain(table_VD, "vocab", "activation"), tokens_BT, axis=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rounded(dtype: str, vocabulary: int, table_VD, tokens_BT):
    return _rows(table_VD.astype(dtype), tokens_BT)


def _forward(dtype, vocabulary, table_VD, tokens_BT):
    return _rounded(dtype, vocabulary, table_VD, tokens_BT), tokens_BT


def _backward(dtype, vocabulary, tokens_BT, cotangent_BTD):
    zeros_VD = jnp.zeros((vocabulary, cotangent_BTD.shape[-1]), jnp.float32)
    summed_VD = zeros_VD.at[tokens_BT].add(cotangent_BTD.astype(jnp.float32))
    return constrain(summed_VD, "vocab", "width"), None


_rounded.defvjp(_forward, _backward)
