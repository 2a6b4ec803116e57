"""One agent turn on an episode: its text is read as an action, and the action is taken."""

from autollm_jax.agent.parsing import parse_action
from autollm_jax.agent.spelling import read_config
from autollm_jax.gym.environment import Episode, Trial


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
