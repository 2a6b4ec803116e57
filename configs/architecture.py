"""The task architecture: the best model under a parameter limit, by token budget.

    python launch/main.py --config=configs/architecture.py --stage=ground_truth

trains what the table lacks. Without `--stage` it is the main job on this task alone.
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
    """The grids of the own table."""
    g = ConfigDict()
    g.batch_size = 8  # sequences
    g.rate_times_width = 0.75  # the peak learning rate is this over the width
    g.low = level(width=(16, 24, 32), tokens=(32_768, 65_536), limits=(20_000, 30_000))
    g.mid = level(width=(24, 32, 48), tokens=(65_536, 98_304), limits=(32_000, 50_000))
    g.high = level(width=(24, 32, 48), tokens=(131_072, 163_840), limits=(42_000, 70_000))
    return g


def level(width, tokens, limits) -> ConfigDict:
    """108 architectures."""
    c = ConfigDict()
    c.width = width
    c.layers = (1, 2, 3)
    c.heads = (2, 4)
    c.kv_heads = (1, 2)
    c.mlp_ratio = (1, 2, 4)
    c.tokens = tokens
    c.limits = limits  # of all parameters, the embedding's among them
    c.seeds = (0, 1)
    return c


def shrink(g: ConfigDict) -> None:
    """Make it small, for the smoke test."""
    for name, tokens in (("low", 16_384), ("mid", 32_768)):
        g[name].update({"width": (8, 16, 24), "layers": (1,), "heads": (2,), "kv_heads": (2,)})
        g[name].update({"mlp_ratio": (2,), "tokens": (tokens,), "limits": (12_000,)})
    del g.high
