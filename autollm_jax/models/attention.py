"""Attention, over whole sequences and over a KV cache.

Letters: B batch, T query tokens, S key slots, H query heads, K key-value heads, G = H / K query
heads that share one, A head width.
"""

import jax
import jax.numpy as jnp

from autollm_jax.models.product import product


def _attend(q_BTKGA, k_BSKA, v_BSKA, visible, dtype):
    """Score, mask, normalise (in f32) and mix the values."""
    scale = q_BTKGA.shape[-1] ** -0.5
    scores_BKGTS = product("BTKGA,BSKA->BKGTS", q_BTKGA * scale, k_BSKA, dtype)
    scores_BKGTS = jnp.where(visible, scores_BKGTS, jnp.finfo(jnp.float32).min)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1)
    return product("BKGTS,BSKA->BTKGA", weights_BKGTS, v_BSKA, dtype)


def causal_attention(q_BTHA, k_BTKA, v_BTKA, segments_BT=None, *, block: int, dtype: str):
    """Attend causally within each row.

    Queries are taken in static blocks of rows, each against the keys up to its own end, so that
    the masked half of the square is mostly never computed.

    Args:
      q_BTHA: queries, rotated.
      k_BTKA: keys, rotated.
      v_BTKA: values.
      segments_BT: tokens see only their own segment; None is one segment a row.
      block: query rows a block.
      dtype: what matrix products read.

    Returns:
      mixed_BTHA, f32.
    """
    B, T, H, A = q_BTHA.shape
    K = k_BTKA.shape[2]
    q_BTKGA = q_BTHA.reshape(B, T, K, H // K, A)
    parts = []
    for start in range(0, T, block):
        end = min(start + block, T)
        visible = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]
        visible = visible[None, None, None]
        if segments_BT is not None:
            same = segments_BT[:, start:end, None] == segments_BT[:, None, :end]
            visible = visible & same[:, None, None]
        parts.append(
            _attend(q_BTKGA[:, start:end], k_BTKA[:, :end], v_BTKA[:, :end], visible, dtype)
        )
    mixed = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
    return mixed.reshape(B, T, H, A)


def cached_attention(q_BTHA, k_BTKA, v_BTKA, positions_BT, valid_BT, cache, *, dtype: str):
    """Write new keys and values into a cache and attend to all slots up to each query's own.

    Args:
      q_BTHA: queries, rotated.
      k_BTKA: keys, rotated.
      v_BTKA: values.
      positions_BT: the slot of each token.
      valid_BT: which tokens are real; the others are not written.
      cache: {"key", "value"}, each [B, S, K, A].
      dtype: what matrix products read.

    Returns:
      mixed_BTHA (f32; meaningless for tokens that are not valid), and the updated cache.
    """
    B, T, H, A = q_BTHA.shape
    S, K = cache["key"].shape[1:3]
    rows = jnp.arange(B)[:, None]
    slots = jnp.where(valid_BT, positions_BT, S)  # slot S does not exist: such a write is dropped
    keys = cache["key"].at[rows, slots].set(k_BTKA.astype(cache["key"].dtype), mode="drop")
    values = cache["value"].at[rows, slots].set(v_BTKA.astype(cache["value"].dtype), mode="drop")
    visible_BTS = jnp.arange(S)[None, None, :] <= positions_BT[:, :, None]
    q_BTKGA = q_BTHA.reshape(B, T, K, H // K, A)
    mixed = _attend(q_BTKGA, keys, values, visible_BTS[:, None, None], dtype)
    return mixed.reshape(B, T, H, A), {"key": keys, "value": values}
