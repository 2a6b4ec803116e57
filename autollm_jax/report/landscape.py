"""Lays out the measured outcomes of an experiment for a figure, for any space.

A space of one or two dimensions with choices becomes a grid. Any other space (more dimensions,
continuous ones, mixtures) becomes strips: one per axis, with every configuration's regret along it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.spaces import Dimension

# The number of axes that are drawn, at most: those that explain most of the regret's variance.
MOST_AXES = 8
# The number of groups of equal size that the values of a continuous axis are put into.
PARTS = 6


@dataclass(frozen=True)
class Grid:
    """An experiment's regret over its two dimensions.

    Attributes:
      names: the two dimensions' names (x, y); y is empty in a space of one dimension.
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
    """One direction of a space: a dimension, or the weight of a mixture's component.

    Attributes:
      name: its name.
      choices: its values where they are listed, else empty.
      bounds: the lowest and the highest value of a continuous dimension, else None.
      is_log: whether the values of a continuous dimension are drawn on a logarithmic scale.
      place: computes a configuration's place: a choice's number, or the value (log10 where is_log).
      places_R: the place of each measured configuration.
      explained: the share of the regret's variance between the axis's values.
    """

    name: str
    choices: tuple
    bounds: tuple[float, float] | None
    is_log: bool
    place: Callable[[Mapping], float] = field(repr=False)
    places_R: np.ndarray = field(repr=False)
    explained: float

    @property
    def extent(self) -> tuple[float, float]:
        """The lowest and the highest place of a continuous axis.

        A dimension's bounds; of a mixture's component, its lowest and highest weight.
        """
        if self.bounds is None:
            return float(self.places_R.min()), float(self.places_R.max())
        low, high = self.bounds
        return (math.log10(low), math.log10(high)) if self.is_log else (low, high)


@dataclass(frozen=True)
class Strips:
    """An experiment's regret along each of its axes.

    Attributes:
      axes: in the space's order; where some were left out, those that explain most come first.
      left_out: the number of axes that were left out.
      regret_R: each configuration's regret.
      ok_R: whether each configuration's run ended with a finite outcome.
      best_config: the optimum.
    """

    axes: tuple[Axis, ...]
    left_out: int
    regret_R: np.ndarray
    ok_R: np.ndarray
    best_config: Mapping


def lay_out(experiment: Experiment) -> Grid | Strips:
    """Lay out an experiment's outcomes."""
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
    outcomes = experiment.outcomes
    rows = zip(experiment.configurations, outcomes.regrets_R, outcomes.ok_R, strict=True)
    for config, regret, ok in rows:
        cell = grid.cell(config)[::-1]
        regret_YX[cell] = regret
        status_YX[cell] = "ok" if ok else "failed"
    return grid


def _strips(experiment: Experiment) -> Strips:
    outcomes = experiment.outcomes
    axes = [axis for d in experiment.space.dimensions for axis in _axes(d, experiment)]
    left_out = max(0, len(axes) - MOST_AXES)
    if left_out:
        axes = sorted(axes, key=lambda axis: -axis.explained)[:MOST_AXES]
    best = experiment.configurations[outcomes.best_row]
    return Strips(tuple(axes), left_out, outcomes.regrets_R, outcomes.ok_R, best)


def _axes(d: Dimension, experiment: Experiment) -> list[Axis]:
    """Return the axis of a dimension, or those of a mixture's components."""
    ok_R, regret_R = experiment.outcomes.ok_R, experiment.outcomes.regrets_R
    is_log = d.is_log and d.is_continuous

    def axis(name: str, place: Callable[[Mapping], float]) -> Axis:
        places_R = np.array([place(config) for config in experiment.configurations], float)
        explained = _explained(places_R[ok_R], regret_R[ok_R], d.is_discrete)
        choices = d.choices if d.is_discrete else ()
        return Axis(name, choices, d.bounds, is_log, place, places_R, explained)

    if d.kind == "simplex":
        return [axis(c, lambda config, c=c: config[d.name][c]) for c in d.choices]
    if d.is_discrete:
        return [axis(d.name, lambda config: d.choices.index(config[d.name]))]
    return [axis(d.name, lambda c: math.log10(c[d.name]) if is_log else c[d.name])]


def parts(places: np.ndarray, most: int = PARTS) -> np.ndarray:
    """Put continuous places into groups of about equal size; return each place's group number."""
    edges = np.unique(np.quantile(places, np.linspace(0, 1, most + 1)[1:-1]))
    return np.searchsorted(edges, places)


def _explained(places: np.ndarray, regret: np.ndarray, discrete: bool) -> float:
    """Return the share of the regret's variance between an axis's values (or groups of them)."""
    numbers = places if discrete else parts(places)
    if not regret.var():
        return 0.0
    fitted = np.zeros_like(regret)
    for number in np.unique(numbers):
        same = numbers == number
        fitted[same] = regret[same].mean()
    return float(fitted.var() / regret.var())
