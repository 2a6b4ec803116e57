"""The task pretraining: find learning rate and batch size, per model size and token count.

    python launch/main.py --config=configs/pretraining.py --stage=ground_truth

trains the runs that the table lacks. Without `--stage` it runs the main job on this task alone.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """Return the main job's config, on this task alone."""
    c = runpy.run_path(str(Path(__file__).with_name("gym.py")))["get_config"](variant)
    c.gym.tasks = ("pretraining",)
    return c


def ground_truth() -> ConfigDict:
    """Return the grids of the project's own table, one per level."""
    g = ConfigDict()
    g.head_dim = 8
    g.low = level(models=("16x2", "24x2"), tokens=(65_536, 131_072), first=-9)
    g.mid = level(models=("32x2",), tokens=(131_072, 196_608), first=-9.5)
    g.high = level(models=("40x2",), tokens=(163_840, 229_376), first=-10)
    return g


def level(models, tokens, first) -> ConfigDict:
    """Return the grid of a level: 15 learning rates, from 2^first in steps of 2^0.5, x 7 sizes."""
    c = ConfigDict()
    c.models = models  # WIDTHxLAYERS
    c.tokens = tokens
    c.learning_rates = tuple(2.0 ** (first + k / 2) for k in range(15))
    c.batch_sizes = (1, 2, 4, 8, 16, 32, 64)  # sequences
    c.seeds = 2
    c.repeated_every = 5  # one learning rate in so many has all seeds
    return c


def shrink(g: ConfigDict) -> None:
    """Make the grids small, for the smoke test."""
    for name, tokens in (("low", 4_096), ("mid", 8_192)):
        g[name].update({"models": ("16x1",), "tokens": (tokens,), "batch_sizes": (4, 8)})
        g[name].learning_rates = (2.0**-7, 2.0**-6, 2.0**-5, 2.0**-4)
    del g.high
