"""Initial attention weights with which a model copies after few updates.

Letters: L layers, D model width, H query heads, A head width, W taps of a short convolution.
"""

import jax
import jax.numpy as jnp

from autollm_jax.models.attention import rotated_width

OUTPUT = 0.5  # factor from a head's transposed value matrix to its output matrix


def mimic(config, params):
    """Return parameters whose attention heads copy, instead of random heads.

    A key matrix starts equal to the query matrix of the group's first head, so that a token attends
    to equal tokens. A head's output matrix starts as the transposed value matrix, so that the
    residual stream receives the attended token as it was read. After Trockman and Kolter, Mimetic
    Initialization of Self-Attention Layers (arXiv 2305.09828).

    With a short convolution of W taps the heads are induction heads (Olsson et al., In-context
    Learning and Induction Heads, 2022): a token looks for an earlier run equal to the W - 1 tokens
    that end at the token, and attends to the token after the run. To that end the coordinates
    without rotation are divided into W - 1 shares; share j compares the query's token j places back
    with the key's token j + 1 places back. Share 0 is the largest, so that among several runs the
    one that agrees in the latest tokens scores highest.

    Args:
      config: a `TransformerConfig`.
      params: new parameters from `transformer.init`.
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
