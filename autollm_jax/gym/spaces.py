"""Configuration spaces: which configurations are valid, and where each lies in a unit cube."""

import bisect
import dataclasses
import functools
import math
import numbers
import operator
from collections.abc import Mapping, Sequence

import numpy as np

ORDINAL_KINDS = ("ordinal", "log-ordinal")
CONTINUOUS_KINDS = ("continuous", "log-continuous")
KINDS = (*ORDINAL_KINDS, *CONTINUOUS_KINDS, "categorical", "simplex")

# A proposed number this close to a choice is that choice: Step Law spells one learning rate in
# several ways, and prompts show two or three significant digits.
LOG_ROUNDING = 1.05  # a factor
LINEAR_ROUNDING = 0.01  # relative
# A number that is outside the bounds by less than this share of the range is clipped to the bound.
BOUND_ROUNDING = 1e-3
# Weights are written with few digits, so their sum is off by a little.
SIMPLEX_SUM_TOLERANCE = 0.02
# Two configurations are one where weights and continuous unit coordinates agree to these digits.
KEY_DIGITS = 6


class InvalidConfiguration(ValueError):
    """A proposed configuration cannot be run; the message is one line, fit to show an agent."""


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

    >>> rate = Dimension("learning_rate", "log-continuous", bounds=(1e-4, 1e-2))
    >>> rate.to_unit(1e-3), rate.describe_choices()
    (array([0.5]), 'numbers from 0.0001 to 0.01')

    Attributes:
      name: the dimension's key in a configuration.
      kind: `ordinal` (listed numbers whose differences matter), `log-ordinal` (listed positive
        numbers whose ratios matter), `continuous` and `log-continuous` (any number within bounds,
        on the same two scales), `categorical` (listed values without an order), or `simplex` (a
        mapping from component to weight; the weights sum to 1).
      choices: the accepted values (ascending for ordinal kinds); a simplex's component names;
        empty for the continuous kinds.
      bounds: the lowest and the highest accepted number of a continuous kind; else None.
    """

    name: str
    kind: str
    choices: tuple = ()
    bounds: tuple[float, float] | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"{self.name} has kind {self.kind!r}; accepted are {', '.join(KINDS)}")
        object.__setattr__(self, "choices", tuple(self.choices))
        if self.is_continuous:
            self._check_bounds()
            return
        if self.bounds is not None:
            raise ValueError(f"{self.name}: a dimension of kind {self.kind} has no bounds")
        if not self.choices or len(set(self.choices)) != len(self.choices):
            raise ValueError(f"{self.name} needs choices, each named once")
        if self.is_numeric:
            self._check_numbers(self.choices, "a choice")

    def _check_bounds(self) -> None:
        if self.choices:
            raise ValueError(f"{self.name}: a dimension of kind {self.kind} has bounds, no choices")
        if self.bounds is None or len(self.bounds) != 2:
            raise ValueError(f"{self.name} needs bounds: the lowest and the highest number")
        self._check_numbers(self.bounds, "a bound")
        low, high = map(float, self.bounds)
        if not low < high:
            raise ValueError(f"{self.name}: the bounds are {low:g} and {high:g}; accepted are two "
                             "different numbers, the lower one first")  # fmt: skip
        object.__setattr__(self, "bounds", (low, high))

    def _check_numbers(self, values: Sequence, each: str) -> None:
        try:
            found = [_number(self.name, value) for value in values]
        except InvalidConfiguration as error:
            raise ValueError(f"{each} of {error}") from error
        if found != sorted(found):
            raise ValueError(f"{self.name}: choices and bounds must be ascending")
        if self.is_log and found[0] <= 0:
            raise ValueError(f"{self.name}: {each} of kind {self.kind} must be positive")

    @property
    def is_numeric(self) -> bool:
        """Whether the values are numbers on a scale."""
        return self.kind in ORDINAL_KINDS or self.kind in CONTINUOUS_KINDS

    @property
    def is_continuous(self) -> bool:
        """Whether any number within bounds is accepted."""
        return self.kind in CONTINUOUS_KINDS

    @property
    def is_log(self) -> bool:
        """Whether ratios of values matter, not differences."""
        return self.kind in ("log-ordinal", "log-continuous")

    @property
    def is_discrete(self) -> bool:
        """Whether the accepted values are listed, so that a value has an index."""
        return not self.is_continuous and self.kind != "simplex"

    @property
    def extent(self) -> tuple[float, float]:
        """The lowest and the highest accepted number of a numeric dimension."""
        return (self.choices[0], self.choices[-1]) if self.bounds is None else self.bounds

    @property
    def width(self) -> int:
        """The number of unit coordinates of this dimension."""
        return 1 if self.is_numeric else len(self.choices)

    def describe_choices(self) -> str:
        """List the accepted values, shortened to the ends where there are many."""
        if self.is_continuous:
            return "numbers from {:.6g} to {:.6g}".format(*self.extent)
        shown = [f"{c:.4g}" if isinstance(c, float) else str(c) for c in self.choices]
        if len(shown) > 16:
            return f"{', '.join(shown[:3])}, ..., {', '.join(shown[-2:])}"
        return ", ".join(shown)

    def _scale(self, number: float) -> float:
        if not self.is_log:
            return number
        if number <= 0:
            raise InvalidConfiguration(f"{self.name} is {number:g}, but it must be positive")
        return math.log(number)

    @functools.cached_property
    def _scaled_choices(self) -> list[float]:
        return [self._scale(float(choice)) for choice in self.choices]

    @functools.cached_property
    def _scaled_extent(self) -> tuple[float, float]:
        low, high = self.extent
        return self._scale(float(low)), self._scale(float(high))

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
        """Return the accepted value that stands for `value`.

        A listed number is found up to rounding. A number within the bounds of a continuous kind is
        kept; one outside by less than BOUND_ROUNDING of the range is clipped.

        Raises:
          InvalidConfiguration: `value` is not accepted; the message lists what is.
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
        elif self.is_continuous:
            number = _number(self.name, value)
            (low, high), (least, most) = self.extent, self._scaled_extent
            if low <= number <= high:
                return number
            margin = BOUND_ROUNDING * (most - least)
            if least - margin <= self._scale(number) <= most + margin:
                return min(max(number, low), high)
        else:
            number = _number(self.name, value)
            choice = self._nearest_choice(self._scale(number))
            if self.is_log:
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
          [width] coordinates: the position between the lowest and the highest accepted number (of
          the logarithms for the two log kinds), one-hot for categorical, normalised weights for a
          simplex.
        """
        if self.kind == "categorical":
            one_hot = np.zeros(self.width)
            one_hot[self.choices.index(self.canonical(value))] = 1.0
            return one_hot
        if self.kind == "simplex":
            weights = self._weights(value)
            return weights / weights.sum()
        scaled = self._scale(_number(self.name, value))
        low, high = self._scaled_extent
        if high == low:
            return np.zeros(1)
        return np.array([min(max((scaled - low) / (high - low), 0.0), 1.0)])

    def from_unit(self, unit: np.ndarray):
        """Return the accepted value nearest to the unit coordinates [width]."""
        if self.kind == "categorical":
            return self.choices[int(np.argmax(unit))]
        if self.kind == "simplex":
            weights = np.clip(unit, 0.0, None)
            if weights.sum() <= 0:
                weights = np.ones_like(weights)
            return dict(zip(self.choices, (weights / weights.sum()).tolist(), strict=True))
        low, high = self._scaled_extent
        scaled = low + float(unit[0]) * (high - low)
        if not self.is_continuous:
            return self._nearest_choice(scaled)
        if not low < scaled < high:  # exactly the bound, without the logarithm's rounding
            return self.extent[scaled >= high]
        number = math.exp(scaled) if self.is_log else scaled
        return min(max(number, self.extent[0]), self.extent[1])

    def key(self, value):
        """Return a hashable identity of an accepted value, the same for values alike."""
        if self.kind == "simplex":
            return tuple(round(value[component], KEY_DIGITS) for component in self.choices)
        if self.is_continuous:
            # Not of `to_unit` alone, which would place numbers beyond the bounds on them.
            return round(float(self.to_unit(self.canonical(value))[0]), KEY_DIGITS)
        return value

    def to_json(self) -> dict:
        """Return the fields name, kind, and choices or (of a continuous kind) bounds."""
        accepted = (
            {"bounds": list(self.extent)} if self.is_continuous else {"choices": list(self.choices)}
        )
        return {"name": self.name, "kind": self.kind} | accepted

    @classmethod
    def from_json(cls, value) -> "Dimension":
        """Read what `to_json` wrote.

        Raises:
          ValueError: it is no dimension; the message says what is wrong.
        """
        if not isinstance(value, Mapping) or not {"name", "kind"} <= set(value):
            raise ValueError("a dimension has the fields name, kind, and choices or bounds")
        listed = "bounds" if value["kind"] in CONTINUOUS_KINDS else "choices"
        if set(value) != {"name", "kind", listed}:
            raise ValueError(
                f"a dimension of kind {_show(value['kind'])} has exactly the fields name, kind and "
                f"{listed}"
            )
        values = value[listed]
        scalars = isinstance(values, list) and all(isinstance(v, str | int | float) for v in values)
        if not isinstance(value["name"], str) or not scalars:
            raise ValueError(f"a dimension has a text as name and a list of values as {listed}")
        return cls(value["name"], value["kind"], **{listed: tuple(values)})


@dataclasses.dataclass(frozen=True)
class Space:
    """An ordered set of dimensions. A configuration is a dict with one value per dimension.

    >>> space = Space((
    ...     Dimension("layers", "ordinal", (2, 4, 8)),
    ...     Dimension("dropout", "continuous", bounds=(0.0, 0.5)),
    ... ))
    >>> space.validate({"dropout": 0.1, "layers": 4.01})
    {'layers': 4, 'dropout': 0.1}

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
        """The dimensions' names, in order."""
        return tuple(dimension.name for dimension in self.dimensions)

    def __getstate__(self) -> dict:
        # Cached values hold closures, which do not pickle; they are quickly made again.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def width(self) -> int:
        """The number of unit coordinates of a configuration (D')."""
        return sum(dimension.width for dimension in self.dimensions)

    def __getitem__(self, name: str) -> Dimension:
        return self.dimensions[self.names.index(name)]

    def _check_names(self, config) -> None:
        """Check that `config` has a value for each dimension, and no other name.

        Raises:
          InvalidConfiguration: a name is missing or unknown.
        """
        if type(config) is not dict and not isinstance(config, Mapping):
            raise InvalidConfiguration(
                f"a configuration maps {', '.join(self.names)} to values; this is {_show(config)}"
            )
        if len(config) == len(self.names) and all(map(config.__contains__, self.names)):
            return
        missing = [name for name in self.names if name not in config]
        problem = f"{missing[0]} is missing" if missing else None
        for name in config:
            if name not in self.names and not problem:
                problem = f"no such name: {_show(name)}"
        raise InvalidConfiguration(f"{problem}; accepted are exactly {', '.join(self.names)}")

    def validate(self, config) -> dict:
        """Return `config` in canonical form: this space's order, every value an accepted one.

        Raises:
          InvalidConfiguration: a name is missing or unknown, or a value is not accepted.
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
        """Return the configuration whose values are nearest to the unit coordinates [D'].

        Raises:
          InvalidConfiguration: these are not D' finite numbers.
        """
        unit = np.asarray(unit, dtype=float)
        if unit.shape != (self.width,) or not np.isfinite(unit).all():
            raise InvalidConfiguration(f"expected {self.width} finite unit coordinates")
        ends = np.cumsum([d.width for d in self.dimensions])[:-1]
        parts = np.split(unit, ends)
        return {d.name: d.from_unit(p) for d, p in zip(self.dimensions, parts, strict=True)}

    @functools.cached_property
    def key_of(self):
        """A fast function from a canonical configuration to its hashable identity."""
        if all(dimension.is_discrete for dimension in self.dimensions):
            return operator.itemgetter(*self.names)

        def key(config):
            return tuple(dimension.key(config[dimension.name]) for dimension in self.dimensions)

        return key

    def to_json(self) -> dict:
        """Return `{"dimensions": [...]}`, which `from_json` reads."""
        return {"dimensions": [dimension.to_json() for dimension in self.dimensions]}

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
        return cls(tuple(map(Dimension.from_json, dimensions)))
