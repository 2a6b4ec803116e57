"""Lays out conversations so that the common beginning of a group is computed once.

Letters: N groups, G members, B = N * G rows, T tokens.
"""

import dataclasses

import numpy as np

from autollm_jax.models.shared_prefix import NOTHING_SHARED, SharedPrefix
from autollm_jax.rl.batches import RolloutBatch
from autollm_jax.rl.grammar import bucket
from autollm_jax.rl.logprobs import Allowed

STEPS = 16  # lengths are multiples of the longest row's sixteenth, so that few programs compile
LEAST_SAVED = 0.1  # of the tokens; for less, rows stay as they are


def align(played: RolloutBatch, members: int) -> tuple[RolloutBatch, np.ndarray, SharedPrefix]:
    """Move rows to the right, so that the common beginnings of all groups end at one place.

    Args:
      played: the conversations.
      members: of a group.

    Returns:
      The conversations, without `decisions`; the place start_B of each row's first token; and what
      the rows share. The length of the shared part is the one that leaves fewest tokens to compute.
      Where little is shared, the conversations are as they were.
    """
    B, T = played.tokens_BT.shape
    common_N = _common(played.tokens_BT, played.length_B, members)
    common_B, longest = np.repeat(common_N, members), int(played.length_B.max())
    unit = bucket(-(-longest // STEPS), 1)

    def own(P: int) -> int:
        most = (played.length_B - np.minimum(common_B, P)).max()
        return -(-int(most) // unit) * unit

    def computed(P: int) -> int:
        return B // members * P + B * own(P)

    P = min(range(0, int(common_N.max()) + 1, unit), key=computed)
    if computed(P) > (1 - LEAST_SAVED) * B * longest:
        return played, np.zeros(B, np.int32), NOTHING_SHARED
    start_B = (P - np.minimum(common_B, P)).astype(np.int32)
    from_BT = np.arange(P + own(P), dtype=np.int32) - start_B[:, None]
    there_BT = (from_BT >= 0) & (from_BT < played.length_B[:, None])

    def moved(x_BT, outside=None):
        from_ = np.clip(from_BT, 0, T - 1).reshape(*from_BT.shape, *(1,) * (x_BT.ndim - 2))
        moved_BT = np.take_along_axis(x_BT, from_, axis=1)
        return moved_BT if outside is None else np.where(there_BT, moved_BT, outside)

    allowed = played.allowed
    if allowed is not None:
        allowed = Allowed(moved(allowed.free_BT), moved(allowed.token_BTK), allowed.free_BV)
    aligned = dataclasses.replace(
        played,
        tokens_BT=moved(played.tokens_BT, 0),
        turns_BT=moved(played.turns_BT, -1),
        behaviour_BT=moved(played.behaviour_BT, 0),
        allowed=allowed,
        decisions=None,
    )
    return aligned, start_B, SharedPrefix(members, P)


def _common(tokens_BT: np.ndarray, length_B: np.ndarray, members: int) -> np.ndarray:
    """Return how many first tokens all members of each group have in common, less than a row."""
    tokens_NGT = tokens_BT.reshape(-1, members, tokens_BT.shape[1])
    same_NT = (tokens_NGT == tokens_NGT[:, :1]).all(1)
    until_N = np.cumprod(same_NT, axis=1).sum(1)
    return np.minimum(until_N, length_B.reshape(-1, members).min(1) - 1)
