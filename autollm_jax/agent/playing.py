"""One agent turn on an episode: reads its text as an action and takes the action."""

from autollm_jax.agent.parsing import parse_action
from autollm_jax.agent.spelling import read_config
from autollm_jax.gym.environment import Episode, Trial


def act(episode: Episode, text: str | bytes) -> Trial | None:
    """Read an agent's turn and take its action.

    Args:
      episode: not done yet.
      text: any text; a turn without an action is an invalid trial.

    Returns:
      The trial that the turn used; None if it ended the episode.
    """
    action = parse_action(text)
    if action.finished:
        episode.finish()
        return None
    said = text if isinstance(text, str) else bytes(text).decode("utf-8", "replace")
    return episode.exec_config(read_config(episode.experiment.cells, action.config), said)
