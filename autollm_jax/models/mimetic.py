"""Where attention starts, so that it copies from the first update on.

Letters: L layers, D model width, H query heads, A head width, W taps of a short convolution.
"""

import jax
import jax.numpy as jnp

from autollm_jax.models.attention import rotated_width

OUTPUT = 0.5  # of its value transposed, in a head's output


def mimic(config, params):
    """Start attention heads where training would first have to find them.

    Keys start equal to the queries of their group's first head, so that a token looks for its like,
    and a head's output starts as its value transposed, so that what it finds is written as it was
    read. After Trockman and Kolter, Mimetic Initialization of Self-Attention Layers (arXiv
    2305.09828).

    With a short convolution of W taps a token looks for what followed the like of the run of W - 1
    tokens that it ends: the coordinates without a position are shared out, and the j-th share
    compares the token j back with the one j + 1 back of the key (an induction head, Olsson et al.,
    In-context Learning and Induction Heads, 2022). The first share is the largest, so that of two
    runs the one that agrees in the latest tokens is the more alike.

    Args:
      config: a `TransformerConfig`.
      params: fresh ones, as `transformer.init` makes them.
    """
    layers = params["layers"]
    queries_per_key = config.heads // config.kv_heads
    value_LDHA = jnp.repeat(layers["value"], queries_per_key, axis=2)
    changed = {
        "key": layers["query"][:, :, ::queries_per_key],
        "output": OUTPUT * value_LDHA.transpose(0, 2, 3, 1),
    }
    if config.short_conv:
        rotated, run = rotated_width(config.head_dim, config.rope_fraction), config.short_conv - 1
        place_A = jnp.maximum(jnp.arange(config.head_dim) - rotated, 0)
        back_A = place_A**2 * run // max(config.head_dim - rotated, 1) ** 2
        for name, offset in (("query_taps", 0), ("key_taps", 1)):
            taps_W1A = jax.nn.one_hot(back_A + offset, run + 1, axis=0)[:, None]
            changed[name] = jnp.broadcast_to(taps_W1A, layers[name].shape)
    return {**params, "layers": {**layers, **changed}}
