"""A space's dimensions as the parameters of an Optuna study."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import Trial

from autollm_jax.advise.optuna_parameters import Mixture
from autollm_jax.gym.spaces import Space


@dataclasses.dataclass(frozen=True)
class Parameters:
    """A space's dimensions as parameters of a study.

    A number is a float within the dimension's extent, a category is a category, and a mixture has
    one float from 0 to 1 for each component; the objective divides them by their sum.

    >>> from autollm_jax.gym.spaces import Dimension
    >>> space = Space((Dimension("rate", "log-ordinal", (1e-4, 1e-3)),
    ...                Dimension("mixture", "simplex", ("web", "code"))))
    >>> list(Parameters(space).distributions)
    ['rate', 'mixture.web', 'mixture.code']
    >>> Parameters(space).of_point(np.array([0.5, 0.25, 0.75]))["mixture.code"]
    0.75
    """

    space: Space

    @functools.cached_property
    def mixtures(self) -> dict[str, Mixture]:
        """The mixtures by name, each with a parameter for each component."""
        made = {}
        for dimension in self.space.dimensions:
            if dimension.kind == "simplex":
                parts = {f"{dimension.name}.{part}": part for part in dimension.choices}
                each = dict.fromkeys(parts, FloatDistribution(0.0, 1.0))
                made[dimension.name] = Mixture(dimension.name, parts, each)
        return made

    @functools.cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The parameters by name."""
        made: dict[str, BaseDistribution] = {}
        for dimension in self.space.dimensions:
            if dimension.kind == "categorical":
                made[dimension.name] = CategoricalDistribution(dimension.choices)
            elif dimension.name in self.mixtures:
                made |= self.mixtures[dimension.name].distributions
            else:
                low, high = map(float, dimension.extent)
                made[dimension.name] = FloatDistribution(low, high, log=dimension.is_log)
        return made

    def suggest(self, trial: Trial) -> dict:
        """Return the configuration that a trial suggests."""
        params: dict[str, Any] = {}
        for name, each in self.distributions.items():
            if isinstance(each, CategoricalDistribution):
                params[name] = trial.suggest_categorical(name, each.choices)
            else:
                assert isinstance(each, FloatDistribution)
                params[name] = trial.suggest_float(name, each.low, each.high, log=each.log)
        return self.configuration(params)

    def configuration(self, params: Mapping[str, Any]) -> dict:
        """Return the configuration of parameters; weights are divided by their sum."""
        return {
            name: self.mixtures[name].inside(params) if name in self.mixtures else params[name]
            for name in self.space.names
        }

    def of_point(self, point_D: np.ndarray) -> dict:
        """Return the parameters at unit coordinates [D']; those beyond the extent are moved to it.

        Numbers between a dimension's choices are kept.
        """
        made, start = {}, 0
        for dimension in self.space.dimensions:
            units = np.clip(point_D[start : start + dimension.width], 0.0, 1.0).tolist()
            start += dimension.width
            if dimension.kind == "categorical":
                made[dimension.name] = dimension.choices[int(np.argmax(units))]
            elif dimension.name in self.mixtures:
                made |= dict(zip(self.mixtures[dimension.name].parts, units, strict=True))
            else:
                low, high = map(float, dimension.extent)
                number = (
                    low * (high / low) ** units[0]
                    if dimension.is_log
                    else low + units[0] * (high - low)
                )
                made[dimension.name] = min(max(number, low), high)
        return made
