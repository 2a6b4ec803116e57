"""Synthetic experiments whose optimum follows a scaling law."""

import numpy as np
import pytest

from autollm_jax.baselines import Problem
from autollm_jax.gym.experiments import Fidelity, make_experiment
from autollm_jax.gym.spaces import Dimension, Space

RATES = tuple(float(2.0**e) for e in np.arange(-12, -5.4, 0.5))
BATCHES = (32, 64, 128, 256, 512, 1024)


def bowl(parameters, tokens, level="low", shift=0, minimize=True, **fields):
    """Make an experiment: a quadratic bowl in log rate and log batch, its lowest cell on a law.

    The rate's optimum falls by a factor sqrt 2 a doubling of parameters, the batch's grows by
    sqrt 2 a doubling of tokens; the highest rates diverge.
    """
    rates = RATES[shift : shift + 10]
    best_rate = -8 - 0.5 * np.log2(parameters / 1e8)
    best_batch = 7 + 0.5 * np.log2(tokens / 1e9)
    configs = [{"learning_rate": r, "batch_size": b} for r in rates for b in BATCHES]
    gap = np.array(
        [
            (np.log2(c["learning_rate"]) - best_rate) ** 2
            + 0.5 * (np.log2(c["batch_size"]) - best_batch) ** 2
            for c in configs
        ]
    )
    status = ["diverged" if np.log2(c["learning_rate"]) > best_rate + 3 else "ok" for c in configs]
    sign = 1 if minimize else -1
    arguments = {
        "source": "test",
        "task": "pretraining",
        "name": f"{parameters / 1e6:.0f}M-{tokens / 1e9:.0f}B",
        "space": Space(
            (
                Dimension("learning_rate", "log-ordinal", rates),
                Dimension("batch_size", "log-ordinal", BATCHES),
            )
        ),
        "fidelity": Fidelity(level, parameters, tokens, 6 * parameters * tokens),
        "configurations": configs,
        "outcomes": sign * (3 - 0.1 * np.log10(parameters * tokens / 1e17) + 0.02 * gap),
        "status": status,
        "default": {"learning_rate": rates[0], "batch_size": 32},
        "default_origin": "the tests",
        "minimize": minimize,
        **fields,
    }
    return make_experiment(**arguments)


@pytest.fixture(scope="session")
def evidence():
    return tuple(
        bowl(n, d, shift=3 if n < 1e8 else 2) for n in (0.5e8, 1e8, 2e8) for d in (1e9, 4e9)
    )


@pytest.fixture(scope="session")
def target():
    """Return the target, open: tests score with it, methods get it sealed."""
    return bowl(4e8, 16e9, level="mid")


@pytest.fixture
def problem(target, evidence):
    return Problem(target.setting, evidence, 5)


def mixed(level="low", parameters=1e6, layers=(2, 4, 8)):
    """Make an experiment over every kind of dimension."""
    space = Space(
        (
            Dimension("layers", "ordinal", layers),
            Dimension("rate", "log-ordinal", (1e-4, 1e-3, 1e-2)),
            Dimension("bias", "categorical", (True, False)),
            Dimension("mixture", "simplex", ("code", "prose", "tables")),
        )
    )
    rng = np.random.default_rng(0)
    configs = [
        {
            "layers": layers[rng.integers(3)],
            "rate": float([1e-4, 1e-3, 1e-2][rng.integers(3)]),
            "bias": bool(rng.integers(2)),
            "mixture": dict(
                zip(("code", "prose", "tables"), rng.dirichlet(np.ones(3)).tolist(), strict=True)
            ),
        }
        for _ in range(30)
    ]
    outcomes = [
        c["mixture"]["code"] + abs(np.log10(c["rate"]) + 3) - 0.3 * c["bias"] for c in configs
    ]
    return make_experiment(
        source="test",
        task="pretraining",
        name=f"mixed-{level}",
        space=space,
        fidelity=Fidelity(level, parameters, float("nan"), 6e15 * parameters),
        configurations=configs,
        outcomes=outcomes,
        default=configs[0],
        default_origin="the tests",
    )


def limited(level="low", parameters=1e6):
    """Make an experiment two thirds of whose cells are over a limit."""
    widths = (32, 64, 128) if level == "low" else (64, 128, 256)
    space = Space(
        (
            Dimension("width", "ordinal", widths),
            Dimension("layers", "ordinal", (2, 3)),
            Dimension("mlp", "ordinal", (2, 3, 4, 6, 8)),
        )
    )
    cells = [
        {"width": w, "layers": depth, "mlp": mlp}
        for w in widths for depth in (2, 3) for mlp in (2, 3, 4, 6, 8)
    ]  # fmt: skip
    sizes = np.array([c["width"] * c["layers"] * (1 + c["mlp"]) for c in cells], float)
    limit = float(np.quantile(sizes, 0.35))
    return make_experiment(
        source="test", task="architecture", name=f"limited-{level}", space=space,
        fidelity=Fidelity(level, parameters, 1e9, 6e9 * parameters), configurations=cells,
        outcomes=np.where(sizes > limit, np.nan, 1 / sizes), default=cells[0],
        default_origin="the tests", status=np.where(sizes > limit, "infeasible", "ok"),
        limit={"quantity": "parameters", "at_most": limit}, parameters=sizes,
    )  # fmt: skip
