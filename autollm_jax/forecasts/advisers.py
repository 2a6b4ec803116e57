"""All forecasts by name, and advisers: the forecasts that an agent is shown.

A maker imports its forecast when it is called, so a forecast loads JAX or LightGBM only if needed.
"""

from collections.abc import Callable, Sequence

from autollm_jax.errors import UserError
from autollm_jax.forecasts.base import Forecast
from autollm_jax.forecasts.conditioning import Conditioned
from autollm_jax.forecasts.drift import Drift
from autollm_jax.forecasts.failing import Failing
from autollm_jax.forecasts.landscapes import is_shiftable, usable
from autollm_jax.forecasts.nearest import NearestExperiment
from autollm_jax.forecasts.panel import Panel
from autollm_jax.forecasts.scaling_law import ScalingLaw
from autollm_jax.forecasts.shifted import Shifted
from autollm_jax.forecasts.surface import SurfaceTransfer
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting

OWN = "own"


def _own(setting: Setting, evidence: Sequence[Experiment], seed: int = 0) -> Forecast:
    """Move landscapes along a law where space and evidence allow it, else carry over surfaces."""
    shifted = is_shiftable(setting.space) and (not evidence or usable(evidence, setting))
    return (Shifted if shifted else SurfaceTransfer)(setting, evidence, seed)


def _gaussian_process(setting: Setting, evidence: Sequence[Experiment], seed: int = 0) -> Forecast:
    from autollm_jax.forecasts.gaussian_process import GaussianProcess

    return GaussianProcess(setting, evidence, seed)


def _boosted_trees(setting: Setting, evidence: Sequence[Experiment], seed: int = 0) -> Forecast:
    from autollm_jax.forecasts.boosted_trees import BoostedTrees

    return BoostedTrees(setting, evidence, seed)


# The advisers: forecasts that stand side by side before an agent that decides between them. Each is
# quick once it is made: trials condition it in closed form.
COUNSEL: dict[str, Callable[..., Forecast]] = {
    OWN: _own,
    "nearest": Conditioned.of(NearestExperiment),
    "drift": Drift,
    "trees": Conditioned.of(_boosted_trees),
    "process": _gaussian_process,
}


def counsel(
    setting: Setting, evidence: Sequence[Experiment], seed: int = 0, failing: str = ""
) -> Panel:
    """Make the forecasts of all advisers; their mean is the panel's own.

    Args:
      setting: the question.
      evidence: experiments with their outcomes.
      seed: of draws, where a forecast draws.
      failing: ADVISER:FAILURE, an adviser that is wrong on purpose (`failing`); "" for none.
    """
    members = {name: make(setting, evidence, seed) for name, make in COUNSEL.items()}
    if failing:
        name, failure = failing.split(":")
        members[name] = Failing(members[name], failure)
    first, *_ = members.values()
    return Panel(first, tuple(members.values()), tuple(members))


# Forecasts by name, each made from (setting, evidence, seed). The meta-learned one needs what it
# learned besides: see fsbo.py.
FORECASTS: dict[str, Callable[..., Forecast]] = {
    OWN: _own,
    "nearest_experiment": NearestExperiment,
    "scaling_law": ScalingLaw,
    "drift": Drift,
    "gaussian_process": _gaussian_process,
    "boosted_trees": _boosted_trees,
    "panel": counsel,
}


def forecast(setting: Setting, evidence: Sequence[Experiment], name: str = OWN) -> Forecast:
    """Make a forecast of a setting by its name in FORECASTS.

    >>> from autollm_jax.gym.settings import Fidelity, make_setting
    >>> from autollm_jax.gym.spaces import Dimension, Space
    >>> setting = make_setting(
    ...     source="mine", task="pretraining", name="7B",
    ...     space=Space((Dimension("learning_rate", "log-ordinal", (1e-4, 2e-4, 4e-4)),)),
    ...     fidelity=Fidelity("high", parameters=7e9, tokens=2e11, flops=8.4e21),
    ...     default={"learning_rate": 2e-4},
    ... )
    >>> advised = forecast(setting, evidence=())
    >>> setting.configurations[int(advised.expected_regrets().argmin())]
    {'learning_rate': 0.0002}

    Raises:
      UserError: there is no such forecast.
    """
    if name not in FORECASTS:
        raise UserError(f"forecast {name!r}: accepted are {', '.join(FORECASTS)}")
    return FORECASTS[name](setting, evidence)
