"""Attention, over whole sequences and over a KV cache, and what is done to queries and keys.

Letters: B batch, T query tokens, S key slots, H query heads, K key-value heads, G = H / K query
heads that share one, A head width.
"""

import jax
import jax.numpy as jnp

from autollm_jax.models.product import product
from autollm_jax.sharding import rows


def rotated_width(head_dim: int, fraction: float) -> int:
    """How many of a head's coordinates carry its position."""
    return 2 * round(fraction * head_dim / 2)


def rotate(x_BTHA, positions_BT, theta: float, fraction: float = 1.0, factors=()):
    """Apply rotary position embeddings to queries or keys.

    Pairs are (i, i + R/2) of the first R = fraction x A coordinates, the layout of the Llama
    family's published weights; the other coordinates compare contents at any distance (partial
    rotary embedding, as in GPT-NeoX, arXiv 2204.06745).
    """
    rotated = rotated_width(x_BTHA.shape[-1], fraction)
    x_BTHA, rest_BTHA = x_BTHA[..., :rotated], x_BTHA[..., rotated:]
    half = rotated // 2
    frequency_111h = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)[None, None, None]
    if factors:  # stretched to longer contexts than the model was first trained on
        frequency_111h = frequency_111h / jnp.array(factors, jnp.float32)[None, None, None]
    angle_BT1h = positions_BT[..., None, None].astype(jnp.float32) * frequency_111h
    cos, sin = jnp.cos(angle_BT1h), jnp.sin(angle_BT1h)
    first, second = x_BTHA[..., :half], x_BTHA[..., half:]
    parts = [first * cos - second * sin, second * cos + first * sin, rest_BTHA]
    return jnp.concatenate(parts, axis=-1)


def _attend(q_BTKGA, keys, v_BKSA, visible, dtype, layout="BKSA"):
    """Score, mask, normalise (in f32) and mix the values; `layout` is that of the keys.

    The query heads that share a key head are laid beside its queries, so that both products are
    plain matrix products per (B, K), without a change of layout between them.
    """
    B, T, K, G, A = q_BTKGA.shape
    S = v_BKSA.shape[2]
    q_BKRA = (q_BTKGA * A**-0.5).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, A)
    scores_BKRS = product(f"BKRA,{layout}->BKRS", q_BKRA, keys, dtype)
    scores_BKGTS = scores_BKRS.reshape(B, K, G, T, S)
    scores_BKGTS = jnp.where(visible, scores_BKGTS, jnp.finfo(jnp.float32).min)
    if T == 1:  # decoding: a copy of the cached values would cost more than the sum saves
        weights_BKRS = jax.nn.softmax(scores_BKGTS, axis=-1).reshape(B, K, G * T, S)
        mixed_BKRA = product("BKRS,BKSA->BKRA", weights_BKRS, v_BKSA, dtype)
    else:
        # A column of ones beside the values sums the weights in the same matrix product: summed by
        # itself, and differentiated, a row costs as much again on a CPU.
        top_BKGT1 = jax.lax.stop_gradient(scores_BKGTS.max(-1, keepdims=True))
        weights_BKRS = jnp.exp(scores_BKGTS - top_BKGT1).reshape(B, K, G * T, S)
        v_BKSA = jnp.concatenate([v_BKSA, jnp.ones_like(v_BKSA[..., :1])], axis=-1)
        mixed_BKRA = product("BKRS,BKSA->BKRA", weights_BKRS, v_BKSA, dtype)
        mixed_BKRA = mixed_BKRA[..., :A] / mixed_BKRA[..., A:]
    return mixed_BKRA.reshape(B, K, G, T, A).transpose(0, 3, 1, 2, 4)


def short_convolution(x_BTNA, past_BPNA, positions_BT, taps_WNA):
    """Mix each query or key with those just before it in its sequence, coordinate by coordinate.

    A query can then look for what follows not a token but a run of tokens, so that one layer copies
    what follows a phrase: without this it takes two, the first of which learns to hand each token
    its predecessors. A depthwise causal convolution, as in Hyena (arXiv 2302.10866) and Gated
    DeltaNet (2412.06464), but without an activation, behind norm and rotation, and not of values.

    Args:
      x_BTNA: queries or keys of N heads.
      past_BPNA: the P = W - 1 before the first of them; not read where that begins a sequence.
      positions_BT: position of each in its own sequence.
      taps_WNA: weights, the tap of the token itself first, then of the one before, and so on.
    """
    T, P = x_BTNA.shape[1], past_BPNA.shape[1]
    taps_W11NA = taps_WNA[:, None, None]
    whole_BSNA = jnp.concatenate([past_BPNA.astype(x_BTNA.dtype), x_BTNA], axis=1)
    mixed_BTNA = x_BTNA * taps_W11NA[0]
    for back in range(1, P + 1):
        earlier_BTNA = whole_BSNA[:, P - back : P - back + T]
        there_BT11 = (positions_BT >= back)[..., None, None]
        mixed_BTNA += jnp.where(there_BT11, earlier_BTNA * taps_W11NA[back], 0.0)
    return mixed_BTNA


def shift_past(past_BPNA, x_BTNA, valid_BT):
    """Return each row's last P queries or keys, its valid ones (which come first) included."""
    P = past_BPNA.shape[1]
    whole_BSNA = jnp.concatenate([past_BPNA, x_BTNA.astype(past_BPNA.dtype)], axis=1)
    last_BP = valid_BT.sum(axis=1)[:, None] + jnp.arange(P)[None, :]
    return jnp.take_along_axis(whole_BSNA, last_BP[:, :, None, None], axis=1)


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
    k_BKTA, v_BKTA = k_BTKA.swapaxes(1, 2), v_BTKA.swapaxes(1, 2)
    parts = []
    for start in range(0, T, block):
        end = min(start + block, T)
        visible = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]
        visible = visible[None, None, None]
        if segments_BT is not None:
            same = segments_BT[:, start:end, None] == segments_BT[:, None, :end]
            visible = visible & same[:, None, None]
        parts.append(
            _attend(q_BTKGA[:, start:end], k_BKTA[:, :, :end], v_BKTA[:, :, :end], visible, dtype)
        )
    mixed = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
    return mixed.reshape(B, T, H, A)


def cached_attention(q_BTHA, k_BTKA, v_BTKA, positions_BT, valid_BT, cache):
    """Write new keys and values into a cache and attend to all slots up to each query's own.

    Args:
      q_BTHA: queries, rotated.
      k_BTKA: keys, rotated.
      v_BTKA: values.
      positions_BT: the slot of each token.
      valid_BT: which tokens are real; the others are not written.
      cache: {"key": [B, K, A, S], "value": [B, K, S, A]}, as the two products read them: any other
        order is copied at every token; what else is in it stays. Products read its dtype.

    Returns:
      mixed_BTHA (f32; meaningless for tokens that are not valid), and the updated cache.
    """
    B, T, H, A = q_BTHA.shape
    K, S = cache["value"].shape[1:3]
    slots = jnp.where(valid_BT, positions_BT, S)  # slot S does not exist: such a write is dropped
    k_BKAS = rows.write(cache["key"], slots, k_BTKA.transpose(0, 2, 3, 1), axis=3)
    v_BKSA = rows.write(cache["value"], slots, v_BTKA.swapaxes(1, 2), axis=2)
    visible_BTS = jnp.arange(S)[None, None, :] <= positions_BT[:, :, None]
    q_BTKGA = q_BTHA.reshape(B, T, K, H // K, A)
    mixed = _attend(q_BTKGA, k_BKAS, v_BKSA, visible_BTS[:, None, None], k_BKAS.dtype.name, "BKAS")
    return mixed.reshape(B, T, H, A), {**cache, "key": k_BKAS, "value": v_BKSA}
