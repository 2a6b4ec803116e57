"""Effects of the evidence: what more of each thing does to the regret, read off one table."""

import dataclasses
import functools

import numpy as np

from autollm_jax.forecasts.surfaces import CAP, place
from autollm_jax.gym.experiments import Experiment
from autollm_jax.text.spelling import choice_names, short_names

EFFECT_RIDGE = 0.005  # little, for sizes go with the dimensions that make them


@dataclasses.dataclass(frozen=True)
class Effect:
    """What more of something does to the regret, in one table.

    Attributes:
      name: a dimension, a mixture's component or a category's choice.
      percent: change of regret over two deviations, the other things (and the size, where there is
        a limit) being equal; negative where more is better.
    """

    name: str
    percent: int


@functools.lru_cache(maxsize=128)
def effects(experiment: Experiment) -> tuple[Effect, ...]:
    """Read off a table what more of each thing does, the largest effect first.

    By ridge regression of the regret (cut at CAP) on the standardised coordinates of its feasible
    cells. Under a limit the logarithm of the parameters stands beside them.
    """
    loss_R = experiment.outcomes.losses_R
    rows = np.flatnonzero(experiment.feasible_R)
    best = loss_R.min()
    unit = experiment.spread_unit
    regret_N = np.minimum((loss_R[rows] - best) / unit, CAP)
    names = effect_names(experiment)
    x_ND = place(experiment, experiment)[rows]
    x_ND = x_ND - x_ND.mean(0)
    deviation_D = x_ND.std(0)
    x_ND = x_ND / np.where(deviation_D > 1e-9, deviation_D, np.inf)
    gram = x_ND.T @ x_ND + EFFECT_RIDGE * len(rows) * np.eye(x_ND.shape[1])
    slopes_D = np.linalg.solve(gram, x_ND.T @ (regret_N - regret_N.mean()))
    found = [
        Effect(name, int(np.clip(round(200 * slope), -99, 99)))
        for name, slope in zip(names, slopes_D.tolist(), strict=False)
    ]
    return tuple(sorted(found, key=lambda effect: (-abs(effect.percent), effect.name)))


def effect_names(experiment: Experiment) -> list[str]:
    """Name each coordinate's effect."""
    names: list[str] = []
    for dimension in experiment.space.dimensions:
        if dimension.kind == "simplex":
            names += short_names(dimension).values()
        elif dimension.kind == "categorical":
            names += [f"{dimension.name}={text}" for text in choice_names(dimension).values()]
        else:
            names.append(dimension.name)
    return names
