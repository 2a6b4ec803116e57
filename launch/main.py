"""Run the job of a config: `python launch/main.py --config=configs/gym.py [--stage=NAME] ...`."""

from autollm_jax import command_line  # noqa: F401  before any module that starts threads

if __name__ == "__main__":  # processes that the job starts load this file too, and need no more
    from autollm_jax.job import command

    command.run()
