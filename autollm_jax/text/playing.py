"""Playing: reads an agent's turn as an action and takes the action on an episode."""

from autollm_jax.gym.environment import Episode, Trial
from autollm_jax.text.parsing import parse_action
from autollm_jax.text.spelling import read_config


def act(episode: Episode, text: str | bytes) -> Trial | None:
    """Read an agent's turn and take its action.

    Args:
      episode: not done yet.
      text: any text; a turn without an action is an invalid trial.

    Returns:
      The trial that the action spent; None where the action ended the episode.
    """
    action = parse_action(text)
    if action.finished:
        episode.finish()
        return None
    said = text if isinstance(text, str) else bytes(text).decode("utf-8", "replace")
    return episode.exec_config(read_config(episode.setting.cells, action.config), said)
