"""The task data_mixture: find the shares of six domains, per model, token budget and objective.

    python launch/main.py --config=configs/data_mixture.py --stage=ground_truth

trains the runs that the table lacks. Without `--stage` it runs the main job on this task alone.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """Return the main job's config, on this task alone."""
    c = runpy.run_path(str(Path(__file__).with_name("gym.py")))["get_config"](variant)
    c.gym.tasks = ("data_mixture",)
    return c


def ground_truth() -> ConfigDict:
    """Return the grids of the project's own table, one per level."""
    g = ConfigDict()
    # Shares of bytes in CPython 3.11's standard library, as autollm_jax/data/corpora.py reads it.
    g.natural = ConfigDict()
    g.natural.bytecode = 0.08
    g.natural.character_names = 0.09
    g.natural.docstrings = 0.08
    g.natural.language_reference = 0.04
    g.natural.library_code = 0.36
    g.natural.test_code = 0.35
    g.head_dim = 8
    g.batch_size = 8  # sequences
    g.low = level(models=("16x2",), tokens=(32_768, 65_536), rate_times_width=0.5)
    g.mid = level(models=("24x2",), tokens=(65_536, 98_304), rate_times_width=0.75)
    g.high = level(models=("32x2",), tokens=(98_304, 131_072), rate_times_width=32 * 2.0**-5.5)
    return g


def level(models, tokens, rate_times_width) -> ConfigDict:
    """Return the grid of a level: 50 mixtures, half of them shared with the other levels."""
    c = ConfigDict()
    c.models = models  # WIDTHxLAYERS
    c.tokens = tokens
    c.mixtures = 50
    c.own = 25  # mixtures that no other level has
    c.rate_times_width = rate_times_width  # peak learning rate x width
    c.seeds = 2
    c.repeated_every = 5  # one mixture in so many has all seeds
    return c


def shrink(g: ConfigDict) -> None:
    """Make the grids small, for the smoke test."""
    for name, tokens in (("low", 4_096), ("mid", 8_192)):
        g[name].update({"models": ("16x1",), "tokens": (tokens,)})
        g[name].update({"mixtures": 6, "own": 3})
    del g.high
