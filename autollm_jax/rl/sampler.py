"""A batched multi-turn sampler: tokens in, tokens out.

A conversation is a row of `SamplerState` (`conversations.py`). `append` adds the environment's
tokens to it and `generate` the policy's; nothing that is in a row is ever encoded again, so that
the tokens trained on are the tokens sampled. Log-probabilities are recorded as the tokens are
drawn. A `Grammar` leaves a turn only some of the tokens at each step (`grammar.py`).

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
from autollm_jax.rl.conversations import SamplerConfig as SamplerConfig
from autollm_jax.rl.conversations import (
    SamplerState,
    batch_sizes,
    choose,
    empty,
    grow,
    pin,
    put,
    take,
)
from autollm_jax.rl.conversations import init_state as init_state
from autollm_jax.rl.conversations import repeat as repeat
from autollm_jax.rl.grammar import Grammar
from autollm_jax.sharding import rows
from autollm_jax.sharding.hosts import to_devices, to_host
from autollm_jax.sharding.rules import constrain


def single_turn(
    model: TransformerConfig,
    params,
    config: SamplerConfig,
    seeds_B: jax.Array,
    key: jax.Array,
    prompt_BC: jax.Array,
    prompt_length_B: jax.Array,
    *,
    stop_id: int,
    max_new_tokens: int,
    temperature,
    greedy: bool,
) -> SamplerState:
    """Answer prompts in one turn each, all of it traced: a sweep maps it over runs.

    The parts are those of `append` and `generate`, which grow the cache between compiled calls;
    here it has its full length from the start.

    Args:
      model: the policy's shape.
      params: the policy's parameters.
      config: `context` has to hold prompt and answer, and is the cache's length.
      seeds_B: one number a row.
      key: randomness, as in `generate`.
      prompt_BC: token ids, of which row b's first prompt_length_B[b] are real.
      prompt_length_B: at least 1.
      stop_id: the token that ends the turn.
      max_new_tokens: the most tokens of the turn.
      temperature: may be traced; it has no effect where `greedy`.
      greedy: take the likeliest token.
    """
    whole = dataclasses.replace(config, cache_block=config.context)
    state = jit_append(model, params, empty(model, whole, seeds_B), prompt_BC, prompt_length_B)
    limit_B = jnp.minimum(prompt_length_B + max_new_tokens, config.context)
    going_B = jnp.ones(len(seeds_B), bool)
    state = _begin_turn(state, going_B, limit_B)
    temperature = 1.0 if greedy else temperature
    state, _, _ = jit_decode(
        model, params, state, key, going_B, limit_B, stop_id, 0, temperature, None, None,
        greedy=greedy,
    )  # fmt: skip
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
      chunks: token ids for each row; an empty one leaves its row as it is. A row that has no room
        for its chunk stays as it is and is flagged truncated.

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
        size = min(s for s in batch_sizes(state, config) if s >= np.count_nonzero(take_B))
        if size == len(chunks):
            state = jit_append(model, params, state, tokens_BC, take_B)
        else:
            chosen = choose(take_B > 0, size)
            part = jit_append(model, params, take(state, chosen), tokens_BC[chosen], take_B[chosen])
            state = put(state, part, chosen)
        done_B, left_B = done_B + take_B, left_B - take_B
    return state


@functools.partial(jax.jit, static_argnames="model", donate_argnames="state")
def jit_append(model, params, state, tokens_BC, take_B):
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


@dataclasses.dataclass(frozen=True)
class Turns:
    """The turns that rows are taking, on the host.

    going_B: bool, rows whose turn is not over.
    limit_B: i32, the length at which it is, at the latest.
    node_B: i32, where they are in the grammar.
    grammar: what each row may say; anything where it is None.
    """

    going_B: np.ndarray
    limit_B: np.ndarray
    node_B: np.ndarray | None = None
    grammar: Grammar | None = None


def generate(
    model: TransformerConfig,
    params,
    config: SamplerConfig,
    state: SamplerState,
    key: jax.Array,
    *,
    stop_id: int,
    max_new_tokens: int,
    temperature: float,
    active_B: Sequence[bool] | None = None,
    grammar: Grammar | None = None,
) -> SamplerState:
    """Let the policy take one turn in each active row: `begin`, and `go_on` to the end."""
    active_B = np.ones(len(state.length_B), bool) if active_B is None else active_B
    state, turns = begin(config, state, active_B, max_new_tokens, grammar)
    state, _ = go_on(
        model, params, config, state, turns, key, stop_id=stop_id, temperature=temperature
    )
    return state


def begin(
    config: SamplerConfig,
    state: SamplerState,
    active_B: Sequence[bool],
    max_new_tokens: int,
    grammar: Grammar | None = None,
    others: Turns | None = None,
) -> tuple[SamplerState, Turns]:
    """Begin a turn in each active row; the other rows do not change.

    A turn ends with the stop token (kept in the row), after `max_new_tokens`, or at the end of the
    context (then the row is flagged truncated).

    Under a grammar a turn always ends as the grammar says: free text is closed while the longest
    ending still fits, and a turn gets more than `max_new_tokens` where one ending alone takes more.
    A row whose context has no room for an ending says nothing and is flagged truncated.

    Args:
      config: the sampler's sizes.
      state: consumed (its buffers are reused).
      active_B: rows that take a turn. Rows already truncated never do.
      max_new_tokens: the most tokens of a turn.
      grammar: what each row may say; anything by default. The same noise is drawn with it and
        without, so that a turn that stays within it is the same.
      others: turns that other rows are in the midst of; the grammar has to hold those rows too.

    Raises:
      ValueError: if an active row is empty, so that there is nothing to continue.
    """
    # Copies, since the state's buffers are about to be reused.
    length_B, truncated_B = to_host((state.length_B, state.truncated_B))
    starts_B = np.asarray(active_B, bool) & ~truncated_B
    if (length_B[starts_B] == 0).any():
        raise ValueError("generate: an active row is empty; append its prompt first")
    shortest_B = np.zeros_like(length_B) if grammar is None else grammar.shortest_B
    limit_B = np.minimum(length_B + np.maximum(max_new_tokens, shortest_B), config.context)
    limit_B = np.where(length_B + shortest_B > limit_B, length_B, limit_B).astype(np.int32)
    state = _begin_turn(state, starts_B, limit_B)
    going_B = starts_B & (length_B < limit_B)
    node_B = None if grammar is None else np.array(grammar.base_B)
    if others is not None:
        going_B, limit_B = going_B | others.going_B, np.where(starts_B, limit_B, others.limit_B)
        if grammar is not None:
            within_B = others.node_B - others.grammar.base_B
            node_B += np.where(starts_B, 0, within_B)
    return state, Turns(going_B, limit_B, node_B, grammar)


def go_on(
    model: TransformerConfig,
    params,
    config: SamplerConfig,
    state: SamplerState,
    turns: Turns,
    key: jax.Array,
    *,
    stop_id: int,
    temperature: float,
    leave: int = 0,
) -> tuple[SamplerState, Turns]:
    """Sample in the rows that are taking a turn until at most `leave` of them are.

    Args:
      model: the policy's shape.
      params: the policy's parameters.
      config: the sampler's sizes.
      state: consumed (its buffers are reused).
      turns: from `begin`, or from here.
      key: randomness, combined with each row's seed and each token's position; the same key will do
        for all turns of a conversation.
      stop_id: the token that ends a turn.
      temperature: logits are divided by it; 0 takes the likeliest token.
      leave: so many turns, or fewer, are left for the next call.
    """
    greedy, grammar = temperature == 0, turns.grammar
    going_B, node_B = np.array(turns.going_B), turns.node_B
    length_B, began_B = to_host(state.length_B), going_B.copy()
    while going_B.sum() > leave:
        state = grow(state, int(length_B[going_B].max()) + 1, config)
        sizes = batch_sizes(state, config)
        size = min(s for s in sizes if s >= going_B.sum())
        until = max([leave, *(s for s in sizes if s < size)])
        chosen = choose(going_B, size)
        part = state if size == len(going_B) else take(state, chosen)
        part, going_rows, node_rows = jit_decode(
            model, params, part, key, going_B[chosen], turns.limit_B[chosen], stop_id, until,
            1.0 if greedy else temperature, grammar and grammar.of_rows(chosen),
            None if grammar is None else node_B[chosen], greedy=greedy,
        )  # fmt: skip
        state = part if size == len(going_B) else put(state, part, chosen)
        going_B[chosen], length_B = to_host((going_rows, state.length_B))
        if grammar is not None:
            node_B[chosen] = to_host(node_rows)
    state = _end_turn(state, began_B & ~going_B & (length_B >= config.context))
    return state, dataclasses.replace(turns, going_B=going_B, node_B=node_B)


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
    """Return where each row is largest, first: argmax, four times as fast on a CPU."""
    V = scores_BV.shape[1]
    top_B1 = scores_BV.max(axis=1, keepdims=True)
    places_BV = jnp.where(scores_BV == top_B1, jnp.arange(V, dtype=jnp.int32), V - 1)
    return places_BV.min(axis=1)


@functools.partial(jax.jit, static_argnames=("model", "greedy"), donate_argnames="state")
def jit_decode(
    model, params, state, key, going_B, limit_B, stop_id, leave, temperature, grammar, node_B, *,
    greedy,
):  # fmt: skip
    """Sample until at most `leave` rows go on or one of them has filled the cache as it is.

    node_B is where each row is in the grammar; both are None where there is none.
    """
    B, S = state.tokens_BS.shape
    capacity = state.cache[0]["value"].shape[2]
    params = transformer.for_decoding(model, params)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, state.seeds_B)

    def room(carry):
        state, going_B, _ = carry
        return (jnp.sum(going_B) > leave) & jnp.all(~going_B | (state.length_B < capacity))

    def step(carry):
        state, going_B, node_B = carry
        logits_BV = state.logits_BV / temperature
        if grammar is not None:
            token_BK, child_BK = grammars.edges(grammar, node_B)
            left_B = limit_B - state.length_B
            may_BV = grammars.allowed(grammar, node_B, token_BK, left_B)
            # A model may have more rows than its vocabulary has tokens.
            beyond = logits_BV.shape[1] - may_BV.shape[1]
            may_BV = jnp.pad(may_BV, ((0, 0), (0, beyond))) | ~going_B[:, None]
            logits_BV = jnp.where(constrain(may_BV, "batch", "vocab"), logits_BV, -jnp.inf)
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

    state, going_B, node_B = jax.lax.while_loop(room, step, (state, going_B, node_B))
    return pin(state), going_B, node_B
