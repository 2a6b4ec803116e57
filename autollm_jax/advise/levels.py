"""Levels: the loss that the best runs of a target will reach, extrapolated from cheaper sizes.

Losses fall with size as a power law with a floor (Hoffmann et al., arXiv 2203.15556), and a few
sizes do not tell the floor. So several laws are tried on the runs themselves: each of the dearest
experiments is predicted from the cheaper ones, and the law that is least off is taken, with its
error. Errors grow in proportion to the distance in log fidelity. Few such tests choose a law by
luck: then what the laws differ by at the target adds to the error, over the number of tests.

Runs of one size, or of two, leave no law to try. Then the error is one unit of regret a doubling: a
mere scale, which intervals widen by what such levels were off on other sources (`intervals`).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from autollm_jax.forecasts.gathering import extrapolate
from autollm_jax.forecasts.relevance import fidelity_distance, relevant_evidence
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting
from autollm_jax.gym.splits import evidence_for

BACKTESTS = 8  # dearest experiments that are predicted from the cheaper ones
LEAST_DISTANCE = math.log(1.5)  # between fidelities; nearer ones count as this far apart
UNTESTED = 1.0  # units of regret a doubling, where no law can be tried
FLOORS = (0.0, 0.5, 0.8)  # of a power law, over the least of the levels seen


@dataclasses.dataclass(frozen=True)
class Level:
    """The best loss that a target is expected to reach.

    Attributes:
      loss: lower is better; nan where nothing tells it.
      error: its standard deviation.
      tested: whether the law behind it was tried on the runs; else the error is a mere scale.
    """

    loss: float
    error: float
    tested: bool = False


def level_of(setting: Setting, evidence: Sequence[Experiment], unit: float) -> Level:
    """Extrapolate the level of a setting.

    Args:
      setting: the target.
      evidence: experiments of other fidelities.
      unit: one unit of regret, in the objective's units: a measure where runs of one size are all.
    """
    relevant = relevant_evidence(evidence, setting)
    if not relevant:
        return Level(math.nan, unit)
    away = distance(setting, relevant)
    dearest = sorted(relevant, key=lambda e: -e.fidelity.flops)[:BACKTESTS]
    pairs = [(held_out, evidence_for(held_out.setting, relevant)) for held_out in dearest]
    tests = [pair for pair in pairs if len({e.fidelity for e in pair[1]}) > 1]
    if not tests:
        return Level(_straight(setting, relevant), UNTESTED * unit * away / math.log(2))

    def rate(law: Callable) -> float:
        errors = [
            (law(held_out.setting, cheaper) - best_loss(held_out)) / distance(held_out, cheaper)
            for held_out, cheaper in tests
        ]
        return float(np.sqrt(np.mean(np.square(errors))))

    laws = [_straight]
    if min(map(best_loss, relevant)) > 0:
        laws += [_power(share) for share in FLOORS]
    rates = [rate(law) for law in laws]
    best = int(np.argmin(rates))
    levels = [law(setting, relevant) for law in laws]
    by_luck = float(np.std(levels)) / len(tests)
    return Level(levels[best], math.hypot(rates[best] * away, by_luck), True)


def best_loss(experiment: Experiment) -> float:
    """The best outcome of an experiment, lower values better."""
    return experiment.objective.sign * experiment.outcomes.optimum


def distance(setting: Setting, evidence: Sequence[Experiment]) -> float:
    """Return the distance to the nearest experiment in log fidelity (natural logarithms)."""
    away = [fidelity_distance(e, setting) for e in evidence]
    return float(max(min(away, default=LEAST_DISTANCE), LEAST_DISTANCE))


def _straight(setting: Setting, evidence: Sequence[Experiment]) -> float:
    return _line(setting, evidence, [best_loss(e) for e in evidence])


def _power(share: float) -> Callable[[Setting, Sequence[Experiment]], float]:
    """Return a law: what is above a floor falls as a power; the floor is a share of the least."""

    def law(setting: Setting, evidence: Sequence[Experiment]) -> float:
        losses = np.array([best_loss(e) for e in evidence])
        floor = share * losses.min()
        return floor + math.exp(_line(setting, evidence, np.log(losses - floor)))

    return law


def _line(setting: Setting, evidence: Sequence[Experiment], values) -> float:
    fidelities_EF = np.stack([e.fidelity.log for e in evidence])
    return float(
        extrapolate(fidelities_EF, np.array(values, float)[:, None], setting.fidelity.log)[0]
    )
