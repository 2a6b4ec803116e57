"""The task architecture: find the best model under a parameter limit, per token budget.

    python launch/main.py --config=configs/architecture.py --stage=ground_truth

trains the runs that the table lacks. Without `--stage` it runs the main job on this task alone.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

K = 1024  # tokens


def get_config(variant: str = "") -> ConfigDict:
    """Return the main job's config, on this task alone."""
    c = runpy.run_path(str(Path(__file__).with_name("gym.py")))["get_config"](variant)
    c.gym.tasks = ("architecture",)
    return c


def ground_truth() -> ConfigDict:
    """Return the grids of the project's own table, one per level."""
    g = ConfigDict()
    g.batch_size = 16  # sequences
    g.rate_times_width = 0.75  # peak learning rate x width
    g.low = level((16, 24, 32), (1, 2, 3), (256 * K, 384 * K), limits=(20_000, 28_000, 40_000))
    # Widths far too narrow widen the range of losses, beside which seeds differ less.
    g.mid = level((16, 32, 48, 64), (1, 2, 3), (384 * K, 512 * K), limits=(60_000, 80_000, 100_000))
    g.high = level(
        (32, 48, 64, 96), (2, 3, 4), (384 * K, 512 * K), limits=(150_000, 175_000, 200_000)
    )
    return g


def level(width, layers, tokens, limits) -> ConfigDict:
    """Return the grid of a level; architectures over the largest limit are not trained."""
    c = ConfigDict()
    c.width = width
    c.layers = layers
    c.heads = (2, 4)
    c.kv_heads = (1, 2)
    c.mlp_ratio = (2, 4)
    c.tokens = tokens
    c.limits = limits  # of all parameters, including the embedding
    c.seeds = 3
    c.repeated_every = 3  # one architecture in so many has all seeds
    return c


def shrink(g: ConfigDict) -> None:
    """Make the grids small, for the smoke test."""
    for name, tokens in (("low", 4_096), ("mid", 8_192)):
        g[name].update({"width": (8, 16, 24), "layers": (1,), "heads": (2,), "kv_heads": (2,)})
        g[name].update({"mlp_ratio": (2,), "tokens": (tokens,), "limits": (12_000,)})
    del g.high
