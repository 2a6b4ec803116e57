"""The tasks by name: what `config.ground_truth` says of each, as a plan."""

from collections.abc import Mapping

from autollm_jax.errors import UserError
from autollm_jax.ground_truth import architecture, data_mixture, pretraining
from autollm_jax.ground_truth.language_model import LanguageModelSetup
from autollm_jax.ground_truth.plan import Plan
from autollm_jax.gym.tables import LEVELS
from autollm_jax.training.optimizer import OptimizerConfig

TASKS = {module.TASK: module for module in (architecture, data_mixture, pretraining)}


def make_plan(config: Mapping, task: str) -> Plan:
    """Make a task's plan.

    Args:
      config: `config.ground_truth` as a plain dict.
      task: which.

    Raises:
      UserError: there is no such task.
    """
    if task not in TASKS:
        raise UserError(f"config.gym.tasks: no task {task!r}; accepted are {', '.join(TASKS)}")
    fields = dict(config[task])
    levels = {level: fields.pop(level) for level in LEVELS if level in fields}
    return TASKS[task].plan(config["source"], language_model_setup(config), levels, **fields)


def language_model_setup(config: Mapping) -> LanguageModelSetup:
    """Read what all language-model runs have in common."""
    fields = dict(config["language_model"])
    return LanguageModelSetup(**fields | {"optimizer": OptimizerConfig(**fields["optimizer"])})
