"""The forecast of a target: which kind there is for its space; the latest are kept."""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

from autollm_jax.errors import UserError
from autollm_jax.forecasts.base import BaseForecast
from autollm_jax.forecasts.landscapes import is_shiftable
from autollm_jax.forecasts.panel import OWN, SURROGATES, PanelForecast
from autollm_jax.forecasts.shifted import ShiftedForecast
from autollm_jax.forecasts.surface import SurfaceForecast
from autollm_jax.gym.experiments import Experiment

# Who makes the forecast that texts quote, and whom they average. `own` is fast, and what policies
# are trained with.
ADVISORS = {
    OWN: (OWN,),
    "panel": (OWN, *SURROGATES),
    **{name: (name,) for name in SURROGATES},
}

_ADVISOR = contextvars.ContextVar("advisor", default=OWN)
_FORECASTS: dict = {}
_MOST_FORECASTS = 256


@contextlib.contextmanager
def advised_by(advisor: str) -> Iterator[None]:
    """Let an advisor make the forecasts asked for inside.

    Raises:
      UserError: there is no such advisor.
    """
    if advisor not in ADVISORS:
        raise UserError(f"advisor {advisor!r}: accepted are {', '.join(ADVISORS)}")
    token = _ADVISOR.set(advisor)
    try:
        yield
    finally:
        _ADVISOR.reset(token)


def forecast(target: Experiment, evidence: Sequence[Experiment]) -> BaseForecast:
    """Return the advisor's forecast of a target given evidence; the latest pairs' are kept."""
    # `sealed()` makes a new object but keeps the cells, and a kept forecast keeps them alive, so
    # that their identity is a sound key.
    advisor = _ADVISOR.get()
    limit = None if target.limit is None else target.limit["at_most"]
    key = (advisor, id(target.cells), target.id, target.fidelity, limit, *map(id, evidence))
    if key not in _FORECASTS:
        while len(_FORECASTS) >= _MOST_FORECASTS:
            del _FORECASTS[next(iter(_FORECASTS))]
        made = (ShiftedForecast if is_shiftable(target.space) else SurfaceForecast)(
            target, evidence
        )
        if advisor != OWN:
            made = PanelForecast(made, evidence, ADVISORS[advisor])
        _FORECASTS[key] = (made, target.cells, tuple(evidence))
    return _FORECASTS[key][0]
