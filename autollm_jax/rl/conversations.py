"""The state of a batch of conversations: its fields, their layout on devices, the cache's growth.

Other packages import it through `sampler.py`, which adds tokens to it.

Letters: B rows, S slots of the context, V vocabulary.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from autollm_jax.models.decoding import init_cache, lengthened, slot_count
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.sharding.hosts import to_devices
from autollm_jax.sharding.rules import constrain, partition_spec


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Sizes that the sampler compiles for.

    context: the most tokens that a row holds.
    cache_block: the KV cache grows by so many slots at a time, since a token costs as much as the
      cache that it reads. Each size compiles once.
    cache_doubling: it grows to twice its size instead: fewer sizes, larger ones on average.
    chunk_sizes: rising widths that appended chunks are padded to. A chunk longer than the last
      width is appended in several steps.
    """

    context: int
    cache_block: int = 256
    chunk_sizes: tuple[int, ...] = (160,)
    cache_doubling: bool = False

    @property
    def capacities(self) -> tuple[int, ...]:
        """The cache's sizes, rising."""
        sizes = [min(self.cache_block, self.context)]
        while sizes[-1] < self.context:
            more = sizes[-1] if self.cache_doubling else self.cache_block
            sizes.append(min(sizes[-1] + more, self.context))
        return tuple(sizes)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplerState:
    """Conversations in progress.

    tokens_BS: i32; the row's first length_B tokens are real, the others are 0.
    turns_BS: i32, the turn (from 0 in each row) in which a token was sampled; -1 for the
      environment's tokens and for padding.
    logprobs_BS: f32, log-probability of each sampled token under the distribution that it was drawn
      from: logits / temperature (logits alone in greedy decoding), renormalised over the tokens
      that a grammar allows; 0 elsewhere.
    length_B: i32, tokens in the row.
    turn_B: i32, turns generated so far.
    stopped_B: bool, whether the last generated turn ended with the stop token.
    truncated_B: bool, whether the row ran out of context; then it takes no further turn.
    seeds_B: u32, the key of the row's randomness.
    logits_BV: f32, logits of the next token.
    cache: the model's KV cache, at most S slots.
    """

    tokens_BS: jax.Array
    turns_BS: jax.Array
    logprobs_BS: jax.Array
    length_B: jax.Array
    turn_B: jax.Array
    stopped_B: jax.Array
    truncated_B: jax.Array
    seeds_B: jax.Array
    logits_BV: jax.Array
    cache: tuple

    @property
    def loss_mask_BS(self) -> jax.Array:
        """True on the tokens that the policy sampled."""
        return self.turns_BS >= 0


def init_state(
    model: TransformerConfig,
    config: SamplerConfig,
    seeds_B: Sequence[int],
    mesh: Mesh | None = None,
) -> SamplerState:
    """Make empty conversations, one for each seed.

    Args:
      model: the policy's shape.
      config: the sampler's sizes.
      seeds_B: one number a row. A row's samples depend on the key, its seed and its own tokens, not
        on the rows beside it; rows with equal seeds and tokens get equal samples.
      mesh: if given, rows are split over its `data` and `fsdp` axes, whose product must divide
        their number; `append` and `generate` are then called under `jax.set_mesh(mesh)`.
    """
    on_mesh = contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)
    with on_mesh:
        return _jit_empty(model, config, np.asarray(seeds_B, np.uint32))


def abstract_state(
    model: TransformerConfig, config: SamplerConfig, rows: int, mesh: Mesh
) -> SamplerState:
    """Shapes, dtypes and shardings of empty conversations."""
    shapes = jax.eval_shape(lambda: empty(model, config, np.zeros(rows, np.uint32)))
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jax.ShapeDtypeStruct(
            x.shape,
            x.dtype,
            sharding=NamedSharding(mesh, partition_spec(_axes(path, x), x.shape, mesh)),
        ),
        shapes,
    )


def empty(model: TransformerConfig, config: SamplerConfig, seeds_B: jax.Array) -> SamplerState:
    """Make empty conversations inside a traced function; elsewhere call `init_state`."""
    B, S = len(seeds_B), config.context
    zeros_B = jnp.zeros((B,), jnp.int32)
    return SamplerState(
        tokens_BS=jnp.zeros((B, S), jnp.int32),
        turns_BS=jnp.full((B, S), -1, jnp.int32),
        logprobs_BS=jnp.zeros((B, S), jnp.float32),
        length_B=zeros_B,
        turn_B=zeros_B,
        stopped_B=zeros_B > 0,
        truncated_B=zeros_B > 0,
        seeds_B=jnp.asarray(seeds_B),
        logits_BV=jnp.zeros((B, model.vocab_size), jnp.float32),
        cache=init_cache(model, B, min(config.cache_block, S)),
    )


@functools.partial(jax.jit, static_argnames=("model", "config"))
def _jit_empty(model, config, seeds_B):
    return pin(empty(model, config, seeds_B))


def _axes(path, leaf) -> tuple[str | None, ...]:
    """Name the logical axes of a leaf of the state."""
    if path[0].name == "logits_BV":
        return ("batch", "vocab")
    if path[0].name == "cache":
        heads = "heads" if path[-1].key == "past_query" else "kv_heads"
        heads_first = path[-1].key in ("key", "value")
        return ("batch", heads, None, None) if heads_first else ("batch", None, heads, None)
    return ("batch", *(None,) * (leaf.ndim - 1))


def pin(state: SamplerState) -> SamplerState:
    """Keep the state's layout on a mesh; another layout would compile every program anew."""
    return jax.tree_util.tree_map_with_path(lambda p, x: constrain(x, *_axes(p, x)), state)


def repeat(state: SamplerState, times: int, seeds_B: Sequence[int]) -> SamplerState:
    """Copy each row `times` times, copies side by side, under new seeds [B * times].

    The samples of one group read their prompt once: append it to one row, then repeat the row.
    """
    copied = _repeat(state, times)
    seeds_B = to_devices(np.asarray(seeds_B, np.uint32), copied.seeds_B.sharding)
    return dataclasses.replace(copied, seeds_B=seeds_B)


@functools.partial(jax.jit, static_argnames="times")
def _repeat(state, times):
    return pin(jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=0), state))


@functools.partial(jax.jit, donate_argnames="state")
def renew(state: SamplerState, fresh_B, seeds_B) -> SamplerState:
    """Empty some rows, for other conversations under the seeds given for them.

    Their part of the cache stays as it is: what a row has not written, it does not read.
    """

    def cleared(x, empty):
        return jnp.where(fresh_B.reshape(-1, *(1,) * (x.ndim - 1)), empty, x)

    names = ("tokens_BS", "logprobs_BS", "length_B", "turn_B", "stopped_B", "truncated_B")
    values = {name: cleared(getattr(state, name), 0).astype(getattr(state, name).dtype)
              for name in (*names, "logits_BV")}  # fmt: skip
    values["turns_BS"] = cleared(state.turns_BS, -1)
    values["seeds_B"] = jnp.where(fresh_B, seeds_B, state.seeds_B)
    return pin(dataclasses.replace(state, **values))


@functools.partial(jax.jit, static_argnames="times", donate_argnames="state")
def share(state: SamplerState, fresh_B, times: int) -> SamplerState:
    """Copy the first of each group of `times` neighbours to its others, where these are fresh."""

    def copied(x):
        groups = x.reshape(-1, times, *x.shape[1:])
        first = jnp.broadcast_to(groups[:, :1], groups.shape).reshape(x.shape)
        return jnp.where(fresh_B.reshape(-1, *(1,) * (x.ndim - 1)), first, x)

    shared = jax.tree.map(copied, dataclasses.replace(state, seeds_B=()))
    return pin(dataclasses.replace(shared, seeds_B=state.seeds_B))


def grow(state: SamplerState, needed: int, config: SamplerConfig) -> SamplerState:
    """Lengthen the cache to the least of its sizes that has `needed` slots."""
    if needed <= slot_count(state.cache):
        return state
    return jit_grow(state, next((c for c in config.capacities if c >= needed), config.context))


@functools.partial(jax.jit, static_argnames="capacity")
def jit_grow(state: SamplerState, capacity: int) -> SamplerState:
    """Lengthen the cache to `capacity` slots."""
    return pin(dataclasses.replace(state, cache=lengthened(state.cache, capacity)))
