"""The task pretraining: find learning rate and batch size, per model size and token count.

    python launch/main.py --config=configs/pretraining.py --stage=ground_truth

trains the runs that the table lacks. Without `--stage` it runs the main job on this task alone.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

K = 1024  # tokens


def get_config(variant: str = "") -> ConfigDict:
    """Return the main job's config, on this task alone."""
    c = runpy.run_path(str(Path(__file__).with_name("gym.py")))["get_config"](variant)
    c.gym.tasks = ("pretraining",)
    return c


def ground_truth() -> ConfigDict:
    """Return the grids of the project's own table, one per level.

    The rates reach far below and above the optimum, as a person's uncertainty does: (median -
    optimum) is then large beside the deviation between seeds.
    """
    g = ConfigDict()
    g.head_dim = 32
    low = (-10.5, -9.5, -8.5, -7.5, -7, -6.5, -6, -5.5, -5, -4.5, -4, -3.5, -2.5)
    mid = (-11.5, -10, -8.5, -7.5, -6.5, -5.5, -4.25, -3.5, -2.5)
    high = (-10, -8, -7, -6, -5, -3.5)
    g.low = level(("16x2", "24x2", "32x2"), (256 * K, 512 * K), low, (2, 4, 8, 16, 32))
    g.mid = level(("48x2", "48x3", "64x2"), (512 * K, 1024 * K), mid, (4, 8, 16, 32))
    g.high = level(("80x2", "96x2"), (512 * K, 768 * K), high, (8, 16))
    return g


def level(models, tokens, exponents, batch_sizes) -> ConfigDict:
    """Return the grid of a level: learning rates 2^exponent x batch sizes."""
    c = ConfigDict()
    c.models = models  # WIDTHxLAYERS
    c.tokens = tokens
    c.learning_rates = tuple(2.0**exponent for exponent in exponents)
    c.batch_sizes = batch_sizes  # sequences
    c.seeds = 3
    c.repeated_every = 3  # one learning rate in so many has all seeds
    return c


def shrink(g: ConfigDict) -> None:
    """Make the grids small, for the smoke test."""
    for name, tokens in (("low", 4_096), ("mid", 8_192)):
        g[name].update({"models": ("16x1",), "tokens": (tokens,), "batch_sizes": (4, 8)})
        g[name].learning_rates = (2.0**-7, 2.0**-6, 2.0**-5, 2.0**-4)
    del g.high
