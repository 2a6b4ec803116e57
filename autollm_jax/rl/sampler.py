"""A batched multi-turn sampler: tokens in, tokens out.

A row of `SamplerState` (`conversations.py`) is a conversation. `append` adds the environment's
tokens, `generate` the policy's. A row's tokens are never encoded again, so training reads the
tokens that were sampled; log-probabilities are recorded as tokens are drawn. A `Grammar`
(`grammar.py`) limits the tokens of a turn at each step.

The compiled programs are `jit_append` and `jit_decode` (`decoding.py`) and `jit_grow`; `planning`
compiles them too.

Letters: B rows, S slots of the context, C tokens of a chunk, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl.conversations import (
    SamplerConfig,
    SamplerState,
    abstract_state,
    empty,
    grow,
    init_state,
    jit_grow,
    renew,
    repeat,
    share,
)
from autollm_jax.rl.decoding import Taking, begin_turn, end_turn, jit_append, jit_decode
from autollm_jax.rl.grammar import Grammar
from autollm_jax.sharding.hosts import to_devices, to_host

__all__ = [
    "SamplerConfig",
    "SamplerState",
    "Speakers",
    "Taking",
    "TurnConfig",
    "abstract_state",
    "append",
    "begin_turns",
    "generate",
    "init_state",
    "jit_append",
    "jit_decode",
    "jit_grow",
    "renew",
    "repeat",
    "share",
    "single_turn",
    "speak",
]


@dataclasses.dataclass(frozen=True)
class TurnConfig:
    """How the policy takes a turn.

    stop_id: the token that ends a turn.
    max_new_tokens: the most tokens of a turn.
    temperature: logits are divided by it; the number 0 takes the likeliest token. `single_turn`
      takes a traced one too, over 0.
    drafts: tokens that a pass of the model may read ahead of what was sampled (`jit_decode`).
    """

    stop_id: int
    max_new_tokens: int
    temperature: float | jax.Array = 1.0
    drafts: int = 0

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
    state = begin_turn(state, rows_taking.going_B, limit_B)
    state, _ = jit_decode(
        model, params, state, key, rows_taking, turn.stop_id, turn.divisor, greedy=turn.greedy,
        drafts=turn.drafts,
    )  # fmt: skip
    return end_turn(state, state.length_B >= config.context)


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


@dataclasses.dataclass(frozen=True)
class Speakers:
    """On the host, rows that are taking a turn: `Taking` between two calls.

    going_B, limit_B: as there.
    place_B: i32, the row's node within its own automaton.
    length_B: i32, tokens in every row.
    passes, readings: passes of the model so far, and rows that these read.
    """

    going_B: np.ndarray
    limit_B: np.ndarray
    place_B: np.ndarray
    length_B: np.ndarray
    passes: int = 0
    readings: int = 0


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
    active_B = np.ones(len(state.length_B), bool) if active_B is None else active_B
    state, speakers = begin_turns(config, state, turn, active_B, grammar)
    state, _ = speak(model, params, config, state, key, turn, speakers, grammar)
    return state


def begin_turns(
    config: SamplerConfig,
    state: SamplerState,
    turn: TurnConfig,
    active_B: Sequence[bool],
    grammar: Grammar | None = None,
    speakers: Speakers | None = None,
) -> tuple[SamplerState, Speakers]:
    """Begin a turn in some rows; `speakers` are those whose turns go on already.

    Arguments and errors are those of `generate`.
    """
    # Copies, since the state's buffers are about to be reused.
    length_B, truncated_B = to_host((state.length_B, state.truncated_B))
    starts_B = np.asarray(active_B, bool) & ~truncated_B
    if (length_B[starts_B] == 0).any():
        raise ValueError("generate: an active row is empty; append its prompt first")
    shortest_B = np.zeros_like(length_B) if grammar is None else grammar.shortest_B
    limit_B = np.minimum(length_B + np.maximum(turn.max_new_tokens, shortest_B), config.context)
    limit_B = np.where(length_B + shortest_B > limit_B, length_B, limit_B).astype(np.int32)
    state = begin_turn(state, starts_B, limit_B)
    going_B, place_B = starts_B & (length_B < limit_B), np.zeros_like(length_B)
    counts = 0, 0
    if speakers is not None:
        limit_B = np.where(starts_B, limit_B, speakers.limit_B)
        place_B = np.where(starts_B, 0, speakers.place_B)
        going_B, counts = going_B | speakers.going_B, (speakers.passes, speakers.readings)
    return state, Speakers(going_B, limit_B, place_B, length_B, *counts)


def speak(
    model: TransformerConfig,
    params,
    config: SamplerConfig,
    state: SamplerState,
    key: jax.Array,
    turn: TurnConfig,
    speakers: Speakers,
    grammar: Grammar | None = None,
    ended_share: float = 1.0,
) -> tuple[SamplerState, Speakers]:
    """Sample until a share of the rows that speak have ended their turns, at least one of them.

    The other arguments are those of `generate`. With another grammar than in the call before, a row
    whose turn goes on must have the same automaton in it.

    Returns:
      The state, and the rows that go on.
    """
    going_B, length_B, limit_B = speakers.going_B, speakers.length_B, speakers.limit_B
    base_B = 0 if grammar is None else np.asarray(grammar.base_B)
    node_B = None if grammar is None else (speakers.place_B + base_B).astype(np.int32)
    count, began_B = int(going_B.sum()), going_B
    passes, readings = speakers.passes, speakers.readings
    some = min(int((1 - ended_share) * count), count - 1)
    leave = None if ended_share == 1 else np.int32(max(some, 0))
    while going_B.sum() > (leave or 0):
        state = grow(state, int(length_B[going_B].max()) + 1, config)
        taking = Taking(going_B, limit_B, node_B, grammar, leave)
        state, taking = jit_decode(
            model, params, state, key, taking, turn.stop_id, turn.divisor, greedy=turn.greedy,
            drafts=turn.drafts,
        )  # fmt: skip
        going_B, length_B = to_host((taking.going_B, state.length_B))
        node_B = None if grammar is None else to_host(taking.node_B)
        passes += int(to_host(taking.passes))
        readings += int(to_host(taking.readings))
    state = end_turn(state, began_B & ~going_B & (length_B >= config.context))
    place_B = speakers.place_B if node_B is None else node_B - base_B
    return state, Speakers(going_B, limit_B, place_B, length_B, passes, readings)
