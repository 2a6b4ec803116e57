"""The full recipe: the main job with more training.

    python launch/main.py --config=configs/gym_full.py
    python launch/main.py --config=configs/gym_full.py --config.gym.roots=gym_data,tables

Half as many simulated episodes again, more updates of distillation, more steps of GRPO. The recipe
is for own and public tables together: their names and numbers are more varied, so the policy needs
more training to copy all of them well.

Measured at d4989bb, before HW-GPT's table was cut to architectures with like layers: with own and
public tables all stages up to GRPO take 14 minutes on one of 2 CPU cores, 5.6 GB. The agent's mean
regret was .242 / .110 / .083 after 1 / 3 / 5 trials on the 64 held-out experiments (five trainings,
all alike to three digits). It was not measured again since.
The variant `:smoke` is the same as that of the main job.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """Return the main job's config, trained for longer."""
    c = runpy.run_path(str(Path(__file__).with_name("gym.py")))["get_config"](variant)
    if variant == "smoke":
        return c
    c.curate.distill_pairs = 5000
    c.distill.steps = 1000
    c.grpo.steps = 10
    c.grpo.save_every = 5
    return c
