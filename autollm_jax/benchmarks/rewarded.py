"""What another library's rollouts brought: its reward function keeps what it is given.

Letters: B rows, T tokens.
"""

from collections.abc import Sequence

import numpy as np

from autollm_jax.benchmarks.grpo import Sizes, even_share
from autollm_jax.benchmarks.turns import Stopwatch


class Rewarded:
    """The part of another library's steps that scores its rollouts.

    played: tokens of the last rollout's rows, prompt and answer, [B, T]; None before any.
    rewards: mean reward of each step.
    """

    def __init__(self, sizes: Sizes, watch: Stopwatch):
        self.played: np.ndarray | None = None
        self.rewards: list[float] = []
        self._prompt, self._watch = sizes.prompt, watch

    def reward(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Return the rewards of rows of tokens; a step's rollout ends here."""
        self.played = np.array(rows)
        rewards_B = even_share(self.played[:, self._prompt :])
        self.rewards.append(float(rewards_B.mean()))
        self._watch.rewarded()
        return rewards_B.tolist()
