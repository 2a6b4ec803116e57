"""Encodes an episode's turns, each by itself and once, for own and for published policies.

Distillation and rollout both make tokens here and nowhere else, so that a policy reads the same
tokens in both. Both kinds of tokenizer have `encode_opening`, `encode_reply`,
`encode_agent`, `decode`, `stop_id`, `pad_id`, `vocab_size` and `content_hash`.
"""

import itertools
import re
from collections.abc import Iterable

import numpy as np

from autollm_jax.curriculum.teacher import Trajectory
from autollm_jax.data.tokenizer import Tokenizer
from autollm_jax.published.tokenizer import PretrainedTokenizer
from autollm_jax.text.prompts import Turn
from autollm_jax.text.symbols import END_OF_TURN, EXEC, EXEC_END, PANELS, THINK, THINK_END

_SYMBOLS = re.compile(f"({THINK}|{THINK_END}|{EXEC}|{EXEC_END})")
INSTRUCTIONS = (
    "You choose the configuration of a language-model training run. You read what cheaper runs "
    "showed, and the regret that several advisers expect of each candidate. Decide whom to trust "
    f"in a few words between {THINK} and {THINK_END}, then give the letter of a candidate between "
    f"{EXEC} and {EXEC_END}.\n\n"
)


class PolicyTokenizer(Tokenizer):
    """The vocabulary of an own policy, in which the end of a turn is a symbol of its text."""

    @property
    def stop_id(self) -> int:
        """The token that ends an agent's turn."""
        return self.id_of(END_OF_TURN)

    def encode_opening(self, text: str) -> list[int]:
        """Encode the environment's first turn."""
        return [self.bos_id, *self.encode(text)]

    def encode_reply(self, text: str) -> list[int]:
        """Encode a later turn of the environment."""
        return self.encode(text)

    def encode_agent(self, text: str) -> list[int]:
        """Encode an agent's turn."""
        return self.encode(text)


class ChatTokenizer:
    """A published vocabulary whose chat template holds the turns, instructions before the first."""

    def __init__(self, published: PretrainedTokenizer, examples: str = ""):
        """Wrap a vocabulary.

        Args:
          published: with its chat template.
          examples: text between the instructions and the experiment.
        """
        preface = INSTRUCTIONS + examples
        self._published, self._preface = published, preface
        self.stop_id = self.pad_id = published.stop_id  # padding is recognised by its position
        self.vocab_size = published.vocab_size
        self.content_hash = f"{published.content_hash} {preface}"
        self.encode, self.decode = published.encode, published.decode

    def encode_opening(self, text: str) -> list[int]:
        """Encode the instructions and the environment's first turn."""
        return self._published.encode_opening(self._preface + text)

    def encode_reply(self, text: str) -> list[int]:
        """Encode a later turn of the environment."""
        return self._published.encode_reply(text)

    def encode_agent(self, text: str) -> list[int]:
        """Encode an agent's turn; the template's own token ends it.

        The symbols are cut out first, so that each is the same tokens everywhere.
        """
        parts = _SYMBOLS.split(text.removesuffix(END_OF_TURN))
        return [*itertools.chain(*map(self.encode, parts)), self.stop_id]


def examples(trajectories: Iterable[Trajectory], count: int) -> str:
    """Return the shortest first turns of simulated episodes, one for each kind of experiment."""
    shortest: dict[str, str] = {}
    for trajectory in trajectories:
        prompt, answer = (turn.text for turn in trajectory.turns[:2])
        kind, _, _ = prompt.partition(":")
        text = f"Example:\n{prompt}\n{answer.removesuffix(END_OF_TURN)}\n\n"
        if trajectory.turns[1].learned and len(text) < len(shortest.get(kind, text + " ")):
            shortest[kind] = text
    return "".join(sorted(shortest.values(), key=len)[:count]) + "Now the experiment:\n"


def encode_turn(tokenizer, turn: Turn, opens: bool) -> list[int]:
    """Encode one turn, alike in every conversation.

    Args:
      tokenizer: a `PolicyTokenizer` or its like.
      turn: of the environment or the agent.
      opens: whether it opens the conversation.
    """
    if turn.role == "agent":
        return tokenizer.encode_agent(turn.text)
    return (tokenizer.encode_opening if opens else tokenizer.encode_reply)(turn.text)


def panel_ids(tokenizer) -> np.ndarray | None:
    """Return the token of each panel's name [P]; None where a name is several tokens."""
    ids = [tokenizer.encode(name) for name in PANELS]
    return np.array(ids)[:, 0] if all(len(each) == 1 for each in ids) else None
