"""Log-probabilities of a batch's tokens, as the trainer recomputes them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from autollm_jax.models import transformer
from autollm_jax.models.product import product
from autollm_jax.models.shared_prefix import NOTHING_SHARED, SharedPrefix
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.sharding.rules import constrain, pieces, reshard, shards
from autollm_jax.training.likelihood import chosen

FORBIDDEN = -1e30  # the logit of a token that a grammar does not allow


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Allowed:
    """What a grammar allowed at each token; its logits alone count (see `grammar.steps`).

    free_BT: bool, whether free text was allowed.
    token_BTK: i32, the tokens allowed besides, none of them free text; -1 fills up.
    free_BV: bool, the tokens of free text, the same in every row.
    """

    free_BT: jax.Array
    token_BTK: jax.Array
    free_BV: jax.Array


def token_logprobs(
    model: TransformerConfig,
    params,
    tokens_BT: jax.Array,
    segments_BT: jax.Array,
    positions_BT: jax.Array,
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Compute each token's log-probability given those before it, and the entropy it was drawn at.

    Args:
      model: the policy's shape.
      params: the policy's parameters.
      tokens_BT: token ids.
      segments_BT: tokens see only their own segment; 0 is padding.
      positions_BT: position of each token in its own sequence.
      temperature: as in `score_tokens`.

    Returns:
      As `score_tokens`.
    """
    x_BTD = hidden_states(model, params, tokens_BT, positions_BT, segments_BT)
    return score_tokens(model, params, x_BTD, tokens_BT, temperature)


def hidden_states(
    model: TransformerConfig,
    params,
    tokens_BT,
    positions_BT,
    segments_BT,
    shared: SharedPrefix = NOTHING_SHARED,
):
    """Compute what `score_tokens` reads: the hidden states before each token.

    Nothing follows the last token. In bfloat16 its state is computed all the same: a row of 2,048
    tokens fills whole tiles of an accelerator and whole blocks of its kernels, one of 2,047 does
    not.
    """
    rows = tokens_BT, positions_BT, segments_BT
    if model.dtype != "bfloat16":
        rows = jax.tree.map(lambda x_BT: x_BT[:, :-1], rows)
    return transformer.hidden(model, params, *rows, shared)


def score_tokens(
    model: TransformerConfig,
    params,
    x_BTD: jax.Array,
    tokens_BT: jax.Array,
    temperature: float = 1.0,
    allowed: Allowed | None = None,
    place_BM: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Compute the tokens' log-probabilities and entropies from the hidden states before them.

    With a large vocabulary logits would take more memory than the rest of the step: those of a row
    are `model.row_logits` at most at a time, and the backward pass computes them again.

    Args:
      model: the policy's shape.
      params: the policy's parameters.
      x_BTD: from `hidden_states`, of all tokens; the last may be missing.
      tokens_BT: token ids.
      temperature: logits are divided by it, as the sampler divides them (a sweep may trace it); 0,
        where the sampler is greedy, leaves them as they are.
      allowed: where a grammar limited the tokens; the distribution is renormalised over these.
      place_BM: places of the tokens that are scored, none of them twice; None scores all tokens.

    Returns:
      logprobs_BT and entropy_BT (nats), f32, aligned with the tokens: entry t is that of token t,
      or 0 where it is not scored. Entry 0, and a segment's first token, mean nothing and are never
      in a loss mask.
    """
    T = tokens_BT.shape[1]
    given = tokens_BT, None if allowed is None else (allowed.free_BT, allowed.token_BTK)
    free_V = None if allowed is None else allowed.free_BV[0]

    def following(x_BT):
        fill = x_BTD.shape[1] - (T - 1)  # a last token is followed by zeros
        return jnp.pad(x_BT[:, 1:], ((0, 0), (0, fill), *((0, 0),) * (x_BT.ndim - 2)))

    if place_BM is None:
        given = jax.tree.map(following, given)
        scores = _score_given(model, params, x_BTD, given, temperature, free_V)
        return jax.tree.map(lambda x_BT: jnp.pad(x_BT[:, : T - 1], ((0, 0), (1, 0))), scores)

    def aligned(x_M, place_M):
        return jnp.zeros(T, x_M.dtype).at[place_M].add(x_M)  # adding, as its gradient is a gather

    x_BMD, given = _before(x_BTD, place_BM), jax.tree.map(lambda x: _at(x, place_BM), given)
    scores = _score_given(model, params, x_BMD, given, temperature, free_V)
    return jax.tree.map(lambda x_BM: jax.vmap(aligned)(x_BM, place_BM), scores)


def choice_logprobs(
    model: TransformerConfig, params, x_BTD: jax.Array, place_BJ: jax.Array, id_BP: jax.Array
) -> jax.Array:
    """Return the log-probabilities [B, J, P], among the whole vocabulary, of P tokens at J places.

    See `batches.Decisions` for places and tokens, `score_tokens` for the hidden states.
    """
    x_BJD = _before(x_BTD, place_BJ)
    log_BJV = jax.nn.log_softmax(transformer.unembed(model, params, x_BJD))
    return jnp.take_along_axis(log_BJV, id_BP[:, None], axis=-1)


def _at(x_BT, place_BM):
    """Return the entries at these places of each row; any axes behind T."""
    index_BM = place_BM.reshape(*place_BM.shape, *(1,) * (x_BT.ndim - 2))
    return jnp.take_along_axis(x_BT, index_BM, axis=1)


def _before(x_BTD, place_BM):
    """Return the hidden states before the tokens at these places."""
    return _at(x_BTD, jnp.maximum(place_BM - 1, 0))


def _score_given(model: TransformerConfig, params, x_BTD, given, temperature, free_V):
    """Score each hidden state's next token, `given` with what the grammar allowed there."""
    blocks = -(-x_BTD.shape[1] // max(model.row_logits // model.vocab_size, 1))
    if blocks == 1:
        logits_BTV = transformer.unembed(model, params, x_BTD)
        return _score(logits_BTV, given[0], temperature, given[1], free_V)
    table_VD = transformer.output_embedding(model, params)
    return _score_in_blocks(blocks, table_VD, x_BTD, given, temperature, free_V, model.dtype)


def _score(logits_V, next_, temperature, allowed=None, free_V=None):
    """Return the log-probability of the tokens `next_`, and the entropy; any leading axes."""
    logits_V = logits_V / jnp.where(temperature > 0, temperature, 1.0)
    if allowed is not None:
        logits_V = jnp.where(_may(*allowed, free_V, logits_V.shape[-1]), logits_V, FORBIDDEN)
    log_total = jax.nn.logsumexp(logits_V, axis=-1)
    probs_V = jnp.exp(logits_V - log_total[..., None])
    entropy = log_total - jnp.sum(probs_V * logits_V, axis=-1)
    return chosen(logits_V, next_) - log_total, entropy


def _may(free, token_K, free_V, vocabulary: int):
    """Return which tokens are allowed, as a mask of the vocabulary; any leading axes."""
    free_V = jnp.pad(free_V, (0, vocabulary - len(free_V)))
    token_K = jnp.where(token_K >= 0, token_K, vocabulary)  # no such place: dropped

    def of_token(free, token_K):
        return (free_V & free).at[token_K].set(True, mode="drop")

    for _ in range(free.ndim):
        of_token = jax.vmap(of_token)
    return of_token(free, token_K)


def _score_in_blocks(blocks: int, table_VD, x_BTD, next_BT, temperature, free_V, dtype: str):
    """Score blocks of time steps one after the other, each device its part of the vocabulary.

    The hidden states of a block go to all devices, which is less than the table would be. The R
    replicas have a table each, as one axis of it: a device's sum of gradients over the blocks is
    its own, and replicas speak to each other about it once, after the last block.
    """
    (B, T), V = next_BT[0].shape, len(table_VD)
    R, C = pieces("replica", B), -(-T // blocks)
    table_VD = jnp.pad(table_VD, ((0, -V % shards("vocab_shard")), (0, 0)))
    table_VD = reshard(table_VD, ("vocab", "width"), ("vocab_shard", None))
    table_RVD = jnp.broadcast_to(table_VD, (R, *table_VD.shape))
    table_RVD = constrain(table_RVD, "replica", "vocab_shard", None)

    def cut(x_BT):
        rest = x_BT.shape[2:]
        x_BT = jnp.pad(x_BT, ((0, 0), (0, blocks * C - T), *((0, 0),) * len(rest)))
        return jnp.moveaxis(x_BT.reshape(R, B // R, blocks, C, *rest), 2, 0)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def score(block):
        x_RBCD, (next_RBC, allowed) = block
        x_RBCD = reshard(x_RBCD, ("replica", "row", None, None), ("replica", None, None, None))
        logits_RBCV = product("RBCD,RVD->RBCV", x_RBCD, table_RVD, dtype)
        logits_RBCV = constrain(logits_RBCV, "replica", None, "length", "vocab_shard")
        return _score(logits_RBCV[..., :V], next_RBC, temperature, allowed, free_V)

    scores = jax.lax.map(score, jax.tree.map(cut, (x_BTD, next_BT)))
    return jax.tree.map(lambda x_NRBC: jnp.moveaxis(x_NRBC, 0, 2).reshape(B, -1)[:, :T], scores)
