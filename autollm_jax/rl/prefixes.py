"""Lays out conversations so that the common beginning of a group is computed once.

Letters: N groups, G members, B = N * G rows, T tokens, P shared ones, C own ones of a row.
"""

import dataclasses

import numpy as np

from autollm_jax.models.shared_prefix import NOTHING_SHARED, SharedPrefix
from autollm_jax.rl.batches import RolloutBatch
from autollm_jax.rl.grammar import bucket
from autollm_jax.rl.logprobs import Allowed

PARTS = 16  # P and C are multiples of such a part of the longest row
LEAST_SAVED = 0.1  # of the tokens; for less, rows stay as they are
MOST_MORE = 1.25  # times the fewest tokens that a rollout needs, for a program that there is


class Aligner:
    """Moves rows to the right, so that the common beginnings of all groups end at one place, P.

    Each P and C compiles programs. A rollout takes those of the one before where they leave few
    more tokens to compute than its own would.

    Args:
      members: of a group.
    """

    def __init__(self, members: int):
        self._members, self._sizes = members, (0, 0)

    def __call__(self, played: RolloutBatch) -> tuple[RolloutBatch, np.ndarray, SharedPrefix]:
        """Move the rows of a rollout.

        Args:
          played: the conversations.

        Returns:
          The conversations, without `decisions`; the place start_B of each row's first token; and
          what the rows share. Where little is shared, the conversations are as they were.
        """
        B, longest = len(played.length_B), int(played.length_B.max())
        common_B = np.repeat(_common(played, self._members), self._members)
        unit = bucket(-(-longest // PARTS), 1)

        def own(P: int) -> int:
            return int((played.length_B - np.minimum(common_B, P)).max())

        def computed(P: int, C: int) -> int:
            return B // self._members * P + B * C

        wanted = range(0, int(common_B.max()) + 1, unit)
        P, C = min(((P, -(-own(P) // unit) * unit) for P in wanted), key=lambda x: computed(*x))
        most = (1 - LEAST_SAVED) * B * longest
        if computed(P, C) >= most:
            return played, np.zeros(B, np.int32), NOTHING_SHARED
        before, most = self._sizes, min(most, MOST_MORE * computed(P, C))
        if own(before[0]) <= before[1] and computed(*before) <= most:
            P, C = before
        self._sizes = P, C
        start_B = (P - np.minimum(common_B, P)).astype(np.int32)
        return _moved(played, start_B, P + C), start_B, SharedPrefix(self._members, P)


def _common(played: RolloutBatch, members: int) -> np.ndarray:
    """Return how many first tokens all members of a group have in common [N], less than a row."""
    tokens_NGT = played.tokens_BT.reshape(-1, members, played.tokens_BT.shape[1])
    same_NT = (tokens_NGT == tokens_NGT[:, :1]).all(1)
    until_N = np.cumprod(same_NT, axis=1).sum(1)
    return np.clip(played.length_B.reshape(-1, members).min(1) - 1, 0, until_N)


def _moved(played: RolloutBatch, start_B: np.ndarray, T: int) -> RolloutBatch:
    """Return the conversations in rows of T tokens, in which they begin at start_B."""
    from_BT = np.arange(T, dtype=np.int32) - start_B[:, None]
    there_BT = (from_BT >= 0) & (from_BT < played.length_B[:, None])
    from_BT = np.clip(from_BT, 0, played.tokens_BT.shape[1] - 1)

    def moved(x_BT):
        return np.take_along_axis(x_BT, from_BT.reshape(*from_BT.shape, *(1,) * (x_BT.ndim - 2)), 1)

    allowed = played.allowed
    if allowed is not None:
        allowed = Allowed(moved(allowed.free_BT), moved(allowed.token_BTK), allowed.free_BV)
    return dataclasses.replace(
        played,
        tokens_BT=np.where(there_BT, moved(played.tokens_BT), 0),
        turns_BT=np.where(there_BT, moved(played.turns_BT), -1),
        behaviour_BT=np.where(there_BT, moved(played.behaviour_BT), 0),
        allowed=allowed,
        decisions=None,
    )
