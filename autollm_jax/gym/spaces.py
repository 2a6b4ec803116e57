"""Configuration spaces: what a configuration is, when it is valid, and where it lies."""

import bisect
import dataclasses
import functools
import math
import numbers
import operator
from collections.abc import Mapping, Sequence

import numpy as np

KINDS = ("ordinal", "log-ordinal", "categorical", "simplex")

# A proposed number this close to a choice is that choice: Step Law spells one learning rate in
# several ways, and prompts show two or three significant digits.
LOG_ROUNDING = 1.05  # a factor
LINEAR_ROUNDING = 0.01  # relative
# Weights are written with few digits, so their sum is off by a little.
SIMPLEX_SUM_TOLERANCE = 0.02
SIMPLEX_DIGITS = 6


class InvalidConfiguration(ValueError):
    """Say why a proposed configuration cannot be run: one line, fit to be shown to an agent."""


def _show(value) -> str:
    """Describe any proposed value in a few characters, whatever its type and size."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:37] + "...")
    if isinstance(value, numbers.Integral) and int(value).bit_length() > 128:
        return f"an integer of {int(value).bit_length()} bits"
    if value is None or isinstance(value, numbers.Real):
        return str(value)
    return f"a {type(value).__name__}"


def _number(name: str, value) -> float:
    """Return `value` as a finite float; text, booleans, nan and infinities are refused."""
    plain = type(value) is float or type(value) is int  # quicker than asking the abstract class
    if not plain and (isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real)):
        raise InvalidConfiguration(f"{name} is {_show(value)}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidConfiguration(f"{name} is {_show(value)}, not a finite number")
    return number


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One dimension of a configuration space.

    Attributes:
      name: what the configuration calls it.
      kind: `ordinal` (numbers, evenly felt), `log-ordinal` (positive numbers, felt by their ratio),
        `categorical` (anything), `simplex` (a mapping component -> weight, summing to 1).
      choices: the accepted values (ascending for numbers); a simplex's component names.
    """

    name: str
    kind: str
    choices: tuple

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"{self.name} has kind {self.kind!r}; accepted are {', '.join(KINDS)}")
        object.__setattr__(self, "choices", tuple(self.choices))
        if not self.choices or len(set(self.choices)) != len(self.choices):
            raise ValueError(f"{self.name} needs choices, each named once")
        if self.is_numeric:
            try:
                values = [_number(self.name, choice) for choice in self.choices]
            except InvalidConfiguration as error:
                raise ValueError(f"a choice of {error}") from error
            if values != sorted(values):
                raise ValueError(f"{self.name}: choices must be ascending")
            if self.kind == "log-ordinal" and values[0] <= 0:
                raise ValueError(f"{self.name}: choices of a log-ordinal must be positive")

    @property
    def is_numeric(self) -> bool:
        return self.kind in ("ordinal", "log-ordinal")

    @property
    def width(self) -> int:
        """Count this dimension's unit coordinates."""
        return 1 if self.is_numeric else len(self.choices)

    def describe_choices(self) -> str:
        """List the accepted values, shortened to the ends where there are many."""
        shown = [f"{c:.4g}" if isinstance(c, float) else str(c) for c in self.choices]
        if len(shown) > 16:
            return f"{', '.join(shown[:3])}, ..., {', '.join(shown[-2:])}"
        return ", ".join(shown)

    def _scale(self, number: float) -> float:
        if self.kind == "ordinal":
            return number
        if number <= 0:
            raise InvalidConfiguration(f"{self.name} is {number:g}, but it must be positive")
        return math.log(number)

    @functools.cached_property
    def _scaled_choices(self) -> list[float]:
        return [self._scale(float(choice)) for choice in self.choices]

    def _nearest_choice(self, scaled: float):
        """Return the choice whose scaled value is nearest (the lower of equals)."""
        places = self._scaled_choices
        above = bisect.bisect_left(places, scaled)
        if above == len(places):
            return self.choices[-1]
        if above > 0 and scaled - places[above - 1] <= places[above] - scaled:
            return self.choices[above - 1]
        return self.choices[above]

    def _weights(self, value) -> np.ndarray:
        if not isinstance(value, Mapping):
            raise InvalidConfiguration(f"{self.name} is {_show(value)}, not a mapping to weights")
        unknown = [key for key in value if key not in self.choices]
        if unknown:
            raise InvalidConfiguration(
                f"{self.name} has no component {_show(unknown[0])}; it has "
                f"{self.describe_choices()}"
            )
        weights = np.array([_number(f"{self.name}.{c}", value.get(c, 0.0)) for c in self.choices])
        if (weights < 0).any() or weights.sum() <= 0:
            raise InvalidConfiguration(f"{self.name} needs weights of 0 or more, not all 0")
        return weights

    def canonical(self, value):
        """Return the choice that `value` is, up to rounding.

        Raises:
          InvalidConfiguration: `value` is no choice; the message lists what is accepted.
        """
        if self.kind == "categorical":
            for choice in self.choices:
                # 1 == True in Python, but not in a configuration.
                if type(choice) is type(value) and choice == value:
                    return choice
        elif self.kind == "simplex":
            weights = self._weights(value)
            total = weights.sum()
            if abs(total - 1) > SIMPLEX_SUM_TOLERANCE:
                raise InvalidConfiguration(f"{self.name}: weights sum to {total:.4g}, not to 1")
            return dict(zip(self.choices, (weights / total).tolist(), strict=True))
        else:
            number = _number(self.name, value)
            choice = self._nearest_choice(self._scale(number))
            if self.kind == "log-ordinal":
                near = max(number / choice, choice / number) <= LOG_ROUNDING
            else:
                near = abs(number - choice) <= LINEAR_ROUNDING * abs(choice)
            if near:
                return choice
        raise InvalidConfiguration(
            f"{self.name} is {_show(value)}; accepted are {self.describe_choices()}"
        )

    def to_unit(self, value) -> np.ndarray:
        """Place `value` in the unit cube; a number between or beyond the choices has a place too.

        Returns:
          [width] coordinates: position between the extreme choices (in the logarithm for
          log-ordinal), one-hot for categorical, normalised weights for simplex.
        """
        if self.kind == "categorical":
            one_hot = np.zeros(self.width)
            one_hot[self.choices.index(self.canonical(value))] = 1.0
            return one_hot
        if self.kind == "simplex":
            weights = self._weights(value)
            return weights / weights.sum()
        scaled = self._scale(_number(self.name, value))
        low, high = self._scaled_choices[0], self._scaled_choices[-1]
        if high == low:
            return np.zeros(1)
        return np.array([min(max((scaled - low) / (high - low), 0.0), 1.0)])

    def from_unit(self, unit: np.ndarray):
        """Return the choice nearest to the unit coordinates [width]."""
        if self.kind == "categorical":
            return self.choices[int(np.argmax(unit))]
        if self.kind == "simplex":
            weights = np.clip(unit, 0.0, None)
            if weights.sum() <= 0:
                weights = np.ones_like(weights)
            return dict(zip(self.choices, (weights / weights.sum()).tolist(), strict=True))
        low, high = self._scaled_choices[0], self._scaled_choices[-1]
        scaled = low + float(unit[0]) * (high - low)
        return self._nearest_choice(scaled)


@dataclasses.dataclass(frozen=True)
class Space:
    """An ordered set of dimensions. A configuration is a dict with one value per dimension.

    Attributes:
      dimensions: in order.
    """

    dimensions: tuple[Dimension, ...]

    def __post_init__(self):
        object.__setattr__(self, "dimensions", tuple(self.dimensions))
        if not self.dimensions or len(set(self.names)) != len(self.dimensions):
            raise ValueError("a space needs dimensions, each with a name of its own")

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(dimension.name for dimension in self.dimensions)

    def __getstate__(self) -> dict:
        # What is cached holds closures, which do not pickle, and is quickly made again.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def width(self) -> int:
        """Count the unit coordinates of a configuration (D')."""
        return sum(dimension.width for dimension in self.dimensions)

    def __getitem__(self, name: str) -> Dimension:
        return self.dimensions[self.names.index(name)]

    def _check_names(self, config) -> None:
        """Check that `config` has a value for each dimension, and no other name.

        Raises:
          InvalidConfiguration: a name is missing or unknown.
        """
        accepted = ", ".join(self.names)
        if type(config) is not dict and not isinstance(config, Mapping):
            raise InvalidConfiguration(
                f"a configuration maps {accepted} to values; this is {_show(config)}"
            )
        if len(config) == len(self.names) and all(map(config.__contains__, self.names)):
            return
        missing = [name for name in self.names if name not in config]
        problem = f"{missing[0]} is missing" if missing else None
        for name in config:
            if name not in self.names and not problem:
                problem = f"no such name: {_show(name)}"
        raise InvalidConfiguration(f"{problem}; accepted are exactly {accepted}")

    def validate(self, config) -> dict:
        """Return `config` in canonical form: this space's order, every value one of its choices.

        Raises:
          InvalidConfiguration: a name is missing or unknown, or a value is no choice.
        """
        self._check_names(config)
        return {d.name: d.canonical(config[d.name]) for d in self.dimensions}

    def to_unit(self, config) -> np.ndarray:
        """Return `config`'s coordinates in the unit cube [D'].

        Raises:
          InvalidConfiguration: it has no place there (wrong names, non-numbers, nan, infinities).
        """
        self._check_names(config)
        return np.concatenate([d.to_unit(config[d.name]) for d in self.dimensions])

    def from_unit(self, unit: np.ndarray) -> dict:
        """Return the configuration whose choices are nearest to the unit coordinates [D']."""
        unit = np.asarray(unit, dtype=float)
        if unit.shape != (self.width,) or not np.isfinite(unit).all():
            raise InvalidConfiguration(f"expected {self.width} finite unit coordinates")
        ends = np.cumsum([d.width for d in self.dimensions])[:-1]
        parts = np.split(unit, ends)
        return {d.name: d.from_unit(p) for d, p in zip(self.dimensions, parts, strict=True)}

    @functools.cached_property
    def key_of(self):
        """Return a fast function: canonical configuration -> something hashable, its identity."""
        if all(dimension.kind != "simplex" for dimension in self.dimensions):
            return operator.itemgetter(*self.names)

        def key(config):
            return tuple(
                tuple(round(config[d.name][c], SIMPLEX_DIGITS) for c in d.choices)
                if d.kind == "simplex"
                else config[d.name]
                for d in self.dimensions
            )

        return key

    def to_json(self) -> dict:
        dimensions = [
            {"name": d.name, "kind": d.kind, "choices": list(d.choices)} for d in self.dimensions
        ]
        return {"dimensions": dimensions}

    @classmethod
    def from_json(cls, value) -> "Space":
        """Read what `to_json` wrote.

        Raises:
          ValueError: it is no space; the message says what is wrong.
        """
        dimensions = value.get("dimensions") if isinstance(value, Mapping) else None
        if not isinstance(dimensions, Sequence) or isinstance(dimensions, str):
            raise ValueError("a space is {'dimensions': [{'name', 'kind', 'choices'}, ...]}")
        unknown = [key for key in value if key != "dimensions"]
        if unknown:
            raise ValueError(f"no such field: {_show(unknown[0])}; accepted is `dimensions` alone")
        made = []
        for entry in dimensions:
            if not isinstance(entry, Mapping) or set(entry) != {"name", "kind", "choices"}:
                raise ValueError("a dimension has exactly the fields name, kind and choices")
            choices = entry["choices"]
            scalar = isinstance(choices, list) and all(
                isinstance(choice, str | int | float) for choice in choices
            )
            if not isinstance(entry["name"], str) or not scalar:
                raise ValueError("a dimension has a text as name and a list of values as choices")
            made.append(Dimension(entry["name"], entry["kind"], tuple(choices)))
        return cls(tuple(made))
