"""A small experiment, whole enough for every test of the gym."""

import pytest

from autollm_jax.gym.experiments import Fidelity, make_experiment
from autollm_jax.gym.spaces import Dimension, Space

LEARNING_RATES = (0.001, 0.002, 0.004, 0.008)
BATCH_SIZES = (32, 64, 128)
SPACE = Space(
    (
        Dimension("learning_rate", "log-ordinal", LEARNING_RATES),
        Dimension("batch_size", "log-ordinal", BATCH_SIZES),
    )
)


def grid() -> list[dict]:
    return [{"learning_rate": lr, "batch_size": bs} for lr in LEARNING_RATES for bs in BATCH_SIZES]


@pytest.fixture
def make():
    """Return a maker of experiments; by default 12 cells with the losses 0 to 11."""

    def make(name="small", level="low", flops=1e15, configurations=None, outcomes=None, **fields):
        configurations = grid() if configurations is None else configurations
        outcomes = range(len(configurations)) if outcomes is None else outcomes
        return make_experiment(
            **{
                "source": "test",
                "task": "pretraining",
                "name": name,
                "space": SPACE,
                "fidelity": Fidelity(level, 1e6, 1e8, flops),
                "configurations": configurations,
                "outcomes": outcomes,
                "default": {"learning_rate": 0.001, "batch_size": 64},
                "default_origin": "the tests",
                **fields,
            }
        )

    return make


@pytest.fixture
def space():
    return SPACE
