"""One agent turn on an episode: its text is read as an action, and the action is taken."""

from autollm_jax.gym.environment import Episode, Trial
from autollm_jax.text.parsing import parse_action
from autollm_jax.text.spelling import read_config


def act(episode: Episode, text: str | bytes) -> Trial | None:
    """Read an agent's turn and take its action.

    Args:
      episode: not done yet.
      text: the turn, whatever it says: one without an action is an invalid trial.

    Returns:
      The trial it spent; None where it ended the episode.
    """
    action = parse_action(text)
    if action.finished:
        episode.finish()
        return None
    said = text if isinstance(text, str) else bytes(text).decode("utf-8", "replace")
    return episode.exec_config(read_config(episode.setting.cells, action.config), said)
