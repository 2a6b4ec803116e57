"""The environment's side of a batch of conversations: prompts, replies, their tokens, look-ups."""

from collections.abc import Sequence

from autollm_jax.agent.constraint import next_turn
from autollm_jax.agent.dialogue import encode_turn
from autollm_jax.forecasts.advisers import forecast
from autollm_jax.gym.environment import Episode, Observation
from autollm_jax.text import prompts
from autollm_jax.text.claims import Audit, audit
from autollm_jax.text.parsing import parse_action
from autollm_jax.text.playing import act
from autollm_jax.text.prompts import Turn


class EnvironmentTurns:
    """The environment's side of a batch of episodes.

    Attributes:
      transcripts, rewards, audits: of each row, as in `rollout.Played`.
      rules: the grammar of each row's next turn; None where any turn is allowed.
    """

    def __init__(self, tokenizer, episodes: Sequence[Episode], config, audited: bool):
        """Begin episodes.

        Args:
          tokenizer: the policy's.
          episodes: fresh ones.
          config: how to play (`rollout.PlayConfig`): the adviser, and whether turns follow `rules`.
          audited: whether to check the claims of each turn's thinking.
        """
        self._tokenizer, self._episodes = tokenizer, episodes
        self._constrained, self._audited = config.constrained, audited
        forecasts = {}
        for e in episodes:
            key = (e.setting, e.evidence)
            if key not in forecasts:
                forecasts[key] = forecast(*key, config.advisor)
        self._forecasts = [forecasts[e.setting, e.evidence] for e in episodes]
        self.transcripts: list[list[Turn]] = [[] for _ in episodes]
        self.rewards: list[list[float]] = [[] for _ in episodes]
        self.audits: list[list[Audit]] = [[] for _ in episodes]
        self.rules: list = [None] * len(episodes)

    def opening(self, rows: range) -> list[int]:
        """Return the tokens of the first prompt of rows that are copies of one episode."""
        turn = prompts.environment_turn(prompts.describe(self._tell(rows[0])))
        for row in rows:
            if self._episodes[row].setting.id != self._episodes[rows[0]].setting.id:
                raise ValueError("the members of a group play different experiments")
            self.transcripts[row].append(turn)
            self._permit(row)
        return encode_turn(self._tokenizer, turn, opens=True)

    def answer(self, row: int, tokens: Sequence[int]) -> list[int]:
        """Take the agent's turn in a row; return the reply's tokens, none at the end."""
        episode, text = self._episodes[row], self._tokenizer.decode(tokens)
        self.transcripts[row].append(prompts.agent_turn(text))
        if self._audited:
            self.audits[row].append(audit(parse_action(text).think, self._tell(row)))
        spent = len(episode.rewards)
        trial = act(episode, text)
        self.rewards[row].append(sum(episode.rewards[spent:]))
        if episode.done:
            return []
        turn = prompts.environment_turn(prompts.feedback(trial, self._tell(row)))
        self.transcripts[row].append(turn)
        self._permit(row)
        return encode_turn(self._tokenizer, turn, opens=False)

    def _tell(self, row: int) -> Observation:
        return self._episodes[row].tell(self._forecasts[row])

    def _permit(self, row: int) -> None:
        if self._constrained:
            self.rules[row] = next_turn(self._tokenizer, self._episodes[row])
