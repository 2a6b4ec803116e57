"""Log-probabilities of a batch's tokens, as the trainer recomputes them."""

import jax
import jax.numpy as jnp

from autollm_jax.models import transformer
from autollm_jax.models.transformer import TransformerConfig


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
      temperature: logits are divided by it, as the sampler divides them (a sweep may trace it); 0,
        where the sampler is greedy, leaves them as they are.

    Returns:
      logprobs_BT and entropy_BT (nats), f32, aligned with the tokens: entry t is that of token t.
      Entry 0, and a segment's first token, mean nothing and are never in a loss mask.
    """
    logits_BTV = transformer.apply(
        model, params, tokens_BT[:, :-1], positions_BT[:, :-1], segments_BT[:, :-1]
    )
    logits_BTV = logits_BTV / jnp.where(temperature > 0, temperature, 1.0)
    log_total_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    chosen_BT = jnp.take_along_axis(logits_BTV, tokens_BT[:, 1:, None], axis=-1)[..., 0]
    probs_BTV = jnp.exp(logits_BTV - log_total_BT[..., None])
    entropy_BT = log_total_BT - jnp.sum(probs_BTV * logits_BTV, axis=-1)
    first = ((0, 0), (1, 0))
    return jnp.pad(chosen_BT - log_total_BT, first), jnp.pad(entropy_BT, first)
