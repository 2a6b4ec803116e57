"""Intervals of predicted outcomes, and how they are calibrated.

A predicted outcome is wrong by its level (what the best runs of the target reach: an extrapolation
until there is a trial; `levels`) and by its place in the landscape (what the advisers say, their
disagreement included). Quantiles of (outcome - prediction) / deviation over held-out
experiments of many sources turn deviations into intervals (split conformal prediction; Vovk et al.,
2005; Angelopoulos and Bates, arXiv 2107.07511). Quantiles are measured for each state of knowledge
on its own (Mondrian conformal prediction; Vovk et al., 2003): a level that no law was tried on is
off by far more than one with a known error, and one quantile for both is too small for the first
and too large for the second.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from importlib import resources

import numpy as np
from scipy import stats

from autollm_jax.advise.levels import best_loss, level_of
from autollm_jax.forecasts.base import Prediction
from autollm_jax.gym.environment import Trial
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting

COVERAGES = (0.8, 0.95)
# What is known of the level: no law could be tried on so few sizes; a law was; a trial tells it.
STATES = ("untested", "before", "after")
FILE = "calibration.json"


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Quantiles of |outcome - prediction| / deviation, by state of knowledge and coverage.

    Attributes:
      untested: before a trial, where runs of so few sizes leave no law of levels to try: one number
        for each of COVERAGES.
      before: before a trial elsewhere.
      after: after the first trial.
      provenance: how they were measured.
    """

    untested: tuple[float, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    provenance: str = ""

    @classmethod
    def normal(cls) -> "Calibration":
        """Return a normal distribution's quantiles: what deviations mean if they are right."""
        factors = tuple(float(stats.norm.ppf(0.5 + c / 2)) for c in COVERAGES)
        return cls(factors, factors, factors, "not calibrated")

    @classmethod
    def shipped(cls) -> "Calibration":
        """Read the quantiles that the package comes with."""
        file = resources.files("autollm_jax.advise") / FILE
        if not file.is_file():
            return cls.normal()
        value = json.loads(file.read_text())
        return cls(
            **{state: tuple(value[state]) for state in STATES}, provenance=value["provenance"]
        )

    def factors(self, state: str) -> tuple[float, ...]:
        """Return the quantiles of one of STATES."""
        return {"untested": self.untested, "before": self.before, "after": self.after}[state]


@dataclasses.dataclass(frozen=True, eq=False)
class Expected:
    """What is expected of R configurations, in the objective's units.

    Attributes:
      mean_R: predicted outcomes; nan where nothing tells their level.
      deviation_R: their standard deviations.
      intervals_C2R: lower and upper ends for each of COVERAGES.
      state: one of STATES.
    """

    mean_R: np.ndarray
    deviation_R: np.ndarray
    intervals_C2R: np.ndarray
    state: str


def expected(
    setting: Setting,
    evidence: Sequence[Experiment],
    trials: Sequence[Trial],
    prediction: Prediction,
    calibration: Calibration,
) -> Expected:
    """Turn an advisers' prediction into outcomes with intervals.

    Args:
      setting, evidence, trials: the question.
      prediction: in units of regret, given the trials.
      calibration: quantiles.
    """
    mean_R, deviation_R = prediction.outcomes()
    state = "after"
    if not any(trial.ok for trial in trials):
        level = level_of(setting, evidence, prediction.unit)
        mean_R = mean_R + prediction.sign * (level.loss - prediction.level)
        deviation_R = np.hypot(deviation_R, level.error)
        state = "before" if level.tested else "untested"
    factors_C = np.array(calibration.factors(state))
    widths_CR = factors_C[:, None] * deviation_R
    ends_C2R = np.stack([mean_R - widths_CR, mean_R + widths_CR], 1)
    if evidence and prediction.sign > 0 and min(map(best_loss, evidence)) > 0:
        ends_C2R = np.maximum(ends_C2R, 0.0)  # a loss that is never negative
    return Expected(mean_R, deviation_R, ends_C2R, state)


def noise_floor(setting: Setting, evidence: Sequence[Experiment], unit: float) -> float:
    """Return the deviation over seeds that a run of the target has, in the objective's units.

    It is the median over the experiments with repeated seeds, brought to the target by the ratio of
    their units; nan where no configuration was repeated.
    """
    shares = [e.outcomes.noise_regret for e in evidence]
    known = [share for share in shares if math.isfinite(share)]
    return float(np.median(known)) * unit if known else math.nan


def chance_to_beat(best: float, margin: float, row: int, found: Expected, sign: float) -> float:
    """Return the chance that a row's outcome is better than `best` by more than a margin."""
    deviation = max(float(found.deviation_R[row]), 1e-12)
    gap = sign * (best - float(found.mean_R[row])) - margin
    return float(stats.norm.cdf(gap / deviation))


def expected_gain(best: float, found: Expected, sign: float) -> np.ndarray:
    """Return the expected improvement [R] over the best outcome so far."""
    deviation_R = np.maximum(found.deviation_R, 1e-12)
    z_R = sign * (best - found.mean_R) / deviation_R
    return deviation_R * (z_R * stats.norm.cdf(z_R) + stats.norm.pdf(z_R))
