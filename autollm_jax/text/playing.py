"""Playing: reads an agent's turn as an action and takes the action on an episode."""

from collections.abc import Sequence

from autollm_jax.gym.environment import Episode, Trial
from autollm_jax.text.parsing import parse_action
from autollm_jax.text.spelling import read_config


def act(episode: Episode, text: str | bytes, rows: Sequence[int]) -> Trial | None:
    """Read an agent's turn and take its action.

    Args:
      episode: not done yet.
      text: any text; a turn without an action, or with a letter that is not offered, is an invalid
        trial.
      rows: the row of each candidate.

    Returns:
      The trial that the action spent; None where the action ended the episode.
    """
    action = parse_action(text)
    if action.finished:
        episode.finish()
        return None
    config = read_config(episode.setting.cells, action.config)
    if action.letter is not None and action.letter < len(rows):
        config = episode.setting.configurations[rows[action.letter]]
    said = text if isinstance(text, str) else bytes(text).decode("utf-8", "replace")
    return episode.exec_config(config, said)
