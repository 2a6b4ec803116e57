"""The environment's side of a batch of conversations: prompts, replies, their tokens, look-ups."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from autollm_jax.agent.dialogue import encode_turn
from autollm_jax.curriculum.lookahead import Lookahead, worth
from autollm_jax.forecasts.advice import Decision, Offer, decision_of
from autollm_jax.forecasts.advisers import counsel
from autollm_jax.forecasts.panel import Panel
from autollm_jax.gym.environment import Episode
from autollm_jax.text import prompts
from autollm_jax.text.claims import Audit, audit
from autollm_jax.text.parsing import parse_action
from autollm_jax.text.playing import act
from autollm_jax.text.prompts import Turn

# The agent and the policy that it started from play the same games one after the other.
_counsel = functools.lru_cache(maxsize=128)(counsel)


@dataclasses.dataclass(frozen=True)
class Start:
    """How an episode begins.

    Attributes:
      episode: a fresh one.
      panel: the advisers; made here where it is None.
      order: seed of the candidates' order.
      lookahead: of the target; with it, hindsight knows what a choice earns by the episode's end,
        else what its own trial does.
    """

    episode: Episode
    panel: Panel | None = None
    order: int = 0
    lookahead: Lookahead | None = None


class EnvironmentTurns:
    """The environment's side of a batch of episodes.

    Attributes:
      episodes: of each row.
      transcripts, rewards, audits: of each row, as in `rollout.Played`.
      hindsight: of each row, for each turn, the reward [P] that trusting each panel would have
        brought, or with a lookahead the return; None where play is scored.
      offers: of each row, for each turn, the candidates and the panels' picks among them.
      choices: how many candidates each row's next turn chooses between; None where any turn is
        allowed.
    """

    def __init__(self, tokenizer, starts: Sequence[Start], config, scored: bool):
        """Begin episodes.

        Args:
          tokenizer: the policy's.
          starts: fresh episodes.
          config: how to play (`rollout.PlayConfig`): full texts or brief ones, constrained or not.
          scored: whether to check the claims of each turn's thinking, and to write transcripts in
            full.
        """
        self._tokenizer, self._config, self._scored = tokenizer, config, scored
        self.episodes = [start.episode for start in starts]
        self._orders = [start.order for start in starts]
        self._panels = [start.panel for start in starts]
        self._lookaheads = [start.lookahead for start in starts]
        self._decisions: list[Decision | None] = [None] * len(starts)
        self.transcripts: list[list[Turn]] = [[] for _ in starts]
        self.rewards: list[list[float]] = [[] for _ in starts]
        self.audits: list[list[Audit]] = [[] for _ in starts]
        self.hindsight: list[list[np.ndarray]] = [[] for _ in starts]
        self.offers: list[list[Offer]] = [[] for _ in starts]
        self.choices: list[int | None] = [None] * len(starts)

    def opening(self, rows: Sequence[int]) -> list[int]:
        """Return the tokens of the first prompt of rows that are copies of one episode."""
        first = self.episodes[rows[0]]
        panel = self._panels[rows[0]] or _counsel(
            first.setting, first.evidence, failing=self._config.failing
        )
        for row in rows:
            self._panels[row] = panel
            if self.episodes[row].setting.id != first.setting.id:
                raise ValueError("the members of a group play different experiments")
            decision = self._decide(row)
            if decision is None:
                raise ValueError(f"{self.episodes[row].setting.id}: nothing to try")
            self._say(row, prompts.describe(decision, self._config.full or self._scored))
        decision = self._decisions[rows[0]]
        turn = prompts.environment_turn(prompts.describe(decision, self._config.full))
        return encode_turn(self._tokenizer, turn, opens=True)

    def answer(self, row: int, tokens: Sequence[int]) -> list[int]:
        """Take the agent's turn in a row; return the reply's tokens, none at the end."""
        episode, text = self.episodes[row], self._tokenizer.decode(tokens)
        decision = self._decisions[row]
        self.offers[row].append(decision.offer)
        self.transcripts[row].append(prompts.agent_turn(text))
        if self._scored:
            self.audits[row].append(audit(parse_action(text).think, decision))
        else:
            brought_P = worth(episode, decision.offer, self._lookaheads[row])
            self.hindsight[row].append(brought_P)
        spent = len(episode.rewards)
        trial = act(episode, text, decision.offer.rows)
        self.rewards[row].append(sum(episode.rewards[spent:]))
        decision = None if episode.done else self._decide(row)
        if decision is None:
            episode.finish()
            self._panels[row] = None
            return []
        said = [
            prompts.feedback(trial, decision, decision.observation, full)
            for full in (self._config.full or self._scored, self._config.full)
        ]
        self._say(row, said[0])
        return encode_turn(self._tokenizer, prompts.environment_turn(said[1]), opens=False)

    def _decide(self, row: int) -> Decision | None:
        seen, panel = self.episodes[row].tell(), self._panels[row]
        assert panel is not None, "an episode that has not begun, or is over"
        decision = decision_of(panel, seen, self._orders[row])
        self._decisions[row] = decision
        if self._config.constrained and decision is not None:
            self.choices[row] = len(decision.offer.rows)
        return decision

    def _say(self, row: int, text: str) -> None:
        self.transcripts[row].append(prompts.environment_turn(text))
