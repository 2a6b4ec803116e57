"""Lookahead: the return that a trial would bring, if all advisers together decide those after it.

A trial that finds nothing may tell where to go next, and what a trial finds the next may find as
well. Its own reward knows neither; the return of the rest of the episode does. Training tables hold
every outcome, so that the rest can be played for each choice of a decision: one step of policy
iteration from all advisers together (as in Tesauro and Galperin, 1996).

Letters: N rows, P panels.
"""

from collections.abc import Sequence

import numpy as np

from autollm_jax.forecasts.advice import Offer
from autollm_jax.forecasts.panel import Panel
from autollm_jax.gym.environment import Episode


class Lookahead:
    """The returns of trials on one target; one lookahead serves any number of its episodes.

    Args:
      panel: all advisers together.
    """

    def __init__(self, panel: Panel):
        self._panel = panel
        self._next: dict[tuple[int | None, ...], int | None] = {}

    def returns_of(self, episode: Episode, rows: Sequence[int]) -> np.ndarray:
        """Return what trying each of these rows next would earn by the episode's end [N].

        It is what training may know in hindsight of tables; no player is told it.

        Args:
          episode: not done; it stays as it is.
          rows: of the setting, valid ones; a row given again costs nothing.
        """
        known = {row: self._return_of(episode.fork(), row) for row in set(rows)}
        return np.array([known[row] for row in rows])

    def _return_of(self, episode: Episode, row: int | None) -> float:
        spent = len(episode.trials)
        while row is not None:
            episode.exec_config(episode.setting.configurations[row])
            row = None if episode.done else self._first(episode)
        return sum(episode.rewards[spent:])

    def _first(self, episode: Episode) -> int | None:
        """Return the row that all advisers together put first; None where no row is open."""
        tried = tuple(trial.row for trial in episode.trials)
        if tried not in self._next:
            cost_R = self._panel.costs(episode.trials)
            row = int(cost_R.argmin())
            self._next[tried] = row if np.isfinite(cost_R[row]) else None
        return self._next[tried]


def worth(episode: Episode, offer: Offer, lookahead: Lookahead | None) -> np.ndarray:
    """Return what trusting each panel would bring [P]: a return, or without lookahead a reward."""
    rows = [offer.rows[pick] for pick in offer.picks]
    return lookahead.returns_of(episode, rows) if lookahead else episode.rewards_of(rows)
