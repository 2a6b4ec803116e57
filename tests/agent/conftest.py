"""Small families of experiments that the agent's tests share."""

import numpy as np
import pytest

from autollm_jax.agent.curation import Recipe
from autollm_jax.gym.experiments import Experiment, Fidelity, make_experiment
from autollm_jax.gym.spaces import Dimension, Space


def bowl_experiment(
    name: str,
    parameters: float,
    tokens: float,
    best: tuple[float, int],
    level: str = "low",
    learning_rates: tuple = tuple(2.0 ** (-12 + n / 2) for n in range(11)),
    batch_sizes: tuple = (32, 64, 128, 192, 256, 352, 512),
    minimize: bool = True,
) -> Experiment:
    """Make an experiment whose loss is a bowl around `best`, with a cliff at high rates."""
    space = Space(
        (
            Dimension("learning_rate", "log-ordinal", learning_rates),
            Dimension("batch_size", "log-ordinal", batch_sizes),
        )
    )
    cells = [{"learning_rate": a, "batch_size": b} for a in learning_rates for b in batch_sizes]
    rate_R = np.log2([c["learning_rate"] / best[0] for c in cells])
    batch_R = np.log2([c["batch_size"] / best[1] for c in cells])
    loss_R = 2.5 + 0.02 * rate_R**2 + 0.015 * batch_R**2
    return make_experiment(
        source="made",
        task="pretraining",
        name=name,
        space=space,
        fidelity=Fidelity(level, parameters, tokens, 6 * parameters * tokens),
        configurations=cells,
        outcomes=(loss_R if minimize else -loss_R).tolist(),
        default=cells[len(cells) // 2],
        default_origin="the middle cell",
        status=["diverged" if r > 1.6 else "ok" for r in rate_R],
        objective_metric="loss" if minimize else "score",
        minimize=minimize,
    )


def bowl_family(minimize: bool = True) -> list[Experiment]:
    """Make four experiments over one law: rates fall with size, batches grow with tokens."""
    family = []
    for number, (parameters, tokens) in enumerate(
        [(1e7, 2e8), (1e7, 8e8), (2e7, 6e8), (4e7, 16e8)]
    ):
        rate = 2.0**-8 * (parameters / 1e7) ** -0.5
        batch = 64 * (tokens / 2e8) ** 0.5
        family.append(
            bowl_experiment(f"m{number}", parameters, tokens, (rate, batch), minimize=minimize)
        )
    return family


@pytest.fixture
def bowl():
    return bowl_experiment


@pytest.fixture
def family():
    """Four experiments over one law, open."""
    return bowl_family()


@pytest.fixture
def scores():
    """The same, with an outcome that should be high."""
    return bowl_family(minimize=False)


@pytest.fixture
def recipe():
    return Recipe("tables", "made", "pretraining", 0, (), 0, (), 0)
