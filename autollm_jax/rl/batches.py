"""What passes between the steps of the GRPO loop: conversations, the loss's input, minibatches.

Letters: B rows, T tokens, J turns, P choices of a decision, M scored tokens of a row.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np

from autollm_jax.models.shared_prefix import NOTHING_SHARED, SharedPrefix
from autollm_jax.rl.grammar import bucket
from autollm_jax.rl.logprobs import Allowed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decisions:
    """The decisions of conversations, all of whose choices are known; P choices.

    place_BJ: i32, where a turn's choice stands, one token of the row; 0 where there is none.
    rewards_BJP: f32, what each choice would have brought.
    reference_BJP: f32, the choices' logits under the reference policy.
    id_BP: i32, the token of each choice, the same in every row.
    """

    place_BJ: np.ndarray
    rewards_BJP: np.ndarray
    reference_BJP: np.ndarray
    id_BP: np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RolloutBatch:
    """Sampled conversations, one a row; members of a group are neighbours.

    tokens_BT: i32, the ids that were given and sampled, unchanged; 0 after the row's end.
    length_B: i32, tokens in the row.
    turns_BT: i32, the turn (0 to J - 1) in which a token was sampled; -1 for the environment's
      tokens and after the row's end. Tokens with a turn are trained on.
    behaviour_BT: f32, log-probabilities recorded as the tokens were sampled.
    rewards_BJ: f32, reward of each turn.
    turn_mask_BJ: bool, turns that took place.
    allowed: what a grammar allowed at each sampled token; None without a grammar.
    decisions: what each choice would have brought; None where nobody knows.
    truncated_B: bool, rows that the context cut, or with a turn that its limit cut; None where
      nobody told.
    """

    tokens_BT: np.ndarray
    length_B: np.ndarray
    turns_BT: np.ndarray
    behaviour_BT: np.ndarray
    rewards_BJ: np.ndarray
    turn_mask_BJ: np.ndarray
    allowed: Allowed | None = None
    decisions: Decisions | None = None
    truncated_B: np.ndarray | None = None


# (params, key, step) -> the conversations, and metrics to log (reward, regret, ...). It depends on
# nothing else, so that a resumed run continues as an uninterrupted one would.
Rollout = Callable[[dict, jax.Array, int], tuple[RolloutBatch, dict[str, float]]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UpdateBatch:
    """The loss's input; a field is [B, T], aligned with the tokens, or [B, M].

    tokens, positions: i32. segments: i32, 1 on a row's tokens and 0 elsewhere (the attention mask),
    where rows that share a beginning do not start at their first place; None: no token attends to
    what is behind its row's end. mask: bool, sampled tokens (the loss mask). behaviour, reference:
    f32 log-probabilities of the sampled tokens; with importance weights the behaviour is the
    trainer's. advantages: f32.
    allowed and decisions: as in `RolloutBatch`; decisions are there for enumerated groups alone.
    turns: i32, as in `RolloutBatch`; None but for ratios of sequences. weights: f32, factors of the
    objective; None for 1. place: i32, of the tokens that are scored, from `scored_places`. shared:
    what the rows of a group share; groups stay whole then.
    """

    tokens_BT: jax.Array
    positions_BT: jax.Array
    segments_BT: jax.Array | None
    mask_BT: jax.Array
    behaviour_BT: jax.Array
    reference_BT: jax.Array
    advantages_BT: jax.Array
    allowed: Allowed | None = None
    decisions: Decisions | None = None
    turns_BT: jax.Array | None = None
    weights_BT: jax.Array | None = None
    place_BM: jax.Array | None = None
    shared: SharedPrefix = dataclasses.field(default=NOTHING_SHARED, metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class GRPOLoopConfig:
    """Length and sizes of a run.

    steps: rollouts in all.
    group_size: conversations on one prompt.
    minibatch_rows: conversations that an optimizer update sees.
    epochs: passes over each rollout.
    microbatches: parts of a minibatch that its gradient is summed over.
    length_multiple: rows are cut to the longest one, rounded up to a multiple of this. Each length
      compiles once.
    share_prefixes: whether an update takes whole groups, sampled ones, and computes what their
      members have in common once. Rows are as long as `prefixes.Aligner` makes them then.
    most_sampled: tokens that a row may sample, so that all rollouts have one program; where it is
      0, each power of two that they need compiles.
    save_every: steps between checkpoints.
    """

    steps: int
    group_size: int
    minibatch_rows: int
    epochs: int = 1
    microbatches: int = 1
    length_multiple: int = 256
    share_prefixes: bool = False
    most_sampled: int = 0
    save_every: int = 10


def scored_places(mask_BT: np.ndarray, least: int = 0) -> np.ndarray | None:
    """Return the places of each row's tokens in a loss mask, [B, M], so that they alone are scored.

    M is the count of the row that has most, and no less than `least`, rounded up to a power of two,
    as each M compiles once. Other tokens of the row fill it up. None where M would be no less than
    T.
    """
    M = bucket(max(mask_BT.sum(1).max(), least), 1)
    if M >= mask_BT.shape[1]:
        return None
    return np.argsort(~mask_BT, axis=1, kind="stable")[:, :M].astype(np.int32)


def minibatches(
    batch: UpdateBatch, rows: np.ndarray, config: GRPOLoopConfig, seed: int
) -> Iterator[UpdateBatch]:
    """Cut the given rows into minibatches, in another order each epoch.

    All have `minibatch_rows` rows; the last one of an epoch is filled up with rows outside the
    loss mask. With `share_prefixes` groups stay whole, on any mesh, so that the order is the same.
    """
    rng, size = np.random.default_rng(seed), config.minibatch_rows
    G = config.group_size if config.share_prefixes else 1
    groups = np.unique(rows // G)
    for _ in range(config.epochs):
        order = rng.permutation(groups)
        for start in range(0, len(order), size // G):
            chosen = _members(order[start : start + size // G], G)
            yield take(batch, chosen, size, config.microbatches)


def pieces(batch: UpdateBatch, rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cut the given rows, and those they share a beginning with, into parts of `size` at most."""
    G = batch.shared.members
    whole = _members(np.unique(rows // G), G)
    for start in range(0, len(whole), size):
        yield whole[start : start + size]


def _members(groups: np.ndarray, size: int) -> np.ndarray:
    return (groups[:, None] * size + np.arange(size)).ravel()


def take(batch: UpdateBatch, chosen: np.ndarray, rows: int, microbatches: int = 1) -> UpdateBatch:
    """Take some rows, filled up to `rows` with rows outside the loss mask.

    A microbatch is every n-th row (`training.step.update`). Where rows share a beginning, their
    order is such that each microbatch has whole groups.
    """
    order = np.arange(rows)
    if batch.shared.members > 1:
        order = order.reshape(microbatches, -1).T.ravel()
    filled, real_B1 = np.resize(chosen, rows)[order], (order < len(chosen))[:, None]
    piece = jax.tree.map(lambda x_BT: x_BT[filled], batch)
    decisions = piece.decisions
    if decisions is not None:
        decisions = dataclasses.replace(decisions, place_BJ=decisions.place_BJ * real_B1)
    return dataclasses.replace(piece, mask_BT=piece.mask_BT & real_B1, decisions=decisions)
