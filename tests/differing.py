"""Families whose experiments have different spaces, as public tables do."""

import itertools

import numpy as np

from autollm_jax.gym.experiments import Experiment, Fidelity, make_experiment
from autollm_jax.gym.spaces import Dimension, Space

SIZES = (1e6, 4e6, 1.6e7)
RATES, BATCHES = tuple(2.0 ** (n / 2 - 10) for n in range(7)), (16, 32, 64, 128, 256)


def _experiment(task, number, space, cells, losses, **fields) -> Experiment:
    size = SIZES[number]
    return make_experiment(
        source="differing", task=task, name=fields.pop("name", f"{task}-{number}"), space=space,
        fidelity=Fidelity("low", size, 20 * size, 120 * size**2),
        configurations=cells, outcomes=list(losses), default=cells[len(cells) // 2],
        default_origin="the tests", **fields,
    )  # fmt: skip


def _grid(space: Space) -> list[dict]:
    grid = itertools.product(*(dimension.choices for dimension in space.dimensions))
    return [dict(zip(space.names, values, strict=True)) for values in grid]


def _bowl(cells, number: int) -> np.ndarray:
    """A loss with its optimum at a rate of 2^-8 and a batch of 64, which move with size."""
    rate_R = np.log2([c["learning_rate"] for c in cells]) + 8 + 0.3 * number
    batch_R = np.log2([c["batch_size"] for c in cells]) - 6 - 0.3 * number
    rest_R = [0.1 * float(c.get("weight_decay", 0)) for c in cells]
    return 3 - 0.1 * number + 0.1 * rate_R**2 + 0.05 * batch_R**2 + np.array(rest_R)


def rates() -> list[Experiment]:
    """Other choices, then a third dimension, over spaces that a law moves."""
    rate, batch = (
        Dimension("learning_rate", "log-ordinal", RATES),
        Dimension("batch_size", "log-ordinal", BATCHES),
    )
    spaces = (
        Space((rate, batch)),
        Space((
            Dimension("learning_rate", "log-ordinal", RATES[2:]),
            Dimension("batch_size", "log-ordinal", (*BATCHES[1:], 352, 512)),
        )),
        Space((Dimension("weight_decay", "ordinal", (0.0, 0.1, 0.2, 0.3)), rate, batch)),
    )  # fmt: skip
    return [
        _experiment("pretraining", n, space, _grid(space), _bowl(_grid(space), n))
        for n, space in enumerate(spaces)
    ]


def continuous() -> list[Experiment]:
    """Listed numbers, then the same dimensions within bounds, then one listed and one not."""
    spaces = (
        Space((
            Dimension("learning_rate", "log-ordinal", RATES),
            Dimension("batch_size", "log-ordinal", BATCHES),
        )),
        Space((
            Dimension("learning_rate", "log-continuous", bounds=(RATES[0], RATES[-1])),
            Dimension("batch_size", "log-continuous", bounds=(16, 512)),
        )),
        Space((
            Dimension("learning_rate", "log-continuous", bounds=(RATES[1], RATES[-1])),
            Dimension("batch_size", "log-ordinal", BATCHES),
        )),
    )  # fmt: skip
    made = []
    for number, space in enumerate(spaces):
        units_ND = np.random.default_rng(number).random((60, 2))
        cells = _grid(space) if not number else [space.from_unit(unit) for unit in units_ND]
        made.append(_experiment("pretraining", number, space, cells, _bowl(cells, number)))
    return made


def mixtures() -> list[Experiment]:
    """Two objectives over mixtures that gain and lose components, the last with `epochs` too."""
    made = []
    for number, parts in enumerate(
        (
            ("web", "code", "wiki", "books"),
            ("code", "wiki", "books", "math_papers", "web"),
            ("math_papers", "web", "code_github", "forum"),
        )
    ):
        mixture = Dimension("mixture", "simplex", parts)
        epochs = Dimension("epochs", "ordinal", (1, 2, 4))
        space = Space((mixture, epochs) if number == 2 else (mixture,))
        weights_RC = np.random.default_rng(number).dirichlet(np.full(len(parts), 0.6), 60)
        cells = [{"mixture": dict(zip(parts, w, strict=True))} for w in weights_RC.tolist()]
        if number == 2:
            cells = [{**c, "epochs": (1, 2, 4)[row % 3]} for row, c in enumerate(cells)]
        for name, use in (("web", 0), ("rest", len(parts) - 1)):
            losses = (0.1 + weights_RC[:, use] + 0.3 * weights_RC[:, 1]) ** -0.3
            made.append(
                _experiment(
                    "data_mixture", number, space, cells, losses, name=f"{name}-{number}",
                    objective_metric=f"loss.{name}",
                )
            )  # fmt: skip
    return made


def architectures() -> list[Experiment]:
    """Parameter limits; heads by layer in the first two, which have two and three layers.

    `norm` is a category at first and a number later.
    """
    made = []
    for number, widths in enumerate(((16, 32, 48), (32, 64, 96), (64, 128, 192))):
        layers = [f"heads_{n}" for n in range(number + 2)] if number < 2 else ["heads", "layers"]
        norms = ("pre", "post") if number == 0 else (1, 2)
        space = Space(
            (
                Dimension("width", "ordinal" if number else "log-ordinal", widths),
                *(Dimension(name, "ordinal", (2, 4)) for name in layers),
                Dimension("norm", "ordinal" if number else "categorical", norms),
            )
        )
        cells = _grid(space)
        heads_R = np.array([sum(c[name] for name in layers) for c in cells], float)
        parameters_R = np.array([c["width"] ** 2 for c in cells]) * heads_R
        losses_R = parameters_R**-0.2 + 0.002 * heads_R
        limit = float(np.quantile(parameters_R, 0.7))
        over_R = parameters_R > limit
        made.append(
            _experiment(
                "architecture", number, space, cells, np.where(over_R, np.nan, losses_R),
                status=np.where(over_R, "infeasible", "ok").tolist(),
                parameters=parameters_R.tolist(),
                limit={"quantity": "parameters", "at_most": limit},
            )
        )  # fmt: skip
    return made


FAMILIES = (rates, continuous, mixtures, architectures)
