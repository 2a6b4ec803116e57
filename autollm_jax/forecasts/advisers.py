"""Advisers: named forecasts that an agent is shown."""

from collections.abc import Sequence

from autollm_jax.errors import UserError
from autollm_jax.forecasts.base import BaseForecast
from autollm_jax.forecasts.landscapes import is_shiftable
from autollm_jax.forecasts.panel import OWN, SURROGATES, PanelForecast
from autollm_jax.forecasts.shifted import ShiftedForecast
from autollm_jax.forecasts.surface import SurfaceForecast
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting

# An adviser's name, and the forecasts that it averages. `own` is fast: policies train with it.
ADVISERS = {
    OWN: (OWN,),
    "panel": (OWN, *SURROGATES),
    **{name: (name,) for name in SURROGATES},
}


def forecast(setting: Setting, evidence: Sequence[Experiment], adviser: str = OWN) -> BaseForecast:
    """Make an adviser's forecast of a setting, given evidence.

    Raises:
      UserError: there is no such adviser.
    """
    if adviser not in ADVISERS:
        raise UserError(f"adviser {adviser!r}: accepted are {', '.join(ADVISERS)}")
    kind = ShiftedForecast if is_shiftable(setting.space) else SurfaceForecast
    own = kind(setting, evidence)
    return own if adviser == OWN else PanelForecast(own, evidence, ADVISERS[adviser])
