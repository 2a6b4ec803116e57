"""The task data_mixture: find the shares of six domains, per model, token budget and objective.

    python launch/main.py --config=configs/data_mixture.py --stage=ground_truth

trains the runs that the table lacks. Without `--stage` it runs the main job on this task alone.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

K = 1024  # tokens


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
    g.head_dim = 32
    g.batch_size = 16  # sequences
    g.low = level(("24x2", "32x2"), (256 * K, 512 * K), mixtures=20)
    g.mid = level(("48x2", "64x2"), (256 * K, 384 * K, 512 * K), mixtures=16)
    g.high = level(("80x2", "96x2"), (384 * K, 512 * K), mixtures=16)
    return g


def level(models, tokens, mixtures) -> ConfigDict:
    """Return the grid of a level: mixtures, half of them shared with the other levels."""
    c = ConfigDict()
    c.models = models  # WIDTHxLAYERS
    c.tokens = tokens
    c.mixtures = mixtures
    c.own = mixtures // 2  # mixtures that no other level has
    c.rate_times_width = 0.75  # peak learning rate x width
    c.seeds = 3
    c.repeated_every = 3  # one mixture in so many has all seeds
    return c


def shrink(g: ConfigDict) -> None:
    """Make the grids small, for the smoke test."""
    for name, tokens in (("low", 4_096), ("mid", 8_192)):
        g[name].update({"models": ("16x1",), "tokens": (tokens,)})
        g[name].update({"mixtures": 6, "own": 3})
    del g.high
