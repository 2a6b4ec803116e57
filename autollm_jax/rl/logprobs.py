"""Log-probabilities of a batch's tokens, as the trainer recomputes them."""

import functools

import jax
import jax.numpy as jnp

from autollm_jax.models import transformer
from autollm_jax.models.product import product
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.sharding.rules import constrain, pieces
from autollm_jax.training.likelihood import chosen


def token_logprobs(
    model: TransformerConfig,
    params,
    tokens_BT: jax.Array,
    segments_BT: jax.Array,
    positions_BT: jax.Array,
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Compute each token's log-probability given those before it, and the entropy it was drawn at.

    With a large vocabulary logits would take more memory than the rest of the step: those of a row
    are `model.row_logits` at most at a time, and the backward pass computes them again.

    Args:
      model: the policy's shape.
      params: the policy's parameters.
      tokens_BT: token ids.
      segments_BT: tokens see only their own segment; 0 is padding.
      positions_BT: position of each token in its own sequence.
      temperature: logits are divided by it, as the sampler divides them (a sweep may trace it); 0,
        where the sampler is greedy, leaves them as they are.

    Returns:
      logprobs_BT and entropy_BT (nats), f32, aligned with the tokens: entry t is that of token t.
      Entry 0, and a segment's first token, mean nothing and are never in a loss mask.
    """
    x_BTD = transformer.hidden(
        model, params, tokens_BT[:, :-1], positions_BT[:, :-1], segments_BT[:, :-1]
    )
    next_BT = tokens_BT[:, 1:]
    blocks = -(-next_BT.shape[1] // max(model.row_logits // model.vocab_size, 1))
    if blocks == 1:
        scores = _score(transformer.unembed(model, params, x_BTD), next_BT, temperature)
    else:
        table_VD = transformer.output_embedding(model, params)
        scores = _score_in_blocks(blocks, table_VD, x_BTD, next_BT, temperature, model.dtype)
    return jax.tree.map(lambda x_BT: jnp.pad(x_BT, ((0, 0), (1, 0))), scores)


def _score(logits_V, next_, temperature):
    """Return the log-probability of the tokens `next_`, and the entropy; any leading axes."""
    logits_V = logits_V / jnp.where(temperature > 0, temperature, 1.0)
    log_total = jax.nn.logsumexp(logits_V, axis=-1)
    probs_V = jnp.exp(logits_V - log_total[..., None])
    entropy = log_total - jnp.sum(probs_V * logits_V, axis=-1)
    return chosen(logits_V, next_) - log_total, entropy


def _score_in_blocks(blocks: int, table_VD, x_BTD, next_BT, temperature, dtype: str):
    """Score blocks of time steps one after the other.

    The rows' R shards have a table each, as one axis of it: a device's sum of gradients over the
    blocks is its own, and devices speak to each other about it once, after the last block.
    """
    B, T = next_BT.shape
    R, C = pieces("batch", B), -(-T // blocks)
    table_RVD = jnp.broadcast_to(table_VD, (R, *table_VD.shape))
    table_RVD = constrain(table_RVD, "batch", "vocab", None)

    def cut(x_BT):
        rest = x_BT.shape[2:]
        x_BT = jnp.pad(x_BT, ((0, 0), (0, blocks * C - T), *((0, 0),) * len(rest)))
        return jnp.moveaxis(x_BT.reshape(R, B // R, blocks, C, *rest), 2, 0)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def score(block):
        x_RBCD, next_RBC = block
        logits_RBCV = product("RBCD,RVD->RBCV", x_RBCD, table_RVD, dtype)
        logits_RBCV = constrain(logits_RBCV, "batch", None, "length", "vocab")
        return _score(logits_RBCV, next_RBC, temperature)

    scores = jax.lax.map(score, (cut(x_BTD), cut(next_BT)))
    return jax.tree.map(lambda x_NRBC: jnp.moveaxis(x_NRBC, 0, 2).reshape(B, -1)[:, :T], scores)
