"""Ask what to try next, from your own runs: `python launch/advise.py --help`."""

from absl import logging

from autollm_jax import command_line
from autollm_jax.advise import command

if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    command_line.run(command.main)
