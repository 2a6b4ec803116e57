"""Run the job of a config: `python launch/main.py --config=configs/gym.py [--stage=NAME] ...`."""

from absl import flags
from ml_collections import config_flags

from autollm_jax import command_line
from autollm_jax.errors import UserError
from autollm_jax.job import stages

CONFIG = config_flags.DEFINE_config_file("config", help_string="The job's config file.")
WORKDIR = command_line.define_path("workdir", "workdir", "Folder of everything the job writes.")
STAGE = flags.DEFINE_enum(
    "stage", "all", ["all", *stages.STAGES], "One stage, or all; resumes where the work stands."
)
RESTART = flags.DEFINE_enum(
    "restart",
    None,
    list(stages.PIPELINE),
    "Set aside the files that this stage and later ones wrote, then run; their fields may change.",
)


def main(argv: list[str]) -> None:
    """Run the stages that the flags name."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; flags look like --config.seed=1")
    if CONFIG.value is None:
        raise UserError("--config is missing; try --config=configs/gym.py")
    stages.run(CONFIG.value, WORKDIR.value, STAGE.value, RESTART.value or "")


def run() -> None:
    """Run the command: the entry point `autollm`, and `launch/main.py`."""
    command_line.run(main)
