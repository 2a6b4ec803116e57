"""Parameters of an Optuna study as the dimensions of a space, and the way back."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from autollm_jax.forecasts.coordinates import project
from autollm_jax.gym.spaces import Dimension, Space

LISTED = 64  # a whole-number or stepped parameter of at most so many values is listed
Numbers = FloatDistribution | IntDistribution


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a study as a dimension, and the way back.

    Where the evidence has the dimension, its scale holds: a person may suggest a batch size on a
    linear scale, or as a category of numbers, and numbers teach more on a scale of their ratios.

    >>> batch = Dimension("batch", "log-ordinal", (32, 64, 128))
    >>> Parameter("batch", CategoricalDistribution((256, 64)), batch).dimension.kind
    'log-ordinal'

    Attributes:
      name: of both.
      distribution: the parameter's.
      origin: the evidence's dimension; None where it has none.
    """

    name: str
    distribution: BaseDistribution
    origin: Dimension | None = None

    @functools.cached_property
    def dimension(self) -> Dimension:
        each = self.distribution
        if isinstance(each, CategoricalDistribution):
            numbers = self._numbers
            if not numbers:
                return Dimension(self.name, "categorical", self._labels)
            return Dimension(self.name, self._scaled("ordinal", numbers[0], False), numbers)
        assert isinstance(each, Numbers)
        count = (each.high - each.low) / each.step + 1 if each.step else math.inf
        if count <= LISTED:
            assert each.step is not None
            values = [each.low + n * each.step for n in range(round(count))]
            return Dimension(self.name, self._scaled("ordinal", each.low, each.log), tuple(values))
        kind = self._scaled("continuous", each.low, each.log)
        return Dimension(self.name, kind, bounds=(each.low, each.high))

    def _scaled(self, kind: str, low: float, log: bool) -> str:
        """Return the kind on the evidence's scale, else on the parameter's own."""
        if self.origin is not None and self.origin.is_numeric:
            log = self.origin.is_log and low > 0
        return f"log-{kind}" if log else kind

    @functools.cached_property
    def _numbers(self) -> tuple:
        """The choices in their order, where they are numbers, as the evidence's; else none."""
        assert isinstance(self.distribution, CategoricalDistribution)
        choices = self.distribution.choices
        numeric = self.origin is not None and self.origin.is_numeric
        if not numeric or not all(type(choice) in (int, float) for choice in choices):
            return ()
        numbers = {float(choice): choice for choice in choices if choice is not None}
        return tuple(numbers[n] for n in sorted(numbers)) if len(numbers) == len(choices) else ()

    @property
    def _labels(self) -> tuple[str, ...]:
        """Name each choice as evidence does; by its number where two have one name."""
        assert isinstance(self.distribution, CategoricalDistribution)
        labels = tuple(map(str, self.distribution.choices))
        distinct = len(set(labels)) == len(labels)
        return labels if distinct else tuple(str(n) for n in range(len(labels)))

    def inside(self, params: Mapping[str, Any]):
        """Return the dimension's value of a trial's parameters."""
        value = params[self.name]
        if self.dimension.kind == "categorical":
            return self._labels[int(self.distribution.to_internal_repr(value))]
        return self.dimension.canonical(value)

    def outside(self, inside) -> dict[str, Any]:
        """Return the parameter of the dimension's value."""
        each = self.distribution
        if isinstance(each, CategoricalDistribution):
            known = self._numbers or self._labels
            choices = self._numbers or each.choices
            return {self.name: choices[known.index(inside)]}
        assert isinstance(each, Numbers)
        return {self.name: _within(float(inside), each)}


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Parameters of a study that are the components of one mixture, and the way back.

    >>> parts = {"mixture.web": "web", "mixture.code": "code"}
    >>> mixture = Mixture("mixture", parts, dict.fromkeys(parts, FloatDistribution(0, 1)))
    >>> mixture.inside({"mixture.web": 0.2, "mixture.code": 0.6})["web"]
    0.25
    >>> mixture.outside({"web": 0.25, "code": 0.75})
    {'mixture.web': 0.25, 'mixture.code': 0.75}

    Attributes:
      name: the mixture's, as the evidence has it.
      parts: the components by their parameters' names.
      distributions: by the parameters' names.
    """

    name: str
    parts: Mapping[str, str]
    distributions: Mapping[str, Numbers]

    @functools.cached_property
    def dimension(self) -> Dimension:
        return Dimension(self.name, "simplex", tuple(self.parts.values()))

    def inside(self, params: Mapping[str, Any]) -> dict[str, float]:
        """Return the mixture of a trial's parameters: their shares of their sum."""
        weights = {part: max(float(params[name]), 0.0) for name, part in self.parts.items()}
        total = sum(weights.values())
        if not total:
            return dict.fromkeys(weights, 1.0 / len(weights))
        return {part: weight / total for part, weight in weights.items()}

    def outside(self, inside: Mapping[str, float]) -> dict[str, float]:
        """Return the parameters of a mixture."""
        return {name: _share(inside[p], self.distributions[name]) for name, p in self.parts.items()}


Parts = Sequence[Parameter | Mixture]


def parts_of(
    search_space: Mapping[str, BaseDistribution],
    mixtures: Mapping[str, Mapping[str, str]],
    known: Sequence[Dimension],
) -> Parts:
    """Return the dimensions of a search space.

    They come in the evidence's order, since a law moves optima only in a space like the evidence's.

    Args:
      search_space: of a study.
      mixtures: by name, each one's components by their parameters' names. One that the study does
        not have whole is no mixture there.
      known: the evidence's dimensions; others follow.
    """
    made: list[Parameter | Mixture] = []
    left = dict(search_space)
    for name, parts in mixtures.items():
        numbers = {
            part: each
            for part in parts
            if isinstance(each := search_space.get(part), Numbers) and not each.log
        }
        if len(numbers) == len(parts):
            made.append(Mixture(name, parts, numbers))
            left = {key: each for key, each in left.items() if key not in parts}
    origins = {dimension.name: dimension for dimension in known}
    made += [Parameter(name, each, origins.get(name)) for name, each in left.items()]
    places = {dimension.name: place for place, dimension in enumerate(known)}
    return sorted(made, key=lambda each: places.get(each.name, len(places)))


def inside(parts: Parts, params: Mapping[str, Any]) -> dict:
    """Return the configuration of a trial's parameters."""
    return {each.name: each.inside(params) for each in parts}


def outside(parts: Parts, config: Mapping) -> dict[str, Any]:
    """Return the parameters of a configuration."""
    made: dict[str, Any] = {}
    for each in parts:
        made |= each.outside(config[each.name])
    return made


def moved(value, origin: Dimension | None, distribution: BaseDistribution):
    """Return what stands in a distribution for a value of another space.

    A number keeps its meaning, or its place where the two ranges share nothing; a category is one
    of the same name.

    >>> moved(0.3, Dimension("rate", "continuous", bounds=(0.0, 1.0)), FloatDistribution(0.5, 2.0))
    0.5

    Args:
      value: of the other space.
      origin: its dimension; None for the share of a component of a mixture.
      distribution: of the study's parameter.

    Returns:
      The parameter's value; None where nothing stands for the value.
    """
    if distribution.single():
        return None
    if origin is None:
        if not isinstance(distribution, Numbers) or distribution.log:
            return None
        return _share(value, distribution)
    target = Parameter(origin.name, distribution, origin)
    if target.dimension.is_numeric != origin.is_numeric:
        return None
    if not origin.is_numeric:
        known = value in target.dimension.choices
        return target.outside(value)[origin.name] if known else None
    [unit_D] = project([{origin.name: value}], Space((origin,)), Space((target.dimension,)))
    return target.outside(target.dimension.from_unit(unit_D.clip(0.0, 1.0)))[origin.name]


def _share(share: float, distribution: Numbers) -> float:
    """Return the number of a share; a range beyond 1 is one of percentages."""
    return _within(share * (100.0 if distribution.high > 1 else 1.0), distribution)


def _within(number: float, distribution: Numbers) -> float:
    """Return the number of a distribution that is nearest to one."""
    low, high, step = distribution.low, distribution.high, distribution.step
    number = min(max(number, low), high)
    if step and not distribution.log:
        number = min(low + round((number - low) / step) * step, high)
    return round(number) if isinstance(distribution, IntDistribution) else number
