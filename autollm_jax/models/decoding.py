"""The transformer over a cache of keys and values: tokens are appended to sequences it has read."""

import functools

import jax
import jax.numpy as jnp

from autollm_jax.models.attention import SLOT_AXIS
from autollm_jax.models.config import LORA_IN, LORA_OUT, MATRICES, TransformerConfig, axes_of
from autollm_jax.models.transformer import Block, Transformer
from autollm_jax.sharding.rules import constrain, whole_over_fsdp


def init_cache(config: TransformerConfig, batch: int, length: int):
    """Make an empty KV cache for `batch` rows of at most `length` tokens.

    There is one entry per layer, so that a decoding loop updates each in place. An entry has keys
    and values as `cached_attention` takes them; `config.slots_first` chooses the order.
    """
    B, K, A, S = batch, config.kv_heads, config.head_dim, length
    dtype = jnp.dtype(config.cache_dtype or config.dtype)
    shapes = {"key": (B, K, A, S), "value": (B, K, S, A)}
    if config.slots_first:
        shapes = dict.fromkeys(("key_by_slot", "value_by_slot"), (B, S, K, A))
    if config.short_conv:
        for name, count in (("past_query", config.heads), ("past_key", config.kv_heads)):
            shapes[name] = (batch, config.short_conv - 1, count, config.head_dim)
    return tuple(
        {name: jnp.zeros(shape, dtype) for name, shape in shapes.items()}
        for _ in range(config.layers)
    )


def _rounded(config: TransformerConfig, path, leaf):
    """Return a parameter in type `dtype` where the model reads it in no other."""
    # A table that tokens are looked up in keeps the type of the residual stream.
    alone = {*MATRICES, "unembedding", *(["embedding"] if config.stream == config.dtype else [])}
    name = path[-1].key.removesuffix(LORA_IN).removesuffix(LORA_OUT)
    return leaf.astype(config.dtype) if name in alone else leaf


def slot_count(cache) -> int:
    """Return the length of a cache."""
    name = next(name for name in cache[0] if name in SLOT_AXIS)
    return cache[0][name].shape[SLOT_AXIS[name]]


def lengthened(cache, length: int):
    """Return a cache with empty slots behind its own."""

    def longer(name, x):
        if name not in SLOT_AXIS:
            return x
        more = [(0, 0)] * x.ndim
        more[SLOT_AXIS[name]] = (0, length - x.shape[SLOT_AXIS[name]])
        return jnp.pad(x, more)

    return tuple({name: longer(name, x) for name, x in layer.items()} for layer in cache)


@functools.partial(jax.jit, static_argnames="config")
def rounded(config: TransformerConfig, params):
    """Return parameters for a policy that is not trained: matrices have type `dtype`."""
    return jax.tree_util.tree_map_with_path(functools.partial(_rounded, config), params)


@functools.partial(jax.jit, static_argnames="config")
def for_decoding(config: TransformerConfig, params):
    """Return parameters for many calls of `extend`: a tuple of layers; matrices have type `dtype`.

    Otherwise each call would slice the layers out of the stacked arrays again. Matrices have their
    contracted axes last, as a CPU's kernels want them where rows are few. On a mesh every
    parameter is whole over `fsdp` and stays split over `tensor`; a decoding loop would gather the
    shards again at every token. Parameters that are in this form already are returned unchanged.
    """
    if isinstance(params["layers"], tuple):
        return params

    def laid_out(path, leaf):
        axes = whole_over_fsdp(axes_of(path[-1].key))
        return constrain(_rounded(config, path, leaf), *axes, always=True)

    def cut(path, leaf, layer):
        leaf, contract = laid_out(path, leaf[layer]), MATRICES.get(path[-1].key, 0)
        return leaf.transpose(*range(contract, leaf.ndim), *range(contract))

    layers = tuple(
        jax.tree_util.tree_map_with_path(functools.partial(cut, layer=layer), params["layers"])
        for layer in range(config.layers)
    )
    others = {name: leaf for name, leaf in params.items() if name != "layers"}
    return {**jax.tree_util.tree_map_with_path(laid_out, others), "layers": layers}


def extend(config: TransformerConfig, params, tokens_BC, lengths_B, start_B, cache, last=False):
    """Append tokens to each row of a batch and return their logits.

    The first `lengths_B[b]` tokens of row b are real and have positions start_B[b], start_B[b] + 1,
    ... in the row's sequence. The rest is padding: it is not written, and no real token attends to
    it.

    Args:
      config: the model.
      params: from `init` or `for_decoding`.
      tokens_BC: the new tokens.
      lengths_B: number of real tokens per row (0 is allowed).
      start_B: number of tokens in each row's cache before the call.
      cache: from `init_cache`; a position is a slot.
      last: return only the logits of each row's last real token, [B, V].

    Returns:
      logits_BCV (f32), and the updated cache.
    """
    offsets_C = jnp.arange(tokens_BC.shape[1])
    positions_BC = start_B[:, None] + offsets_C[None, :]
    valid_BC = offsets_C[None, :] < lengths_B[:, None]
    model, block = Transformer(config), Block(config, outputs_first=True)
    params = for_decoding(config, params)
    variables, turns = {"params": params}, config.rotations(positions_BC)
    x_BCD = model.apply(variables, tokens_BC, method=Transformer.embed)
    updated = []
    # The loop is unrolled because a scan over layers would copy every layer's cache at every token.
    for weights, entry in zip(params["layers"], cache, strict=True):
        x_BCD, entry = block.apply(
            {"params": weights}, x_BCD, positions_BC, turns, None, entry, valid_BC
        )
        updated.append(entry)
    if last:
        index = jnp.maximum(lengths_B - 1, 0)[:, None, None]
        x_BCD = jnp.take_along_axis(x_BCD, index, axis=1)
    logits_BCV = model.apply(variables, x_BCD, method=Transformer.logits)
    return (logits_BCV[:, 0] if last else logits_BCV), tuple(updated)
