"""The task architecture: find the best model under a parameter limit, per token budget.

    python launch/main.py --config=configs/architecture.py --stage=ground_truth

trains the runs that the table lacks. Without `--stage` it runs the main job on this task alone.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """Return the main job's config, on this task alone."""
    c = runpy.run_path(str(Path(__file__).with_name("gym.py")))["get_config"](variant)
    c.gym.tasks = ("architecture",)
    return c


def ground_truth() -> ConfigDict:
    """Return the grids of the project's own table, one per level."""
    g = ConfigDict()
    g.batch_size = 8  # sequences
    g.rate_times_width = 0.75  # peak learning rate x width
    g.low = level(width=(16, 24, 32), tokens=(32_768, 65_536), limits=(20_000, 30_000))
    g.mid = level(width=(24, 32, 48), tokens=(65_536, 98_304), limits=(32_000, 50_000))
    g.high = level(width=(24, 32, 48), tokens=(131_072, 163_840), limits=(42_000, 70_000))
    return g


def level(width, tokens, limits) -> ConfigDict:
    """Return the grid of a level: 108 architectures."""
    c = ConfigDict()
    c.width = width
    c.layers = (1, 2, 3)
    c.heads = (2, 4)
    c.kv_heads = (1, 2)
    c.mlp_ratio = (1, 2, 4)
    c.tokens = tokens
    c.limits = limits  # of all parameters, including the embedding
    c.seeds = 2
    c.repeated_every = 1  # one architecture in so many has all seeds
    return c


def shrink(g: ConfigDict) -> None:
    """Make the grids small, for the smoke test."""
    for name, tokens in (("low", 4_096), ("mid", 8_192)):
        g[name].update({"width": (8, 16, 24), "layers": (1,), "heads": (2,), "kv_heads": (2,)})
        g[name].update({"mlp_ratio": (2,), "tokens": (tokens,), "limits": (12_000,)})
    del g.high
