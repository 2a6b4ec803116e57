"""Relabelling: one change of units and one change of names for a whole family of experiments.

The experiments of a family may have different spaces. A dimension is found by its name, and a
mixture's component by its own, so that what they share stays shared.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from autollm_jax.curriculum.names import part_names
from autollm_jax.gym.experiments import Experiment, Fidelity
from autollm_jax.gym.spaces import Dimension, Space

AXIS_OCTAVES, SIZE_OCTAVES = 2.5, 3.0  # largest change of a dimension, of parameters and tokens
STRETCH = (0.5, 1.5)  # range of the factor on differences of outcomes


@dataclasses.dataclass(frozen=True)
class Unit:
    """A new unit of one dimension.

    Attributes:
      factor: new number / old number; 1 changes nothing.
      whole: whether the numbers are integers and stay so.
    """

    factor: float
    whole: bool

    def __call__(self, value):
        """Return a number in the new unit."""
        if self.factor == 1.0:
            return value
        return int(value * self.factor) if self.whole else value * self.factor


@dataclasses.dataclass(frozen=True)
class Units:
    """New units of a family.

    Attributes:
      axes: of each numeric dimension, by name.
      parameters, tokens: factors on the fidelity.
      stretch: factor on the differences between outcomes.
    """

    axes: Mapping[str, Unit]
    parameters: float
    tokens: float
    stretch: float

    @classmethod
    def draw(
        cls, experiments: Sequence[Experiment], random: np.random.Generator, changed: bool
    ) -> "Units":
        """Draw new units; the same numbers are drawn where nothing is to be `changed`."""
        names = list(dict.fromkeys(name for e in experiments for name in e.space.names))
        factors = {name: 2.0 ** random.uniform(-AXIS_OCTAVES, AXIS_OCTAVES) for name in names}
        parameters, tokens = (2.0 ** random.uniform(-SIZE_OCTAVES, SIZE_OCTAVES, 2)).tolist()
        stretch = random.uniform(*STRETCH)
        if not changed:
            factors, parameters, tokens, stretch = dict.fromkeys(names, 1.0), 1.0, 1.0, 1.0
        axes = {}
        for name in names:
            numeric = [
                e.space[name]
                for e in experiments
                if name in e.space.names and e.space[name].is_numeric
            ]
            if numeric:
                axes[name] = _unit(numeric, factors[name])
        return cls(axes, parameters, tokens, stretch)

    def fidelity(self, fidelity: Fidelity) -> Fidelity:
        """Return a fidelity in the new units."""
        return Fidelity(
            fidelity.level,
            fidelity.parameters * self.parameters,
            fidelity.tokens * self.tokens,
            fidelity.flops * self.parameters * self.tokens,
        )


def _unit(dimensions: Sequence[Dimension], factor: float) -> Unit:
    """Choose the unit of one dimension, which experiments may list differently.

    Only where ratios matter in all of them has it a unit. Integers stay integers in all of them:
    the factor is then the nearest power of two that keeps them so.
    """
    if factor == 1.0 or not all(d.is_log for d in dimensions):
        return Unit(1.0, False)
    choices = {choice for d in dimensions for choice in d.choices}
    whole = all(isinstance(choice, int) for choice in choices)
    if not whole or any(d.is_continuous for d in dimensions):
        return Unit(factor, False)
    power = 2.0 ** round(np.log2(factor))
    while any(choice * power != int(choice * power) for choice in choices):
        power *= 2.0
    return Unit(power, True)


def draw_part_names(
    experiments: Sequence[Experiment], random: np.random.Generator
) -> dict[str, dict[str, str]]:
    """Draw new names of mixtures' components, in a new order.

    Returns:
      For each simplex dimension, from each component that any experiment has to its new name.
    """
    components: dict[str, dict[str, None]] = {}
    for experiment in experiments:
        for dimension in experiment.space.dimensions:
            if dimension.kind == "simplex":
                components.setdefault(dimension.name, {}).update(dict.fromkeys(dimension.choices))
    renamed = {}
    for name, found in components.items():
        old = list(found)
        order = random.permutation(len(old))
        new = part_names(random, len(old))
        renamed[name] = {old[place]: fresh for place, fresh in zip(order, new, strict=True)}
    return renamed


@dataclasses.dataclass(frozen=True)
class Relabelling:
    """New units, and new names of components (see `draw_part_names`), of a family."""

    units: Units
    parts: Mapping[str, Mapping[str, str]]

    def _names(self, dimension: Dimension) -> dict[str, str]:
        """Return the new names of the components that this dimension has, in the new order."""
        new = self.parts.get(dimension.name, {part: part for part in dimension.choices})
        return {old: fresh for old, fresh in new.items() if old in dimension.choices}

    def dimension(self, dimension: Dimension) -> Dimension:
        """Relabel one experiment's dimension."""
        if dimension.is_continuous:
            low, high = map(self.units.axes[dimension.name], dimension.extent)
            return dataclasses.replace(dimension, bounds=(low, high))
        choices = dimension.choices
        if dimension.is_numeric:
            choices = tuple(map(self.units.axes[dimension.name], choices))
        elif dimension.kind == "simplex":
            choices = tuple(self._names(dimension).values())
        return dataclasses.replace(dimension, choices=choices)

    def config(self, space: Space, config: Mapping) -> dict:
        """Relabel a configuration of one experiment's space."""
        moved = dict(config)
        for dimension in space.dimensions:
            value = config[dimension.name]
            if dimension.is_numeric:
                moved[dimension.name] = self.units.axes[dimension.name](value)
            elif dimension.kind == "simplex":
                names = self._names(dimension)
                moved[dimension.name] = {new: value[old] for old, new in names.items()}
        return moved
