"""Axes of a picture: a hyperparameter or a component of a mixture each, with readable ticks."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from autollm_jax.advise.values import spell
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.spaces import Dimension, Space

CHARACTER, GAP = 0.024, 0.03  # of a tick's label, and between two labels: shares of an axis
MARGIN = 0.05  # beside the first and the last value: a share of an axis
LEAST_RUNS = 4  # that tell how much an axis explains
LONGEST = 14  # characters of a category


@dataclasses.dataclass(frozen=True)
class Axis:
    """What is drawn along one axis.

    Attributes:
      name: of the hyperparameter, or MIXTURE.COMPONENT.
      value: of a configuration, its place on the axis.
      ends: the lowest and the highest place.
      log: whether ratios are drawn alike.
      marks: places that may have a tick, with their labels; empty for a scale of numbers.
      is_ordered: whether places between two values mean anything.
    """

    name: str
    value: Callable[[Mapping], float]
    ends: tuple[float, float]
    log: bool = False
    marks: tuple[tuple[float, str], ...] = ()
    is_ordered: bool = True

    @property
    def limits(self) -> tuple[float, float]:
        """The ends of the drawn axis: of all that may be chosen, and a little more."""
        low, high = self.ends
        if low == high:
            return (0.9 * low, 1.1 * high) if low > 0 else (low - 1.0, high + 1.0)
        if self.log:
            margin = (high / low) ** MARGIN
            return low / margin, high * margin
        return low - MARGIN * (high - low), high + MARGIN * (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Return places with labels that do not overlap."""
        marks = list(self.marks)
        if not marks:
            locator = LogLocator(subs=(1.0, 2.0, 5.0)) if self.log else MaxNLocator(5)
            low, high = self.limits
            marks = [(v, spell(float(v))) for v in locator.tick_values(low, high)]
            marks = [(v, text) for v, text in marks if low <= v <= high]
        return _apart(marks, self._share)

    def _share(self, value: float) -> float:
        scale = np.log if self.log else float
        low, high = map(scale, self.limits)
        return float((scale(value) - low) / (high - low))

    def lay_out(self, axes: Axes) -> None:
        """Give a drawing this axis as its x axis."""
        if self.log:
            axes.set_xscale("log")
        axes.set_xlim(*self.limits)
        axes.xaxis.set_minor_locator(NullLocator())
        places, labels = zip(*self.ticks(), strict=True)
        axes.set_xticks(places, labels)
        axes.set_xlabel(self.name)


def _apart(
    marks: Sequence[tuple[float, str]], share: Callable[[float], float]
) -> list[tuple[float, str]]:
    """Leave out marks whose labels would touch a label before them; the last one stays."""

    def clear(left: tuple[float, str], right: tuple[float, str]) -> bool:
        width = CHARACTER * (len(left[1]) + len(right[1])) / 2 + GAP
        return share(right[0]) - share(left[0]) >= width

    kept: list[tuple[float, str]] = []
    for mark in marks:
        if not kept or clear(kept[-1], mark):
            kept.append(mark)
    if len(kept) > 1 and kept[-1] != marks[-1] and clear(kept[-2], marks[-1]):
        kept[-1] = marks[-1]
    return kept


def axes_of(space: Space, nearest: Experiment | None, most: int) -> list[Axis]:
    """Return the axes of a space, those that explain most of the nearest experiment first."""
    axes = [axis for dimension in space.dimensions for axis in _of_dimension(dimension)]
    if nearest is not None:
        axes.sort(key=lambda axis: -_explained(axis, nearest))
    return axes[:most]


def _of_dimension(dimension: Dimension) -> list[Axis]:
    name = dimension.name
    if dimension.kind == "simplex":
        return [
            Axis(f"{name}.{part}", lambda config, part=part: float(config[name][part]), (0.0, 1.0))
            for part in dimension.choices
        ]
    if dimension.kind == "categorical":
        place = {choice: float(number) for number, choice in enumerate(dimension.choices)}
        marks = tuple((number, _short(str(choice))) for choice, number in place.items())
        ends = 0.0, float(len(place) - 1)
        return [Axis(name, lambda config: place[config[name]], ends, False, marks, False)]
    marks = tuple((float(choice), spell(choice)) for choice in dimension.choices)
    low, high = map(float, dimension.extent)
    return [Axis(name, lambda config: float(config[name]), (low, high), dimension.is_log, marks)]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _explained(axis: Axis, experiment: Experiment) -> float:
    """Return the variance of regret that an axis explains in an experiment."""
    x_R = np.array([axis.value(config) for config in experiment.configurations])
    y_R = experiment.outcomes.regrets_R
    values = np.unique(x_R)
    if len(values) < 2 or len(x_R) < LEAST_RUNS:
        return 0.0
    if not axis.is_ordered:
        fitted_R = np.sum([np.where(x_R == v, y_R[x_R == v].mean(), 0.0) for v in values], 0)
    else:
        x_R = np.log(x_R) if axis.log else x_R
        x_R = (x_R - x_R.mean()) / x_R.std()
        fitted_R = np.polyval(np.polyfit(x_R, y_R, min(len(values) - 1, 2)), x_R)
    return float(fitted_R.var())
