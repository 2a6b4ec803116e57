"""Run the job of a config: `python launch/main.py --config=configs/gym.py [--stage=NAME] ...`."""

from autollm_jax import command_line  # noqa: F401  before any module that starts threads
from autollm_jax.job import command

if __name__ == "__main__":
    command.run()
