"""A measured landscape laid out for a page, whatever the space.

One or two dimensions with choices are a grid. Of any other space (more dimensions, continuous
ones, mixtures) each axis is shown by itself, with the regret of every configuration along it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from autollm_jax.gym.experiments import Experiment

# Axes beyond these are left out, those that tell least of the regret first.
MOST_AXES = 8
# Values of a continuous axis are told apart in so many groups of equal size.
PARTS = 6


@dataclass(frozen=True)
class Grid:
    """An open experiment's regret over its two dimensions.

    Attributes:
      names: of the two dimensions (x, y); y is empty where the space has but one.
      choices: the two dimensions' values.
      regret_YX: nan where not measured.
      status_YX: `ok`, `failed` (diverged or infeasible) or `unmeasured`.
      best_config: the optimum.
    """

    names: tuple[str, str]
    choices: tuple[tuple, tuple]
    regret_YX: np.ndarray
    status_YX: np.ndarray
    best_config: Mapping

    def cell(self, config: Mapping) -> tuple[int, int]:
        """Return a configuration's cell (x, y)."""
        x = self.choices[0].index(config[self.names[0]])
        return x, self.choices[1].index(config[self.names[1]]) if self.names[1] else 0


@dataclass(frozen=True)
class Axis:
    """One direction of a space: a dimension or a component's weight.

    Attributes:
      name: what to call it.
      choices: its values where it is a dimension, empty where it is continuous.
      place: finds a configuration's place: a choice's number, or a number.
      places_R: each measured configuration's.
      telling: the share of the regret's variance that lies between its values.
    """

    name: str
    choices: tuple
    place: Callable[[Mapping], float] = field(repr=False)
    places_R: np.ndarray = field(repr=False)
    telling: float


@dataclass(frozen=True)
class Strips:
    """An open experiment's regret along each of its axes.

    Attributes:
      axes: in the space's order; the most telling first where some were left out.
      left_out: how many were.
      regret_R: each configuration's regret.
      ok_R: whether it could be run.
      best_config: the optimum.
    """

    axes: tuple[Axis, ...]
    left_out: int
    regret_R: np.ndarray
    ok_R: np.ndarray
    best_config: Mapping


def lay_out(experiment: Experiment) -> Grid | Strips:
    """Lay an open experiment's outcomes out."""
    dimensions = experiment.space.dimensions
    if len(dimensions) <= 2 and all(d.is_discrete for d in dimensions):
        return _grid(experiment)
    return _strips(experiment)


def _grid(experiment: Experiment) -> Grid:
    x, *rest = experiment.space.dimensions
    names = (x.name, rest[0].name if rest else "")
    choices = (x.choices, rest[0].choices if rest else ("",))
    regret_YX = np.full((len(choices[1]), len(choices[0])), np.nan)
    status_YX = np.full(regret_YX.shape, "unmeasured", dtype=object)
    best = experiment.configurations[experiment.outcomes.best_row]
    grid = Grid(names, choices, regret_YX, status_YX, best)
    rows = zip(
        experiment.configurations,
        experiment.outcomes.regrets_R,
        experiment.outcomes.status_R,
        strict=True,
    )
    for config, regret, status in rows:
        cell = grid.cell(config)[::-1]
        regret_YX[cell] = regret
        status_YX[cell] = "ok" if status == "ok" else "failed"
    return grid


def _strips(experiment: Experiment) -> Strips:
    regret_R, ok_R = experiment.outcomes.regrets_R, experiment.outcomes.status_R == "ok"
    axes = []
    for name, choices, place in _directions(experiment.space):
        places_R = np.array([place(config) for config in experiment.configurations], float)
        telling = _telling(places_R[ok_R], regret_R[ok_R], continuous=not choices)
        axes.append(Axis(name, choices, place, places_R, telling))
    left_out = max(0, len(axes) - MOST_AXES)
    if left_out:
        axes = sorted(axes, key=lambda axis: -axis.telling)[:MOST_AXES]
    best = experiment.configurations[experiment.outcomes.best_row]
    return Strips(tuple(axes), left_out, regret_R, ok_R, best)


def _directions(space) -> list[tuple[str, tuple, Callable]]:
    """Return each axis's name, choices and way to find a configuration's place."""
    found = []
    for d in space.dimensions:
        if d.kind == "simplex":
            found += [(c, (), lambda config, d=d, c=c: config[d.name][c]) for c in d.choices]
        elif d.is_log and d.is_continuous:
            place = lambda config, d=d: math.log10(config[d.name])  # noqa: E731
            found.append((f"{d.name}, log10", (), place))
        elif d.is_continuous:
            found.append((d.name, (), lambda config, d=d: config[d.name]))
        else:
            found.append((d.name, d.choices, lambda config, d=d: d.choices.index(config[d.name])))
    return found


def parts(places: np.ndarray, most: int = PARTS) -> np.ndarray:
    """Number the groups of about equal size that continuous places fall into."""
    edges = np.unique(np.quantile(places, np.linspace(0, 1, most + 1)[1:-1]))
    return np.searchsorted(edges, places)


def _telling(places: np.ndarray, regret: np.ndarray, continuous: bool) -> float:
    """Return the share of the regret's variance that lies between an axis's values."""
    numbers = parts(places) if continuous else places
    if not regret.var():
        return 0.0
    fitted = np.zeros_like(regret)
    for number in np.unique(numbers):
        same = numbers == number
        fitted[same] = regret[same].mean()
    return float(fitted.var() / regret.var())
