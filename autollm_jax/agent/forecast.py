"""The forecast of a target: which kind there is for its space; the latest are kept."""

from collections.abc import Sequence

from autollm_jax.agent.base_forecast import BaseForecast
from autollm_jax.agent.evidence import is_shiftable
from autollm_jax.agent.shifted_forecast import ShiftedForecast
from autollm_jax.agent.surface_forecast import SurfaceForecast
from autollm_jax.gym.experiments import Experiment

_FORECASTS: dict = {}
_MOST_FORECASTS = 128


def forecast(target: Experiment, evidence: Sequence[Experiment]) -> BaseForecast:
    """Return the forecast of a target given evidence; the latest pairs' are kept."""
    # `sealed()` makes a new object but keeps the cells, and a kept forecast keeps them alive, so
    # that their identity is a sound key.
    limit = None if target.limit is None else target.limit["at_most"]
    key = (id(target.cells), target.id, target.fidelity, limit, *map(id, evidence))
    if key not in _FORECASTS:
        while len(_FORECASTS) >= _MOST_FORECASTS:
            del _FORECASTS[next(iter(_FORECASTS))]
        kind = ShiftedForecast if is_shiftable(target.space) else SurfaceForecast
        _FORECASTS[key] = (kind(target, evidence), target.cells, tuple(evidence))
    return _FORECASTS[key][0]
