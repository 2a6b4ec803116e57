"""Attention over whole sequences and over a KV cache; rotations and convolutions before it.

Letters: B batch, T query tokens, S key slots, H query heads, K key-value heads, G = H / K query
heads per key-value head, A head width.
"""

import jax
import jax.numpy as jnp

from autollm_jax.models.product import product
from autollm_jax.sharding import rows

FEW = 8  # queries that a pass of decoding has at most, with its drafts
# The entries of a layer's cache that have slots, and the place of the slots among their axes.
SLOT_AXIS = {"key": 3, "value": 2, "key_by_slot": 1, "value_by_slot": 1}


def rotated_width(head_dim: int, fraction: float) -> int:
    """Return the number of a head's coordinates that are rotated by the position."""
    return 2 * round(fraction * head_dim / 2)


def rotations(positions_BT, head_dim: int, theta: float, fraction: float = 1.0, factors=()):
    """Return cosine and sine by which `rotate` turns each coordinate of a head.

    All layers share them, so that a step computes them once.

    Args:
      positions_BT: position of each token in its own sequence; one row may stand for all.
      head_dim: coordinates of a head, A.
      theta: base of the frequencies.
      fraction: share of the head's coordinates that is rotated. The others compare contents at any
        distance (partial rotary embedding, as in GPT-NeoX, arXiv 2204.06745).
      factors: divisor of each of the R/2 frequencies; empty for none.

    Returns:
      cos_BT1A and sin_BT1A, f32; the sine has the sign of its coordinate's place in the pair.
      Coordinates that are not rotated have cosine 1 and sine 0.
    """
    half = rotated_width(head_dim, fraction) // 2
    frequency_111h = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)[None, None, None]
    if factors:  # lower frequencies, for longer contexts than the first training had
        frequency_111h = frequency_111h / jnp.array(factors, jnp.float32)[None, None, None]
    angle_BT1h = positions_BT[..., None, None].astype(jnp.float32) * frequency_111h
    cos_BT1h, sin_BT1h = jnp.cos(angle_BT1h), jnp.sin(angle_BT1h)
    still_BT1a = jnp.zeros((*angle_BT1h.shape[:-1], head_dim - 2 * half), jnp.float32)
    cos_BT1A = jnp.concatenate([cos_BT1h, cos_BT1h, still_BT1a + 1], axis=-1)
    return cos_BT1A, jnp.concatenate([-sin_BT1h, sin_BT1h, still_BT1a], axis=-1)


def rotate(x_BTHA, cos_BT1A, sin_BT1A, fraction: float = 1.0):
    """Apply rotary position embeddings (arXiv 2104.09864) to queries or keys.

    Pairs are (i, i + R/2) of the first R coordinates, the layout of the Llama family's published
    weights.

    Args:
      x_BTHA: queries or keys.
      cos_BT1A, sin_BT1A: from `rotations`.
      fraction: as there.

    Returns:
      The rotated queries or keys, of the same shape.
    """
    width = rotated_width(x_BTHA.shape[-1], fraction)
    half = width // 2

    def joined_sums(x_BTHA, cos_BT1A, sin_BT1A):
        first, second, rest = jnp.split(x_BTHA, [half, width], axis=-1)
        cos, sin = cos_BT1A[..., :half], sin_BT1A[..., half:width]
        return jnp.concatenate(
            [first * cos - second * sin, second * cos + first * sin, rest], axis=-1
        )

    def sum_of_joined(x_BTHA, cos_BT1A, sin_BT1A):
        # Joining sums is slow on a CPU; joining parts of an array is not. A TPU's update of
        # Qwen3-4B takes more cycles so (docs/performance.md).
        first, second, rest = jnp.split(x_BTHA, [half, width], axis=-1)
        partner_BTHA = jnp.concatenate([second, first, rest], axis=-1)
        return x_BTHA * cos_BT1A + partner_BTHA * sin_BT1A

    return jax.lax.platform_dependent(
        x_BTHA, cos_BT1A, sin_BT1A, cpu=sum_of_joined, default=joined_sums
    )


def _attend(q_BTKGA, keys, values, visible, dtype, orders=("BKSA", "BKSA")):
    """Compute masked attention with an f32 softmax; `orders` are the axes of keys and of values.

    The G query heads of a key-value head are joined with the T axis, so that both products are
    plain matrix products per (B, K), without a change of layout between them.
    """
    B, T, K, G, A = q_BTKGA.shape
    of_keys, of_values = orders
    S = values.shape[of_values.index("S")]
    q_BKRA = (
        (q_BTKGA.astype(jnp.float32) * A**-0.5).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, A)
    )
    scores_BKRS = product(f"BKRA,{of_keys}->BKRS", q_BKRA, keys, dtype)
    scores_BKGTS = scores_BKRS.reshape(B, K, G, T, S)
    scores_BKGTS = jnp.where(visible, scores_BKGTS, jnp.finfo(jnp.float32).min)
    if T <= FEW:  # as in decoding: a copy of the cached values would cost more than the sum saves
        weights_BKRS = jax.nn.softmax(scores_BKGTS, axis=-1).reshape(B, K, G * T, S)
        mixed_BKRA = product(f"BKRS,{of_values}->BKRA", weights_BKRS, values, dtype)
    else:
        # A column of ones beside the values sums the weights in the same matrix product. On a CPU a
        # separate sum and its gradient would double the cost.
        top_BKGT1 = jax.lax.stop_gradient(scores_BKGTS.max(-1, keepdims=True))
        weights_BKRS = jnp.exp(scores_BKGTS - top_BKGT1).reshape(B, K, G * T, S)
        values = jnp.concatenate([values, jnp.ones_like(values[..., :1])], axis=-1)
        mixed_BKRA = product(f"BKRS,{of_values}->BKRA", weights_BKRS, values, dtype)
        mixed_BKRA = mixed_BKRA[..., :A] / mixed_BKRA[..., A:]
    return mixed_BKRA.reshape(B, K, G, T, A).transpose(0, 3, 1, 2, 4)


def short_convolution(x_BTNA, past_BPNA, positions_BT, taps_WNA):
    """Convolve queries or keys with W taps along the sequence, each coordinate by itself.

    With the convolution a query matches a run of tokens instead of one token, so that one layer can
    copy the token after a phrase. Without it two layers are needed: the first learns to pass each
    token's predecessors on. The convolution is depthwise and causal, as in Hyena (arXiv 2302.10866)
    and Gated DeltaNet (2412.06464), but has no activation, follows norm and rotation, and leaves
    the values alone.

    Args:
      x_BTNA: queries or keys of N heads.
      past_BPNA: the P = W - 1 queries or keys before the first of x_BTNA; not read for tokens that
        precede the start of a sequence.
      positions_BT: position of each token in its own sequence.
      taps_WNA: weights; tap w belongs to the token w places back.

    Returns:
      The convolved queries or keys, of the shape of x_BTNA.
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
    """Return each row's last P queries or keys: of past_BPNA, then the valid ones of x_BTNA."""
    P = past_BPNA.shape[1]
    whole_BSNA = jnp.concatenate([past_BPNA, x_BTNA.astype(past_BPNA.dtype)], axis=1)
    last_BP = valid_BT.sum(axis=1)[:, None] + jnp.arange(P)[None, :]
    return jnp.take_along_axis(whole_BSNA, last_BP[:, :, None, None], axis=1)


def attend_in_blocks(q_BTHA, k_BTKA, v_BTKA, segments_BT=None, *, block: int, dtype: str):
    """Attend causally within each row.

    Queries are processed in static blocks; each block reads the keys up to the block's end. Most of
    the masked half of the score matrix is therefore never computed.

    Args:
      q_BTHA: queries, rotated.
      k_BTKA: keys, rotated.
      v_BTKA: values.
      segments_BT: a token attends only within its segment; None for one segment per row.
      block: queries per block.
      dtype: type of the matrix products' operands.

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
      valid_BT: whether each token is real; padding is not written.
      cache: {"key": [B, K, A, S], "value": [B, K, S, A]}, or {"key_by_slot": [B, S, K, A],
        "value_by_slot": [B, S, K, A]}; other entries are passed on. The first order is that of the
        two products, since a CPU would copy any other at every token; the second that in which a
        TPU writes slots, since it would copy any other before and after each call. Operands of the
        products have the cache's dtype.

    Returns:
      mixed_BTHA (f32; meaningless for tokens that are not valid), and the updated cache.
    """
    B, T, H, A = q_BTHA.shape
    K = k_BTKA.shape[2]
    if "key" in cache:
        names, orders = ("key", "value"), ("BKAS", "BKSA")
        new = k_BTKA.transpose(0, 2, 3, 1), v_BTKA.swapaxes(1, 2)
    else:
        names, orders, new = ("key_by_slot", "value_by_slot"), ("BSKA", "BSKA"), (k_BTKA, v_BTKA)
    S = cache[names[1]].shape[SLOT_AXIS[names[1]]]
    slots = jnp.where(valid_BT, positions_BT, S)  # slot S does not exist: such a write is dropped
    keys, values = (
        rows.write(cache[name], slots, each, axis=SLOT_AXIS[name])
        for name, each in zip(names, new, strict=True)
    )
    visible_BTS = jnp.arange(S)[None, None, :] <= positions_BT[:, :, None]
    q_BTKGA = q_BTHA.reshape(B, T, K, H // K, A)
    visible, dtype = visible_BTS[:, None, None], keys.dtype.name
    mixed = _attend(q_BTKGA, keys, values, visible, dtype, orders)
    return mixed.reshape(B, T, H, A), cache | dict(zip(names, (keys, values), strict=True))
