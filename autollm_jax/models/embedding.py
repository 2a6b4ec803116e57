"""Looking tokens up in an embedding table that is split over devices."""

import functools

import jax
import jax.numpy as jnp

from autollm_jax.sharding.rules import constrain


def look_up(table_VD: jax.Array, tokens_BT: jax.Array, dtype: str) -> jax.Array:
    """Return the tokens' rows of a table; the gradient is summed in f32.

    A sum of the gradients in bfloat16 would lose most of a frequent token's.

    Args:
      table_VD: f32, or of type `dtype` already.
      tokens_BT: token ids.
      dtype: "float32" or "bfloat16".

    Returns:
      x_BTD, of type `dtype`.
    """
    if table_VD.dtype == dtype:
        return jnp.take(constrain(table_VD, "vocab", "activation"), tokens_BT, axis=0)
    return _rounded(dtype, table_VD.shape[0], table_VD, tokens_BT)


# Where fsdp splits the width, each device looks all tokens up in its columns, and devices exchange
# the tokens' rows. The table, which has more rows than a batch has tokens, stays where it is, and
# so does its gradient.
COLUMNS, ROWS = ("replica", "length", "width"), ("batch", "length", "activation")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rounded(dtype, vocabulary, table_VD, tokens_BT):
    tokens_BT = constrain(tokens_BT, "replica", None, always=True)
    x_BTD = jnp.take(constrain(table_VD, "vocab", "width"), tokens_BT, axis=0).astype(dtype)
    return constrain(constrain(x_BTD, *COLUMNS), *ROWS)


def _forward(dtype, vocabulary, table_VD, tokens_BT):
    return _rounded(dtype, vocabulary, table_VD, tokens_BT), tokens_BT


def _backward(dtype, vocabulary, tokens_BT, cotangent_BTD):
    tokens_BT = constrain(tokens_BT, "replica", None, always=True)
    cotangent_BTD = constrain(constrain(cotangent_BTD, *ROWS), *COLUMNS)
    zeros_VD = jnp.zeros((vocabulary, cotangent_BTD.shape[-1]), jnp.float32)
    zeros_VD = constrain(zeros_VD, "vocab", "width")
    summed_VD = zeros_VD.at[tokens_BT].add(cotangent_BTD.astype(jnp.float32))
    return constrain(summed_VD, "vocab", "width"), None


_rounded.defvjp(_forward, _backward)
