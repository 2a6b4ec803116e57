"""GRPO's loss on a policy's parameters, and the programs that compute it on a mesh.

`grpo.py` has the formulas, on arrays.

Letters: B rows, T tokens, J turns, P choices of a decision.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from autollm_jax.models import lora
from autollm_jax.models.decoding import rounded
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl.batches import GRPOLoopConfig, UpdateBatch, pieces, take
from autollm_jax.rl.grpo import (
    FAR_ABOVE,
    GRPOHyperparameters,
    decision_loss,
    grpo_loss,
    turn_means,
)
from autollm_jax.rl.logprobs import choice_logprobs, hidden_states, score_tokens
from autollm_jax.sharding.hosts import to_host
from autollm_jax.sharding.rules import batch_sharding
from autollm_jax.sharding.xla_options import xla_options
from autollm_jax.training.state import state_shardings
from autollm_jax.training.step import jit_train_step


def policy_loss(model: TransformerConfig, hp: GRPOHyperparameters, params, batch: UpdateBatch):
    """Compute GRPO's loss of a minibatch: summed over its sampled tokens, their count, metrics.

    With enumerated groups the loss is that of the decisions, and the other tokens add their
    divergence from the reference alone.
    """
    logprobs_BT, entropy_BT, logits_BJP = _forward(model, hp, params, batch)
    if batch.decisions is not None:  # the other tokens have no advantage
        of_speech = {"kl_coefficient": hp.speech_coefficient, "entropy_coefficient": 0.0}
    else:
        of_speech = {}
    loss, count, metrics = grpo_loss(
        logprobs_BT,
        entropy_BT,
        batch.behaviour_BT,
        batch.reference_BT,
        batch.advantages_BT,
        batch.mask_BT,
        dataclasses.replace(hp, **of_speech),
        batch.turns_BT,
        batch.weights_BT,
    )
    if batch.decisions is None:
        return loss, count, metrics
    made, decided = batch.decisions, batch.decisions.place_BJ > 0
    of_decisions, decisions, more = decision_loss(
        logits_BJP, made.reference_BJP, made.rewards_BJP, decided, hp
    )
    # A decision counts as much as all other tokens of a turn.
    speech = loss / jnp.maximum(count, 1.0) * decisions
    return speech + of_decisions, decisions, metrics | more


def _forward(model: TransformerConfig, hp: GRPOHyperparameters, params, batch: UpdateBatch):
    """Return the scored tokens' log-probabilities and entropies, and the logits of choices."""
    rows = batch.tokens_BT, batch.positions_BT, batch.segments_BT
    x_BTD = hidden_states(model, params, *rows, batch.shared)
    given = batch.tokens_BT, hp.temperature, batch.allowed, batch.place_BM
    logprobs_BT, entropy_BT = score_tokens(model, params, x_BTD, *given)
    if batch.decisions is None:
        return logprobs_BT, entropy_BT, None
    places = batch.decisions.place_BJ, batch.decisions.id_BP
    return logprobs_BT, entropy_BT, choice_logprobs(model, params, x_BTD, *places)


def jit_update(
    model: TransformerConfig, hp: GRPOHyperparameters, optimizer, mesh: Mesh, microbatches: int
):
    """Make GRPO's optimizer step a program of (state, batch, frozen), as `jit_train_step` does."""
    init, axes = functools.partial(lora.init, model), lora.logical_axes(model)
    shardings = state_shardings(init, axes, optimizer, mesh)
    loss_fn = functools.partial(policy_loss, model, hp)
    return jit_train_step(loss_fn, optimizer, shardings, mesh, microbatches)


def jit_reference(model: TransformerConfig, hp: GRPOHyperparameters, mesh: Mesh):
    """Make a program of (params, batch) -> what the loss needs of the reference, on a mesh."""

    @functools.partial(
        jax.jit,
        in_shardings=(None, batch_sharding(mesh)),
        compiler_options=xla_options(mesh),
    )
    def reference(params, batch):
        logprobs_BT, _, logits_BJP = _forward(model, hp, params, batch)
        return logprobs_BT, logits_BJP

    return reference


def reference_of(model: TransformerConfig, params: dict) -> dict:
    """Return the reference's parameters: matrices in the type that the model reads them in.

    With LoRA the frozen matrices are the policy's own, in their own type.
    """
    return params if model.lora_rank or model.dtype == "float32" else rounded(model, params)


def with_reference(batch: UpdateBatch, rows, score_fn, reference_params, config) -> UpdateBatch:
    """Fill in the reference's log-probabilities and logits for the given rows.

    Args:
      batch: on the host.
      rows: rows that will be learned from.
      score_fn: from `jit_reference`.
      reference_params: all parameters of the reference.
      config: its `minibatch_rows` are computed at once.
    """
    reference_BT, logits_BJP = _scores(batch, rows, score_fn, reference_params, config)
    decisions = batch.decisions
    if decisions is not None:
        decisions = dataclasses.replace(decisions, reference_BJP=logits_BJP)
    return dataclasses.replace(batch, reference_BT=reference_BT, decisions=decisions)


def with_weights(
    batch: UpdateBatch, rows, score_fn, params, hp: GRPOHyperparameters, config: GRPOLoopConfig
) -> tuple[UpdateBatch, dict[str, float]]:
    """Weigh tokens by the policy's probability in the trainer over that in the sampler.

    The sampler's kernels, types and (in one-step-off rollouts) parameters are others than the
    trainer's, so its tokens are drawn from another distribution than the one that the ratio of the
    clipped objective starts from. The ratio gets the trainer's log-probabilities before the first
    update, and the difference becomes a weight, truncated at `hp.importance_cap`. With ratios of
    sequences, weights are of turns too.

    Args:
      batch: on the host, its behaviour the sampler's.
      rows: rows that will be learned from.
      score_fn: from `jit_reference`.
      params: all parameters of the policy before its update.
      hp: `importance_cap`, `ratio`.
      config: its `minibatch_rows` are computed at once.

    Returns:
      The batch, and statistics over the rows' tokens: mean and largest weight before truncation,
      the share that is truncated, the effective sample size (sum of weights squared over the sum of
      their squares) as a share of the tokens, and the mean |difference| of log-probabilities, nats.

    Source: truncated importance sampling (Ionides 2008); the objective in two parts is AReaL's,
    arXiv 2505.24298, equation 5.
    """
    old_BT, _ = _scores(batch, rows, score_fn, params, config)
    gap_BT = np.where(batch.mask_BT, old_BT - batch.behaviour_BT, 0).astype(np.float32)
    exponent_BT = gap_BT
    if hp.ratio == "sequence":
        exponent_BT = np.asarray(turn_means(gap_BT, batch.turns_BT, batch.mask_BT)[0])
    ratio_BT = np.exp(np.minimum(exponent_BT, FAR_ABOVE))
    weights_BT = np.minimum(ratio_BT, np.float32(hp.importance_cap))
    batch = dataclasses.replace(batch, behaviour_BT=old_BT, weights_BT=weights_BT)
    counted = batch.mask_BT[rows]
    if not counted.any():
        return batch, {}
    ratios, weights = ratio_BT[rows][counted], weights_BT[rows][counted].astype(np.float64)
    return batch, {
        "importance_mean": float(ratios.mean(dtype=np.float64)),
        "importance_max": float(ratios.max()),
        "importance_truncated": float((ratios > hp.importance_cap).mean()),
        "importance_sample_size": float(weights.sum() ** 2 / (weights**2).mean() / weights.size**2),
        "logprob_gap": float(np.abs(gap_BT[rows][counted]).mean()),
    }


def _scores(batch: UpdateBatch, rows, score_fn, params, config) -> tuple:
    """Compute some rows' log-probabilities [B, T] and choices' logits; others stay as they are."""
    logprobs_BT, decisions = np.array(batch.behaviour_BT), batch.decisions
    logits_BJP = None if decisions is None else decisions.reference_BJP.copy()
    for chosen in pieces(batch, rows, config.minibatch_rows):
        piece = take(batch, chosen, config.minibatch_rows)
        found = to_host(score_fn(params, piece))
        logprobs_BT[chosen] = found[0][: len(chosen)]
        if logits_BJP is not None:
            logits_BJP[chosen] = found[1][: len(chosen)]
    return logprobs_BT, logits_BJP
