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
    s.backbone_optimizer = optimizer(5e-3, final_fraction=0.1, weight_decay=0.0)
    s.optimizer = optimizer(decay="constant", b1=0.9, b2=0.99, weight_decay=0.0)
    s.rollout_rows = 64  # answers per rollout
    s.minibatch_rows = 32  # answers per update
    s.epochs = 2  # passes over each rollout
    g.choices = ConfigDict()
    g.choices.kl_coefficient = (0.0, 0.1)
    g.choices.group_size = (4, 8, 16)
    g.choices.clip_range = (0.1, 0.3)
    g.choices.temperature = (0.7, 1.0)
    # The pre-training of a backbone stops where it solves a quarter to a half of the problems.
    g.low = level(width=16, heads=2, steps=24, arithmetic=1600, countdown=800)
    g.mid = level(width=24, heads=4, steps=32, arithmetic=500, countdown=600)
    g.high = level(width=32, heads=4, steps=40, arithmetic=450, countdown=400)
    return g


def level(width, heads, steps, **backbone_steps) -> ConfigDict:
    """Return the grid of a level: 120 configurations for each kind of problem."""
    c = ConfigDict()
    c.problems = tuple(backbone_steps)
    c.width = width
    c.layers = 2
    c.heads = heads
    c.backbone_steps = ConfigDict(backbone_steps)  # of pre-training
    c.steps = (steps,)  # rollouts; each number is a budget of its own
    c.learning_rates = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
    c.seeds = 2
    c.repeated_every = 5  # one configuration in so many has all seeds
    return c


def shrink(g: ConfigDict) -> None:
    """Make the grids small, for the smoke test."""
    g.setup.update({"rollout_rows": 16, "minibatch_rows": 16, "epochs": 1})
    g.choices.update({"group_size": (4,), "clip_range": (0.2,), "temperature": (1.0,)})
    for name, steps in (("low", 2), ("mid", 3)):
        g[name].update({"problems": ("arithmetic",), "width": 16, "heads": 2, "layers": 1})
        g[name].update({"steps": (steps,), "learning_rates": (1e-4, 1e-3)})
        g[name].backbone_steps.arithmetic = 200
    del g.high
