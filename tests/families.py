"""Fixtures: small families of experiments over laws, mixtures, architectures and tunings."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from autollm_jax.curriculum.pairs import Recipe
from autollm_jax.forecasts.advice import Decision, decision_of
from autollm_jax.forecasts.advisers import counsel
from autollm_jax.gym.environment import Episode
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


@functools.cache
def bowl_family(minimize: bool = True) -> tuple[Experiment, ...]:
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
    return tuple(family)


panel_of = functools.cache(counsel)


def decided(episode: Episode, seed: int = 0) -> Decision | None:
    """Put the state of an episode to its advisers, which are made once for each question."""
    return decision_of(panel_of(episode.setting, episode.evidence), episode.tell(), seed)


@pytest.fixture(scope="session")
def bowl():
    return bowl_experiment


@pytest.fixture(scope="session")
def family():
    """Four experiments over one law, open."""
    return list(bowl_family())


@pytest.fixture(scope="session")
def scores():
    """The same, with an outcome that should be high."""
    return list(bowl_family(minimize=False))


@pytest.fixture
def recipe():
    return Recipe("tables", "made", "pretraining", 0, (), False, "", 0, (), 0)


def _make(task: str, name: str, size: float, space: Space, cells, outcomes, **fields) -> Experiment:
    return make_experiment(
        source="made", task=task, name=name, space=space,
        fidelity=Fidelity("low", size, 1e9, 6e9 * size),
        configurations=cells, outcomes=list(outcomes), default_origin="the tests",
        **{"default": cells[0], **fields},
    )  # fmt: skip


@pytest.fixture(scope="session")
def mixtures():
    """Two objectives at two sizes over the same 90 mixtures; the dearer "code" loss comes last."""
    names = ("general_web", "source_code", "math_papers", "wiki", "old_books")
    weights_RC = np.random.default_rng(0).dirichlet(np.full(5, 0.5), 90)
    space = Space((Dimension("mixture", "simplex", names),))
    cells = [{"mixture": dict(zip(names, w.tolist(), strict=True))} for w in weights_RC]
    made = []
    for size, drift in ((1e6, 0.0), (1e8, 0.15)):
        for part, objective in ((0, "web"), (1, "code")):
            use_R = weights_RC[:, part] + 0.2 * weights_RC[:, 2] + drift * weights_RC[:, 3]
            loss_R = (0.05 + use_R) ** -0.4
            experiment = _make(
                "data_mixture", f"{objective}-{size:.0e}", size, space, cells, loss_R,
                objective_metric=f"loss.{objective}", facts={"objective": objective},
            )  # fmt: skip
            made.append(dataclasses.replace(experiment, cells=(made or [experiment])[0].cells))
    return made


@pytest.fixture(scope="session")
def architectures():
    """Two limits at two scales; the dearer scale has other widths and more layers."""
    made = []
    for scale, size in (((32, 48, 64), 1e5), ((64, 96, 128), 1e6)):
        layers = (2, 3, 4) if size < 1e6 else (5, 6, 7)
        space = Space(
            (
                Dimension("width", "ordinal", scale),
                Dimension("layers", "ordinal", layers),
                Dimension("mlp_ratio", "ordinal", (2, 3, 4)),
                Dimension("bias", "categorical", (True, False)),
            )
        )
        cells = [
            {"width": w, "layers": depth, "mlp_ratio": ratio, "bias": bias}
            for w in scale for depth in layers for ratio in (2, 3, 4)
            for bias in (True, False)
        ]  # fmt: skip
        parameters_R = np.array(
            [c["width"] ** 2 * c["layers"] * (4 + 2 * c["mlp_ratio"]) for c in cells], float
        )
        shape_R = np.array([np.log(c["width"] / c["layers"]) for c in cells])
        bias_R = np.array([0.01 * c["bias"] for c in cells])
        loss_R = (parameters_R / parameters_R.mean()) ** -0.3 + 0.1 * shape_R + bias_R
        shared = _make("architecture", "whole", size, space, cells, loss_R).cells
        for share in (0.4, 0.8):
            limit = float(np.quantile(parameters_R, share))
            over_R = parameters_R > limit
            experiment = _make(
                "architecture", f"{size:.0e}-{share}", size, space, cells,
                np.where(over_R, np.nan, loss_R), status=np.where(over_R, "infeasible", "ok"),
                limit={"quantity": "parameters", "at_most": limit}, parameters=parameters_R,
            )  # fmt: skip
            made.append(dataclasses.replace(experiment, cells=shared))
    return made


@pytest.fixture(scope="session")
def tunings():
    """Success rates over five dimensions at two sizes, to be maximised."""
    space = Space(
        (
            Dimension("learning_rate", "log-ordinal", (1e-4, 2e-4, 4e-4, 8e-4)),
            Dimension("kl_coefficient", "ordinal", (0.0, 0.01, 0.1)),
            Dimension("group_size", "log-ordinal", (4, 8)),
            Dimension("clip_range", "ordinal", (0.1, 0.2)),
            Dimension("temperature", "ordinal", (0.7, 1.0, 1.3)),
        )
    )
    grid = itertools.product(*(d.choices for d in space.dimensions))
    cells = [dict(zip(space.names, values, strict=True)) for values in grid]
    made = []
    for size, best in ((1e5, 2.5e-4), (1e6, 2e-4)):
        away_R = np.array([np.log2(c["learning_rate"] / best) ** 2 + abs(c["temperature"] - 1)
                           for c in cells])  # fmt: skip
        made.append(
            _make("grpo", f"arithmetic-{size:.0e}", size, space, cells, 0.9 / (1 + away_R),
                  objective_metric="success_rate", minimize=False, default=cells[20],
                  facts={"problem": "arithmetic"})
        )  # fmt: skip
    return made
