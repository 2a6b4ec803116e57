"""GRPO's loss on a policy's parameters, and the programs that compute it on a mesh.

`grpo.py` has the formulas, on arrays.

Letters: B rows, T tokens, J turns, P choices of a decision, M rows of a minibatch.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from autollm_jax.models import lora, transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl.batches import UpdateBatch, take
from autollm_jax.rl.grpo import GRPOHyperparameters, decision_loss, grpo_loss
from autollm_jax.rl.logprobs import choice_logprobs, score_tokens
from autollm_jax.sharding.hosts import to_host
from autollm_jax.sharding.rules import batch_sharding
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
    """Return the tokens' log-probabilities and entropies, and the logits of decisions' choices."""
    x_BTD = transformer.hidden(
        model, params, batch.tokens_BT[:, :-1], batch.positions_BT[:, :-1],
        batch.segments_BT[:, :-1],
    )  # fmt: skip
    logprobs_BT, entropy_BT = score_tokens(
        model, params, x_BTD, batch.tokens_BT, hp.temperature, batch.allowed
    )
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

    @functools.partial(jax.jit, in_shardings=(None, batch_sharding(mesh)))
    def reference(params, batch):
        logprobs_BT, _, logits_BJP = _forward(model, hp, params, batch)
        return logprobs_BT, logits_BJP

    return reference


def with_reference(batch, rows, reference_fn, reference_params, config) -> UpdateBatch:
    """Fill in the reference's log-probabilities and logits for the given rows."""
    reference_BT, decisions = np.array(batch.reference_BT), batch.decisions
    if decisions is not None:
        decisions = dataclasses.replace(decisions, reference_BJP=decisions.reference_BJP.copy())
    for start in range(0, len(rows), config.minibatch_rows):
        chosen = rows[start : start + config.minibatch_rows]
        piece = take(batch, chosen, config.minibatch_rows)
        found = to_host(reference_fn(reference_params, piece))
        reference_BT[chosen] = found[0][: len(chosen)]
        if decisions is not None:
            decisions.reference_BJP[chosen] = found[1][: len(chosen)]
    return dataclasses.replace(batch, reference_BT=reference_BT, decisions=decisions)
