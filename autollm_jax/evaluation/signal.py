"""How much signal a table has: experiments, settings, noise, and the optimum's shift with scale."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.tables import LEVELS

# The optimum's place is the mean over this share of the best configurations: the best one alone
# depends on the seed.
BEST_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class Signal:
    """The signal of one level of a task of one source.

    Attributes:
      experiments: their number.
      settings: distinct pairs of parameters and tokens.
      configurations: the median number of measured ones an experiment.
      noise_E: noise floor of each experiment in units of regret; nan without repeated seeds [E].
    """

    task: str
    source: str
    level: str
    experiments: int
    settings: int
    configurations: float
    noise_E: np.ndarray


def signals(experiments: Iterable[Experiment]) -> list[Signal]:
    """Return the signal of each task, source and level."""
    return [
        Signal(
            *key,
            experiments=len(found),
            settings=len({(e.fidelity.parameters, e.fidelity.tokens) for e in found}),
            configurations=float(np.median([len(e.configurations) for e in found])),
            noise_E=np.array([e.outcomes.noise_regret for e in found]),
        )
        for key, found in _by_level(experiments)
    ]


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The place of the optimum along one numeric dimension, by level of fidelity.

    Attributes:
      octaves: mean log2 of the optimum's value, by level.
      inside: share of the experiments whose best value is at neither end of its grid; nan where
        the grids have two values at most.
    """

    task: str
    source: str
    dimension: str
    octaves: dict[str, float]
    inside: float

    @property
    def shift(self) -> float:
        """Return the octaves between the lowest and the highest level."""
        values = list(self.octaves.values())
        return values[-1] - values[0]


def optima(experiments: Iterable[Experiment]) -> list[Optimum]:
    """Return the optimum's place along each dimension of positive numbers."""
    places: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    inside: dict[tuple[str, str, str], list[bool]] = {}
    for (task, source, level), found in _by_level(experiments):
        for experiment in found:
            for name, octave, is_inside in _places(experiment):
                by_level = places.setdefault((task, source, name), {})
                by_level.setdefault(level, []).append(octave)
                inside.setdefault((task, source, name), []).extend(is_inside)
    return [
        Optimum(
            *key,
            octaves={level: float(np.mean(values)) for level, values in by_level.items()},
            inside=float(np.mean(inside[key])) if inside[key] else math.nan,
        )
        for key, by_level in places.items()
    ]


def _by_level(
    experiments: Iterable[Experiment],
) -> Iterator[tuple[tuple[str, str, str], Sequence[Experiment]]]:
    groups: dict[tuple[str, str, str], list[Experiment]] = {}
    for e in experiments:
        groups.setdefault((e.task, e.source, e.fidelity.level), []).append(e)
    for key in sorted(groups, key=lambda key: (*key[:2], LEVELS.index(key[2]))):
        yield key, groups[key]


def _places(experiment: Experiment) -> Iterator[tuple[str, float, list[bool]]]:
    """Yield (dimension, log2 of the optimum's value, [whether the best value is inside])."""
    losses_R = np.where(
        experiment.outcomes.status_R == "ok", experiment.outcomes.losses_R, math.inf
    )
    order_R = np.argsort(losses_R)
    best = order_R[: max(1, round(BEST_SHARE * len(order_R)))]
    for dimension in experiment.space.dimensions:
        if dimension.kind in ("categorical", "simplex"):
            continue
        values_R = np.array([c[dimension.name] for c in experiment.configurations], float)
        if (values_R <= 0).any():
            continue
        # Far ends may hold only failed runs: the grid's ends are those of all configurations.
        grid, first = np.unique(values_R), values_R[order_R[0]]
        is_inside = [bool(grid[0] < first < grid[-1])] if len(grid) > 2 else []
        yield dimension.name, float(np.log2(values_R[best]).mean()), is_inside
