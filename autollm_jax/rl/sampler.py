"""A batched multi-turn sampler: tokens in, tokens out.

A row of `SamplerState` (`conversations.py`) is a conversation. `append` adds the environment's
tokens, `generate` the policy's. A row's tokens are never encoded again, so training reads the
tokens that were sampled; log-probabilities are recorded as tokens are drawn. A `Grammar`
(`grammar.py`) limits the tokens of a turn at each step.

The compiled programs are `jit_append`, `jit_decode` and `jit_grow`; `planning` compiles them too.

Letters: B rows, S slots of the context, C tokens of a chunk, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from autollm_jax.models import transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl import grammar as grammars
from autollm_jax.rl.conversations import (
    SamplerConfig,
    SamplerState,
    abstract_state,
    empty,
    grow,
    init_state,
    jit_grow,
    pin,
    repeat,
)
from autollm_jax.rl.grammar import Grammar
from autollm_jax.sharding import rows
from autollm_jax.sharding.hosts import to_devices, to_host
from autollm_jax.sharding.rules import constrain

__all__ = [
    "SamplerConfig",
    "SamplerState",
    "Taking",
    "TurnConfig",
    "abstract_state",
    "append",
    "generate",
    "init_state",
    "jit_append",
    "jit_decode",
    "jit_grow",
    "repeat",
    "single_turn",
]


@dataclasses.dataclass(frozen=True)
class TurnConfig:
    """How the policy takes a turn.

    stop_id: the token that ends a turn.
    max_new_tokens: the most tokens of a turn.
    temperature: logits are divided by it; the number 0 takes the likeliest token. `single_turn`
      takes a traced one too, over 0.
    """

    stop_id: int
    max_new_tokens: int
    temperature: float | jax.Array = 1.0

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return not isinstance(self.temperature, jax.Array) and self.temperature == 0

    @property
    def divisor(self):
        """The number that logits are divided by."""
        return 1.0 if self.greedy else self.temperature


def single_turn(
    model: TransformerConfig,
    params,
    config: SamplerConfig,
    seeds_B: jax.Array,
    key: jax.Array,
    prompt_BC: jax.Array,
    prompt_length_B: jax.Array,
    turn: TurnConfig,
) -> SamplerState:
    """Answer prompts in one turn each, fully traced: a sweep maps it over runs.

    Its parts are those of `append` and `generate`, which grow the cache between compiled calls;
    here the cache has its full length from the start.

    Args:
      model: the policy's shape.
      params: the policy's parameters.
      config: `context` has to hold prompt and answer, and is the cache's length.
      seeds_B: one number a row.
      key: randomness, as in `generate`.
      prompt_BC: token ids; row b's first prompt_length_B[b] are real.
      prompt_length_B: at least 1.
      turn: how to answer; its temperature may be traced.
    """
    whole = dataclasses.replace(config, cache_block=config.context)
    state = jit_append(model, params, empty(model, whole, seeds_B), prompt_BC, prompt_length_B)
    limit_B = jnp.minimum(prompt_length_B + turn.max_new_tokens, config.context)
    rows_taking = Taking(jnp.ones(len(seeds_B), bool), limit_B)
    state = _begin_turn(state, rows_taking.going_B, limit_B)
    state, _ = jit_decode(
        model, params, state, key, rows_taking, turn.stop_id, turn.divisor, greedy=turn.greedy
    )
    return _end_turn(state, state.length_B >= config.context)


def append(
    model: TransformerConfig,
    params,
    config: SamplerConfig,
    state: SamplerState,
    chunks: Sequence[Sequence[int]],
) -> SamplerState:
    """Add the environment's tokens to each row.

    Args:
      model: the policy's shape.
      params: the policy's parameters.
      config: the sampler's sizes.
      state: consumed (its buffers are reused).
      chunks: token ids for each row; an empty chunk leaves its row unchanged. A row without room
        for its chunk stays unchanged and is flagged truncated.

    Raises:
      ValueError: if there is not one chunk for each row.
    """
    # Copies, since the state's buffers are about to be reused.
    held_B, truncated_B = to_host((state.length_B, state.truncated_B))
    if len(chunks) != len(held_B):
        raise ValueError(f"{len(chunks)} chunks for {len(held_B)} rows")
    left_B = np.array([len(chunk) for chunk in chunks], np.int32)
    full_B = held_B + left_B > config.context
    if (full_B & ~truncated_B).any():
        flags = to_devices(truncated_B | full_B, state.truncated_B.sharding)
        state = dataclasses.replace(state, truncated_B=flags)
    left_B[full_B | truncated_B] = 0
    done_B = np.zeros_like(left_B)
    while left_B.any():
        width = next((c for c in config.chunk_sizes if c >= left_B.max()), config.chunk_sizes[-1])
        take_B = np.minimum(left_B, width)
        tokens_BC = np.zeros((len(chunks), width), np.int32)
        for row, (chunk, done, new) in enumerate(zip(chunks, done_B, take_B, strict=True)):
            tokens_BC[row, :new] = chunk[done : done + new]
        state = grow(state, int((held_B + done_B + take_B).max()), config)
        state = jit_append(model, params, state, tokens_BC, take_B)
        done_B, left_B = done_B + take_B, left_B - take_B
    return state


@functools.partial(jax.jit, static_argnames="model", donate_argnames="state")
def jit_append(model: TransformerConfig, params, state: SamplerState, tokens_BC, take_B):
    """Add the first take_B[b] tokens of each row of a chunk, one width of it."""
    B, C = tokens_BC.shape
    S = state.tokens_BS.shape[1]
    offsets_BC = jnp.broadcast_to(jnp.arange(C), (B, C))
    slots_BC = jnp.where(
        offsets_BC < take_B[:, None], state.length_B[:, None] + offsets_BC, S
    )  # slot S does not exist: such a write is dropped
    logits_BV, cache = transformer.extend(
        model, params, tokens_BC, take_B, state.length_B, state.cache, last=True
    )
    state = dataclasses.replace(
        state,
        tokens_BS=rows.write(state.tokens_BS, slots_BC, tokens_BC),
        length_B=state.length_B + take_B,
        logits_BV=jnp.where(take_B[:, None] > 0, logits_BV, state.logits_BV),
        cache=cache,
    )
    return pin(state)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Taking:
    """Rows that are taking a turn.

    going_B: bool, whether the row's turn goes on.
    limit_B: i32, the row's length at which it ends at the latest.
    node_B: i32, the row's node in the grammar; None without a grammar.
    grammar: the tokens that each row may say; None for any.
    """

    going_B: jax.Array
    limit_B: jax.Array
    node_B: jax.Array | None = None
    grammar: Grammar | None = None


def generate(
    model: TransformerConfig,
    params,
    config: SamplerConfig,
    state: SamplerState,
    key: jax.Array,
    turn: TurnConfig,
    active_B: Sequence[bool] | None = None,
    grammar: Grammar | None = None,
) -> SamplerState:
    """Let the policy take one turn in each active row; the other rows do not change.

    A turn ends with the stop token (kept in the row), after `turn.max_new_tokens`, or at the end of
    the context (then the row is flagged truncated).

    Under a grammar a turn always ends as the grammar says: free text is closed while the longest
    ending still fits, and a turn gets more than `max_new_tokens` where an ending alone takes more.
    A row whose context has no room for an ending says nothing and is flagged truncated.

    Args:
      model: the policy's shape.
      params: the policy's parameters.
      config: the sampler's sizes.
      state: consumed (its buffers are reused).
      key: randomness, combined with each row's seed and each token's position; one key serves all
        turns of a conversation.
      turn: stop token, most tokens and temperature.
      active_B: rows that take a turn, all by default. Truncated rows never do.
      grammar: the tokens that each row may say; any by default. The same noise is drawn with a
        grammar and without, so a turn that stays within it is the same.

    Raises:
      ValueError: if an active row is empty, so that there is nothing to continue.
    """
    # Copies, since the state's buffers are about to be reused.
    length_B, truncated_B = to_host((state.length_B, state.truncated_B))
    active_B = np.ones(len(length_B), bool) if active_B is None else np.asarray(active_B, bool)
    starts_B = active_B & ~truncated_B
    if (length_B[starts_B] == 0).any():
        raise ValueError("generate: an active row is empty; append its prompt first")
    shortest_B = np.zeros_like(length_B) if grammar is None else grammar.shortest_B
    limit_B = np.minimum(length_B + np.maximum(turn.max_new_tokens, shortest_B), config.context)
    limit_B = np.where(length_B + shortest_B > limit_B, length_B, limit_B).astype(np.int32)
    state = _begin_turn(state, starts_B, limit_B)
    going_B = began_B = starts_B & (length_B < limit_B)
    node_B = None if grammar is None else np.array(grammar.base_B)
    while going_B.any():
        state = grow(state, int(length_B[going_B].max()) + 1, config)
        taking = Taking(going_B, limit_B, node_B, grammar)
        state, taking = jit_decode(
            model, params, state, key, taking, turn.stop_id, turn.divisor, greedy=turn.greedy
        )
        going_B, length_B = to_host((taking.going_B, state.length_B))
        node_B = None if grammar is None else to_host(taking.node_B)
    return _end_turn(state, began_B & ~going_B & (length_B >= config.context))


@functools.partial(jax.jit, donate_argnames="state")
def _begin_turn(state, going_B, limit_B):
    """Count the turn; its tokens are numbered turn_B - 1."""
    state = dataclasses.replace(
        state,
        turn_B=state.turn_B + going_B,
        stopped_B=state.stopped_B & ~going_B,
        truncated_B=state.truncated_B | (going_B & (state.length_B >= limit_B)),
    )
    return pin(state)


@functools.partial(jax.jit, donate_argnames="state")
def _end_turn(state, full_B):
    """Flag rows that filled their context before they stopped."""
    truncated_B = state.truncated_B | (full_B & ~state.stopped_B)
    return pin(dataclasses.replace(state, truncated_B=truncated_B))


def _likeliest(scores_BV):
    """Return each row's first largest place, as argmax does; four times as fast on a CPU."""
    V = scores_BV.shape[1]
    top_B1 = scores_BV.max(axis=1, keepdims=True)
    places_BV = jnp.where(scores_BV == top_B1, jnp.arange(V, dtype=jnp.int32), V - 1)
    return places_BV.min(axis=1)


def _limited(logits_BV, grammar: Grammar, node_B, left_B, going_B):
    """Set the logits of tokens that the grammar forbids to -inf, in rows whose turn goes on.

    Returns:
      logits_BV, and the nodes' edges token_BK and child_BK.
    """
    token_BK, child_BK = grammars.edges(grammar, node_B)
    may_BV = grammars.allowed(grammar, node_B, token_BK, left_B)
    # A model may have more rows than its vocabulary has tokens.
    beyond = logits_BV.shape[1] - may_BV.shape[1]
    may_BV = jnp.pad(may_BV, ((0, 0), (0, beyond))) | ~going_B[:, None]
    logits_BV = jnp.where(constrain(may_BV, "batch", "vocab"), logits_BV, -jnp.inf)
    return logits_BV, token_BK, child_BK


@functools.partial(jax.jit, static_argnames=("model", "greedy"), donate_argnames="state")
def jit_decode(
    model: TransformerConfig,
    params,
    state: SamplerState,
    key: jax.Array,
    taking: Taking,
    stop_id: int,
    temperature,
    *,
    greedy: bool,
) -> tuple[SamplerState, Taking]:
    """Sample until no row's turn goes on, or a row has filled the cache at its present length."""
    limit_B, grammar = taking.limit_B, taking.grammar
    B, S = state.tokens_BS.shape
    capacity = state.cache[0]["value"].shape[2]
    params = transformer.for_decoding(model, params)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, state.seeds_B)

    def room(carry):
        state, going_B, _ = carry
        return jnp.any(going_B) & jnp.all(~going_B | (state.length_B < capacity))

    def step(carry):
        state, going_B, node_B = carry
        logits_BV = state.logits_BV / temperature
        if grammar is not None:
            logits_BV, token_BK, child_BK = _limited(
                logits_BV, grammar, node_B, limit_B - state.length_B, going_B
            )
        scores_BV = logits_BV
        if not greedy:
            step_keys_B = jax.vmap(jax.random.fold_in)(keys_B, state.length_B)
            noise_BV = jax.vmap(lambda k: jax.random.gumbel(k, logits_BV.shape[1:]))(step_keys_B)
            scores_BV = scores_BV + noise_BV
        token_B = _likeliest(scores_BV)
        logprob_B = rows.read(logits_BV, token_B) - jax.nn.logsumexp(logits_BV, axis=-1)
        if grammar is not None:
            node_B = grammars.advance(node_B, token_BK, child_BK, token_B)
        slot_B = jnp.where(going_B, state.length_B, S)  # slot S does not exist: dropped
        # The stop token goes into the cache too: the environment's next tokens look at it.
        next_BV, cache = transformer.extend(
            model, params, token_B[:, None], going_B.astype(jnp.int32), state.length_B,
            state.cache, last=True,
        )  # fmt: skip
        stopped_B = going_B & (token_B == stop_id)
        length_B = state.length_B + going_B
        state = dataclasses.replace(
            state,
            tokens_BS=rows.write(state.tokens_BS, slot_B, token_B),
            turns_BS=rows.write(state.turns_BS, slot_B, state.turn_B - 1),
            logprobs_BS=rows.write(state.logprobs_BS, slot_B, logprob_B),
            length_B=length_B,
            stopped_B=state.stopped_B | stopped_B,
            logits_BV=jnp.where(going_B[:, None], next_BV, state.logits_BV),
            cache=cache,
        )
        return state, going_B & ~stopped_B & (length_B < limit_B), node_B

    state, going_B, node_B = jax.lax.while_loop(room, step, (state, taking.going_B, taking.node_B))
    return pin(state), dataclasses.replace(taking, going_B=going_B, node_B=node_B, grammar=None)
