"""The full recipe: the main job with more training.

    python launch/main.py --config=configs/gym_full.py
    python launch/main.py --config=configs/gym_full.py --config.gym.roots=gym_data,tables

Twice as many simulated pairs, six times as many pairs of GRPO, more steps; a teacher that looks
ahead; three seeds of evaluation. The recipe is for own and public tables together.
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
    c.curate.distill_pairs = 600
    c.simulate.lookahead = True
    c.distill.steps = 200
    c.grpo.update({"pairs": 600, "steps": 40, "kept_out": 128, "evaluate_every": 8})
    c.evaluation.seeds = (0, 1, 2)
    return c
