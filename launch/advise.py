"""Ask what to try next, from your own runs: `python launch/advise.py --help`."""

from autollm_jax import command_line  # noqa: F401  before any module that starts threads
from autollm_jax.advise import command

if __name__ == "__main__":
    command.run()
