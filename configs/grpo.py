"""The task grpo: find the hyperparameters of GRPO, per kind of problem and backbone.

    python launch/main.py --config=configs/grpo.py --stage=ground_truth

trains the runs that the table lacks. Without `--stage` it runs the main job on this task alone.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """Return the main job's config, on this task alone."""
    c = runpy.run_path(str(Path(__file__).with_name("gym.py")))["get_config"](variant)
    c.gym.tasks = ("grpo",)
    return c


def ground_truth() -> ConfigDict:
    """Return the grids of the project's own table, one per level."""
    optimizer = runpy.run_path(str(Path(__file__).with_name("gym.py")))["optimizer"]
    g = ConfigDict()
    g.setup = s = ConfigDict()
    s.dtype = "float32"
    s.backbone_batch = 64  # problems per pre-training batch
    s.backbone_optimizer = optimizer(
        3e-3, warmup_fraction=0.0, decay="constant", final_fraction=1.0, weight_decay=0.0
    )
    s.optimizer = optimizer(decay="linear", final_fraction=0.0, b2=0.99, weight_decay=0.0)
    s.rollout_rows = 64  # answers per rollout
    s.minibatch_rows = 32  # answers per update
    s.epochs = 2  # passes over each rollout
    g.choices = ConfigDict()
    g.choices.kl_coefficient = (0.0, 0.1)
    g.choices.group_size = (4, 8, 16)
    g.choices.clip_range = (0.2,)
    g.choices.temperature = (0.7, 1.0)
    # A backbone's pre-training stops where it solves .1 to .4 of the problems at temperature 1.
    rates = (5e-5, 1.5e-4, 5e-4, 1.5e-3, 5e-3)
    g.low = level(32, 2, (24, 48), rates, addition=4500, numbers=1500, sorting=2000)
    g.mid = level(64, 4, (16, 32), rates, addition=2500, numbers=800, sorting=1000)
    g.high = level(96, 6, (16, 24), rates[1:], numbers=400, sorting=500)
    return g


def level(width, heads, steps, learning_rates, **backbone_steps) -> ConfigDict:
    """Return the grid of a level: up to 60 configurations for each kind of problem."""
    c = ConfigDict()
    c.problems = tuple(backbone_steps)
    c.width = width
    c.layers = 2
    c.heads = heads
    c.backbone_steps = ConfigDict(backbone_steps)  # of pre-training
    c.steps = steps  # rollouts; each number is a budget of its own
    c.learning_rates = learning_rates
    c.seeds = 3
    c.repeated_every = 3  # one configuration in so many has all seeds
    return c


def shrink(g: ConfigDict) -> None:
    """Make the grids small, for the smoke test."""
    g.setup.update({"rollout_rows": 16, "minibatch_rows": 16, "epochs": 1})
    g.choices.update({"group_size": (4,), "clip_range": (0.2,), "temperature": (1.0,)})
    for name, steps in (("low", 2), ("mid", 3)):
        g[name].update({"problems": ("addition",), "width": 16, "heads": 2, "layers": 1})
        g[name].update({"steps": (steps,), "learning_rates": (1e-4, 1e-3)})
        g[name].backbone_steps = ConfigDict({"addition": 200})
    del g.high
