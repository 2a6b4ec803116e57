"""A person's runs: three sizes of a model, two hyperparameters, an optimum that moves."""

import itertools
import math

import pytest

TARGET = {"parameters": 1.6e7, "tokens": 3.2e8}


def loss(rate, batch, parameters):
    """The optimum of the learning rate falls with size."""
    best = 1e-3 * (parameters / 1e6) ** -0.2
    return (
        2 + 10 * parameters**-0.2 + 0.1 * math.log(rate / best) ** 2 + 0.02 * abs(batch - 64) / 64
    )


@pytest.fixture(scope="session")
def rows():
    grid = itertools.product((1e6, 2e6, 4e6), (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (32, 64, 128))
    return [
        {
            "run": f"r{number}", "learning_rate": rate, "batch_size": batch, "parameters": n,
            "tokens": 20 * n, "loss": loss(rate, batch, n),
        }
        for number, (n, rate, batch) in enumerate(grid)
    ]  # fmt: skip
