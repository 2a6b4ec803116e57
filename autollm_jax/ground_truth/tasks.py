"""The tasks by name, and their plans, made from `config.ground_truth`."""

from collections.abc import Mapping

from autollm_jax.errors import UserError
from autollm_jax.ground_truth import architecture, data_mixture, grpo, pretraining
from autollm_jax.ground_truth.grpo import GRPOSetup
from autollm_jax.ground_truth.language_model import LanguageModelSetup
from autollm_jax.ground_truth.plan import Plan
from autollm_jax.gym.tables import LEVELS
from autollm_jax.training.optimizer import OptimizerConfig

TASKS = {module.TASK: module for module in (architecture, data_mixture, grpo, pretraining)}


def make_plan(config: Mapping, task: str) -> Plan:
    """Make a task's plan.

    Args:
      config: `config.ground_truth` as a plain dict.
      task: the task's name.

    Raises:
      UserError: there is no such task.
    """
    if task not in TASKS:
        raise UserError(f"config.gym.tasks: no task {task!r}; accepted are {', '.join(TASKS)}")
    fields = dict(config[task])
    # A task without a setup of its own has language-model runs.
    setup = fields.pop("setup", config["language_model"])
    setup_class = GRPOSetup if task == grpo.TASK else LanguageModelSetup
    optimizers = {
        name: OptimizerConfig(**value) for name, value in setup.items() if "optimizer" in name
    }
    levels = {level: fields.pop(level) for level in LEVELS if level in fields}
    return TASKS[task].plan(
        config["source"], setup_class(**{**setup, **optimizers}), levels, **fields
    )
