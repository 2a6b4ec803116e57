"""Scores a rollout: advantages against the group, and which rows teach anything.

Letters: N groups, G members, B = N * G rows, T tokens, J turns.
"""

import numpy as np

from autollm_jax.models.shared_prefix import NOTHING_SHARED
from autollm_jax.rl.batches import GRPOLoopConfig, RolloutBatch, UpdateBatch, scored_places
from autollm_jax.rl.grpo import GRPOHyperparameters, token_advantages, turn_advantages
from autollm_jax.rl.logprobs import Allowed
from autollm_jax.rl.prefixes import Aligner


def advantages(
    played: RolloutBatch, hp: GRPOHyperparameters, group_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compare each turn with the same turn of the group's other members.

    Args:
      played: sampled conversations.
      hp: hyperparameters.
      group_size: G.

    Returns:
      advantages_BJ; and informative_B, True on rows that count, of groups whose members differ in
      some advantage. Other rows would only add their KL. A row that does not count since it was cut
      still is in its group's mean.

    Raises:
      ValueError: a reward is not finite, the rows do not make whole groups, or nobody told which
        rows were cut.
    """
    if not np.isfinite(played.rewards_BJ).all():
        raise ValueError("a rollout's reward is not finite")
    B, J = played.rewards_BJ.shape
    shape = (B // group_size, group_size, J)
    advantages_NGJ = np.asarray(
        turn_advantages(played.rewards_BJ.reshape(shape), played.turn_mask_BJ.reshape(shape), hp)
    )
    advantages_NGJ = np.where(np.arange(J) >= hp.first_turn - 1, advantages_NGJ, 0.0)
    informative_B = np.repeat((advantages_NGJ != 0).any((1, 2)), group_size)
    if hp.mask_truncated:
        if played.truncated_B is None:
            raise ValueError("nobody told which rows were cut")
        informative_B &= ~played.truncated_B
    return advantages_NGJ.reshape(B, J), informative_B


def score(
    played: RolloutBatch,
    hp: GRPOHyperparameters,
    config: GRPOLoopConfig,
    aligner: Aligner | None = None,
) -> tuple[UpdateBatch, np.ndarray]:
    """Turn conversations and rewards into the loss's input.

    Args:
      played: the conversations.
      hp: hyperparameters.
      config: the loop's sizes.
      aligner: moves the rows of sampled groups, so that what members share is computed once.

    Returns:
      The batch, on the host and with the behaviour policy as its reference; and informative_B, as
      `advantages` returns it; of enumerated groups, rows with a decision whose choices differ.

    Raises:
      ValueError: as `advantages`, or enumerated groups have no decisions.
    """
    B, T = played.tokens_BT.shape
    advantages_BJ, informative_B = advantages(played, hp, config.group_size)
    J = advantages_BJ.shape[1]
    longest = max(int(played.length_B.max()), 2)
    T = min(T, -(-longest // config.length_multiple) * config.length_multiple)
    start_B, shared = np.zeros(B, np.int32), NOTHING_SHARED
    if aligner is not None:
        played, start_B, shared = aligner(played)
    if shared.tokens:
        T = played.tokens_BT.shape[1]
    turns_BT = played.turns_BT[:, :T]
    from_start_BT = np.arange(T, dtype=np.int32) - start_B[:, None]
    there_BT = (from_start_BT >= 0) & (from_start_BT < played.length_B[:, None])
    allowed, decisions, mask_BT = played.allowed, None, turns_BT >= 0
    if allowed is not None:
        cut = allowed.free_BT[:, :T], allowed.token_BTK[:, :T]
        allowed = Allowed(*cut, allowed.free_BV)
    advantages_BT = np.asarray(token_advantages(advantages_BJ, turns_BT))
    if hp.members == "enumerated":
        if played.decisions is None:
            raise ValueError("enumerated groups need decisions whose choices are known")
        decisions, advantages_BT = played.decisions, np.zeros_like(advantages_BT)
        # A decision counts as a group; its token is no other token of the turn.
        learned_BJ = (decisions.place_BJ > 0) & (np.arange(J) >= hp.first_turn - 1)
        rewards_BJP = np.where(learned_BJ[..., None], decisions.rewards_BJP, 0)
        informative_B = (np.ptp(rewards_BJP, axis=-1) > 0).any(-1)
        mask_BT = mask_BT.copy()
        mask_BT[np.arange(B)[:, None], decisions.place_BJ] = False
    if hp.mask_truncated:
        cut_B = np.asarray(played.truncated_B)
        informative_B, mask_BT = informative_B & ~cut_B, mask_BT & ~cut_B[:, None]
    batch = UpdateBatch(
        tokens_BT=played.tokens_BT[:, :T],
        positions_BT=np.maximum(from_start_BT, 0),
        # Behind a row's end nothing is read: no token attends to a later one.
        segments_BT=there_BT.astype(np.int32) if shared.tokens else None,
        mask_BT=mask_BT,
        behaviour_BT=played.behaviour_BT[:, :T],
        reference_BT=played.behaviour_BT[:, :T],
        advantages_BT=advantages_BT,
        allowed=allowed,
        decisions=decisions,
        turns_BT=turns_BT if hp.ratio == "sequence" else None,
        place_BM=scored_places(mask_BT, config.most_sampled),
        shared=shared,
    )
    return batch, informative_B
