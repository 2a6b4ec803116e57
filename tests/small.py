"""Fixtures: a split of small experiments, of 11 cells each."""

import numpy as np
import pytest

from autollm_jax.gym.experiments import Fidelity, make_experiment
from autollm_jax.gym.spaces import Dimension, Space
from autollm_jax.gym.splits import split

RATES = (0.001, 0.002, 0.004, 0.008)
BATCHES = (32, 64, 128)
SPACE = Space(
    (
        Dimension("learning_rate", "log-ordinal", RATES),
        Dimension("batch_size", "log-ordinal", BATCHES),
    )
)


def small(name, level, tokens=1e8, space=SPACE, configurations=None, **fields):
    """Make an experiment of 11 cells (one is not measured), the last of which diverged."""
    cells = [{"learning_rate": r, "batch_size": b} for r in RATES for b in BATCHES][1:]
    configurations = cells if configurations is None else configurations
    n = len(configurations)
    arguments = {
        "source": "test",
        "task": "pretraining",
        "name": name,
        "space": space,
        "fidelity": Fidelity(level, 1e6, tokens, 6e6 * tokens),
        "configurations": configurations,
        "outcomes": [abs(i - n // 2) + 1.0 for i in range(n - 1)] + [np.nan],
        "status": ["ok"] * (n - 1) + ["diverged"],
        "default": configurations[0],
        "default_origin": "the tests",
        **fields,
    }
    return make_experiment(**arguments)


@pytest.fixture(scope="session")
def experiments():
    return [
        small("cheap", "low"),
        small("cheaper", "low", tokens=5e7),
        small("dear", "mid", tokens=4e8),
        small("dearer", "mid", tokens=8e8),
    ]


@pytest.fixture(scope="session")
def small_split(experiments):
    return split(experiments, "dev")
