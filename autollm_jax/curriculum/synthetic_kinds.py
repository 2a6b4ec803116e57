"""A prior over families of experiments, second part: mixtures, architectures, many dimensions.

Every family is made up, marked `synthetic prior` and never scored in a report (see `synthetic.py`).
The landscapes have the shape of real ones: a domain's loss is a power of the mixture's worth to the
domain; an architecture's loss falls with its size and has a best aspect ratio; tuning has a bowl
with interactions. From one fidelity to the next their constants drift a little.
"""

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from autollm_jax.curriculum.names import part_names
from autollm_jax.curriculum.synthetic import PROVENANCE, SOURCE, sample_bowls
from autollm_jax.gym.experiments import Experiment, Fidelity, make_experiment
from autollm_jax.gym.spaces import Dimension, Space


def sample_family(seed: int, parts: Sequence[str] = ()) -> list[Experiment]:
    """Draw one family: experiments of several fidelities of one made-up task.

    Args:
      seed: the same seed gives the same family.
      parts: names of mixtures' parts that may be drawn beside `names.WORDS`.
    """
    random = np.random.default_rng([seed, 211210510])
    kinds = (
        sample_bowls,
        functools.partial(_sample_mixtures, parts=parts),
        _sample_architectures,
        _sample_tuning,
    )
    kind = kinds[random.choice(len(kinds), p=(0.4, 0.3, 0.15, 0.15))]
    return kind(random, seed)


def _make(seed, number, task, space, size, tokens, cells, outcomes, **fields) -> Experiment:
    facts = {"provenance": PROVENANCE} | fields.pop("facts", {})
    return make_experiment(
        source=SOURCE,
        task=task,
        name=f"{seed}-{number}",
        space=space,
        fidelity=Fidelity("low", float(size), float(tokens), float(6 * size * tokens)),
        configurations=cells,
        outcomes=outcomes,
        default_origin="made up",
        facts=facts,
        **fields,
    )


def _sizes(random: np.random.Generator) -> list[tuple[float, float]]:
    """Draw two or three (parameters, tokens), ascending."""
    parameters, tokens = 10 ** random.uniform(4.5, 9), 10 ** random.uniform(0.3, 2)
    steps = np.cumprod([1.0, *random.uniform(1.3, 8, random.integers(1, 3))])
    return [(parameters * s, parameters * s * tokens * 2 ** random.normal(0, 0.3)) for s in steps]


def _sample_mixtures(random: np.random.Generator, seed: int, parts=()) -> list[Experiment]:
    count = int(random.integers(4, 18))
    names = part_names(random, count, parts)
    rows = int(random.integers(40, 110))
    concentration = random.uniform(0.15, 1.5)
    weights_RC = random.dirichlet(np.full(count, concentration), rows)
    weights_RC = np.round(weights_RC, 3) + 1e-6
    weights_RC /= weights_RC.sum(1, keepdims=True)
    space = Space((Dimension("mixture", "simplex", names),))
    cells = [{"mixture": dict(zip(names, w.tolist(), strict=True))} for w in weights_RC]
    maximize = bool(random.random() < 0.3)
    noise = 10 ** random.uniform(-2.5, -0.5)
    drift = random.uniform(0.05, 0.5)
    metric = "score" if maximize else "loss"
    objectives = [str(n) for n in random.choice(names, random.integers(1, 4), replace=False)]
    # The worth of each component to each objective: most to its own, some to a few others.
    worth = {}
    for objective in objectives:
        worth_C = random.exponential(0.2, count) * (random.random(count) < 0.4) + 0.01
        worth_C[names.index(objective)] = random.uniform(0.5, 1.5)
        worth[objective] = worth_C, random.uniform(0.1, 0.7)
    made = []
    for size, tokens in _sizes(random):
        for objective, (worth_C, power) in worth.items():
            here_C = worth_C * np.exp(random.normal(0, drift, count))
            loss_R = (0.03 + weights_RC @ here_C) ** -power
            loss_R = loss_R + random.normal(0, noise * loss_R.std(), rows)
            unit = 10 ** random.uniform(-1.5, 0)
            sign = -unit if maximize else unit
            made.append(
                _make(
                    seed, len(made), "data_mixture", space, size, tokens, cells,
                    (sign * loss_R).tolist(),
                    default=cells[int(((weights_RC - weights_RC.mean(0)) ** 2).sum(1).argmin())],
                    facts={"objective": objective},
                    objective_metric=f"{metric}.{objective}",
                    minimize=not maximize,
                )
            )  # fmt: skip
    return made


def _sample_architectures(random: np.random.Generator, seed: int) -> list[Experiment]:
    ratio = random.choice([1.5, 2.0])
    start = float(random.choice([16, 64, 192, 256]))
    layers_from = int(random.choice([1, 2, 4, 10]))
    exponent, aspect = random.uniform(0.1, 0.5), random.uniform(0.0, 0.08)
    best_aspect = random.normal(0, 0.7)
    taste = random.normal(0, 0.04, 3)
    noise = 10 ** random.uniform(-3, -1.3)
    made = []
    for _, tokens in _sizes(random):
        start *= random.choice([1.0, 1.5, 2.0])
        layers_from += int(random.integers(0, 3))
        axes = (
            ("width", tuple(int(round(start * ratio**k / 8)) * 8 for k in range(3))),
            ("layers", tuple(layers_from + k * max(layers_from // 3, 1) for k in range(3))),
            ("heads", (2, 4) if random.random() < 0.5 else (4, 8, 12)),
            ("mlp_ratio", (2, 3, 4)),
        )
        bias = random.random() < 0.5
        dimensions = [Dimension(name, "ordinal", choices) for name, choices in axes]
        if bias:
            dimensions.append(Dimension("bias", "categorical", (True, False)))
        space = Space(tuple(dimensions))
        grid = list(itertools.product(*(d.choices for d in dimensions)))
        cells = [dict(zip(space.names, values, strict=True)) for values in grid]
        width_R, layers_R, heads_R, mlp_R = (
            np.array([c[name] for c in cells], float)
            for name in ("width", "layers", "heads", "mlp_ratio")
        )
        parameters_R = layers_R * width_R**2 * (4 + 2 * mlp_R) + 500 * width_R
        shape_R = np.log(width_R / layers_R)
        shape_R = (shape_R - shape_R.mean()) / shape_R.std()
        loss_R = (parameters_R / parameters_R.mean()) ** -exponent
        loss_R += aspect * (shape_R - best_aspect) ** 2
        loss_R += taste[0] * (heads_R - heads_R.mean()) / max(heads_R.std(), 1e-9)
        loss_R += taste[1] * (mlp_R - 3)
        if bias:
            loss_R += taste[2] * np.array([c["bias"] for c in cells])
        loss_R = 10 ** random.uniform(0, 1.5) * (loss_R + random.normal(0, noise, len(cells)))
        for share in np.sort(random.uniform(0.25, 0.9, 2)):
            at_most = float(np.quantile(parameters_R, share))
            feasible_R = parameters_R <= at_most
            made.append(
                _make(
                    seed, len(made), "architecture", space, at_most, tokens, cells,
                    np.where(feasible_R, loss_R, np.nan).tolist(),
                    default=cells[int(np.argmax(np.where(feasible_R, parameters_R, 0)))],
                    status=np.where(feasible_R, "ok", "infeasible").tolist(),
                    parameters=parameters_R.tolist(),
                    limit={"quantity": "parameters", "at_most": at_most},
                )
            )  # fmt: skip
    return made


def _sample_tuning(random: np.random.Generator, seed: int) -> list[Experiment]:
    rate = 10 ** random.uniform(-5, -2)
    axes = (
        ("learning_rate", "log-ordinal", tuple(rate * 2.0 ** (k - 2) for k in range(5))),
        ("kl_coefficient", "ordinal", (0.0, 0.01, 0.03, 0.1)),
        ("group_size", "log-ordinal", (4, 8, 16)),
        ("clip_range", "ordinal", (0.1, 0.2, 0.3)),
        ("temperature", "ordinal", (0.7, 1.0, 1.3)),
    )
    space = Space(tuple(Dimension(*axis) for axis in axes))
    grid = list(itertools.product(*(choices for _, _, choices in axes)))
    rows = random.choice(len(grid), int(random.integers(60, 130)), replace=False)
    cells = [dict(zip(space.names, grid[row], strict=True)) for row in rows]
    units_RD = np.stack([space.to_unit(cell) for cell in cells])
    best_D, steep_D = random.uniform(0, 1, 5), random.exponential(1.0, 5)
    cross_DD = 0.3 * random.normal(size=(5, 5))
    drift, noise = random.uniform(0.03, 0.2), 10 ** random.uniform(-2, -0.7)
    made = []
    for size, tokens in _sizes(random):
        for problem in ("arithmetic", "countdown")[: random.integers(1, 3)]:
            away_RD = units_RD - np.clip(best_D + random.normal(0, drift, 5), 0, 1)
            gap_R = (away_RD**2) @ steep_D + ((away_RD @ cross_DD) ** 2).sum(1)
            gap_R = gap_R + random.normal(0, noise, len(cells))
            rate_R = random.uniform(0.3, 0.95) / (1 + np.exp(3 * gap_R - random.uniform(0, 2)))
            made.append(
                _make(
                    seed, len(made), "grpo", space, size, tokens, cells, rate_R.tolist(),
                    default={"learning_rate": axes[0][2][2], "kl_coefficient": 0.01,
                             "group_size": 8, "clip_range": 0.2, "temperature": 1.0},
                    facts={"problem": problem},
                    objective_metric="success_rate",
                    minimize=False,
                )
            )  # fmt: skip
    return made
