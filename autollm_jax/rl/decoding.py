"""The sampler's compiled programs: reading tokens, and decoding a turn token by token.

Letters: B rows, S slots of the context, C tokens of a chunk, V vocabulary.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from autollm_jax.models.attention import FEW
from autollm_jax.models.decoding import extend, for_decoding, slot_count
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl import grammar as grammars
from autollm_jax.rl.conversations import SamplerState, pin
from autollm_jax.rl.grammar import Grammar
from autollm_jax.sharding import rows
from autollm_jax.sharding.rules import constrain

LOOKED_UP = 3  # most tokens that a draft follows
MOST_DRAFTS = FEW - 1


@functools.partial(jax.jit, static_argnames="model", donate_argnames="state")
def jit_append(model: TransformerConfig, params, state: SamplerState, tokens_BC, take_B):
    """Add the first take_B[b] tokens of each row of a chunk, one width of it."""
    B, C = tokens_BC.shape
    S = state.tokens_BS.shape[1]
    offsets_BC = jnp.broadcast_to(jnp.arange(C), (B, C))
    slots_BC = jnp.where(
        offsets_BC < take_B[:, None], state.length_B[:, None] + offsets_BC, S
    )  # slot S does not exist: such a write is dropped
    logits_BV, cache = extend(
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
    leave: i32, rows whose turns may still go on when the others are answered; None for 0.
    passes, readings: i32, passes of the model, and rows that these read; known afterwards.
    """

    going_B: jax.Array
    limit_B: jax.Array
    node_B: jax.Array | None = None
    grammar: Grammar | None = None
    leave: jax.Array | np.int32 | None = None
    passes: jax.Array | None = None
    readings: jax.Array | None = None


@functools.partial(jax.jit, donate_argnames="state")
def begin_turn(state, going_B, limit_B):
    """Count the turn; its tokens are numbered turn_B - 1."""
    state = dataclasses.replace(
        state,
        turn_B=state.turn_B + going_B,
        stopped_B=state.stopped_B & ~going_B,
        truncated_B=state.truncated_B | (going_B & (state.length_B >= limit_B)),
    )
    return pin(state)


@functools.partial(jax.jit, donate_argnames="state")
def end_turn(state, full_B):
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


@functools.partial(jax.jit, static_argnames=("model", "greedy", "drafts"), donate_argnames="state")
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
    drafts: int = 0,
) -> tuple[SamplerState, Taking]:
    """Sample until few rows' turns go on, or a row has filled the cache at its present length.

    With drafts a pass of the model reads, behind the token that was just sampled, as many tokens
    that followed its like earlier in the row (`look_up`). Then tokens are sampled from the pass's
    logits for as long as they are the draft's. The noise of a token depends on its position alone,
    so that they are the tokens which would have been sampled without drafts, but for rounding.
    """
    if drafts and model.short_conv:
        raise ValueError("drafts need a model without short convolutions, whose past they would be")
    limit_B, grammar = taking.limit_B, taking.grammar
    B, S = state.tokens_BS.shape
    capacity = slot_count(state.cache)
    params = for_decoding(model, params)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, state.seeds_B)

    def room(carry):
        state, going_B, *_ = carry
        wanted = jnp.any(going_B) if taking.leave is None else going_B.sum() > taking.leave
        return wanted & jnp.all(~going_B | (state.length_B < capacity))

    def say(state, going_B, node_B, only_B=None):
        """Sample a token from the state's logits in rows that go on; no other than only_B.

        Returns the state, rows that said something, rows that go on, nodes and the tokens.
        """
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
        token_B, says_B = _likeliest(scores_BV), going_B
        if only_B is not None:
            says_B = going_B & (token_B == only_B) & (state.length_B < capacity)
        logprob_B = rows.read(logits_BV, token_B) - jax.nn.logsumexp(logits_BV, axis=-1)
        if grammar is not None:
            next_B = grammars.advance(node_B, token_BK, child_BK, token_B)
            node_B = next_B if only_B is None else jnp.where(says_B, next_B, node_B)
        slot_B = jnp.where(says_B, state.length_B, S)  # slot S does not exist: dropped
        stopped_B = says_B & (token_B == stop_id)
        length_B = state.length_B + says_B
        state = dataclasses.replace(
            state,
            tokens_BS=rows.write(state.tokens_BS, slot_B, token_B),
            turns_BS=rows.write(state.turns_BS, slot_B, state.turn_B - 1),
            logprobs_BS=rows.write(state.logprobs_BS, slot_B, logprob_B),
            length_B=length_B,
            stopped_B=state.stopped_B | stopped_B,
        )
        return state, says_B, says_B & ~stopped_B & (length_B < limit_B), node_B, token_B

    def check(carry, draft):
        (state, agrees_B, going_B, node_B), (draft_B, next_BV) = carry, draft
        state, said_B, on_B, node_B, _ = say(state, agrees_B, node_B, draft_B)
        # A row that would have said another token says it in the next pass.
        state = _with_logits(state, said_B, next_BV)
        return (state, on_B, jnp.where(said_B, on_B, going_B), node_B), None

    def step(carry):
        state, reads_B, node_B, passes, readings = carry
        start_B = state.length_B
        state, _, going_B, node_B, token_B = say(state, reads_B, node_B)
        read_BC = token_B[:, None]
        if drafts:
            drafted_BD = look_up(state.tokens_BS, state.length_B, drafts)
            read_BC = jnp.concatenate([read_BC, drafted_BD], axis=1)
        # The stop token goes into the cache too: the environment's next tokens look at it. So does
        # a draft; where it is not said, what comes in its place is written over it.
        next_, cache = extend(
            model, params, read_BC, reads_B * np.int32(read_BC.shape[1]), start_B, state.cache,
            last=not drafts,
        )  # fmt: skip
        state = dataclasses.replace(state, cache=())
        if drafts:
            state = _with_logits(state, reads_B, next_[:, 0])
            of_drafts = drafted_BD.T, next_[:, 1:].swapaxes(0, 1)
            begun = state, going_B, going_B, node_B
            (state, _, going_B, node_B), _ = jax.lax.scan(check, begun, of_drafts)
        else:
            state = _with_logits(state, reads_B, next_)
        state = dataclasses.replace(state, cache=cache)
        return state, going_B, node_B, passes + 1, readings + reads_B.sum()

    begun = state, taking.going_B, taking.node_B, jnp.int32(0), jnp.int32(0)
    state, going_B, node_B, passes, readings = jax.lax.while_loop(room, step, begun)
    return pin(state), Taking(going_B, limit_B, node_B, passes=passes, readings=readings)


def _with_logits(state: SamplerState, rows_B, logits_BV) -> SamplerState:
    """Set the logits of some rows."""
    logits_BV = jnp.where(rows_B[:, None], logits_BV, state.logits_BV)
    return dataclasses.replace(state, logits_BV=logits_BV)


def look_up(tokens_BS: jax.Array, length_B: jax.Array, count: int) -> jax.Array:
    """Return the tokens [B, D] that followed a row's last ones when these stood in it before.

    The place is the one where most of the last `LOOKED_UP` tokens stand, and the last such place.
    Behind the row's end a draft is whatever stands there.

    Source: prompt look-up decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding).
    """
    B, S = tokens_BS.shape
    place_1S = jnp.arange(S)[None]
    same_BS = jnp.ones((B, S), bool)
    alike_BS = jnp.zeros((B, S), jnp.int32)
    for back in range(LOOKED_UP):
        last_B = rows.read(tokens_BS, jnp.maximum(length_B - 1 - back, 0))
        earlier_BS = jnp.pad(tokens_BS, ((0, 0), (back, 0)), constant_values=-1)[:, :S]
        same_BS &= earlier_BS == last_B[:, None]
        alike_BS += same_BS
    before_BS = place_1S < length_B[:, None] - 1
    place_B = jnp.argmax(jnp.where(before_BS, alike_BS * S + place_1S, -1), axis=1)
    drafted_BD = jnp.minimum(place_B[:, None] + 1 + jnp.arange(count)[None], S - 1)
    return jnp.take_along_axis(tokens_BS, drafted_BD, axis=1, mode="promise_in_bounds")
