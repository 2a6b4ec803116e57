"""Checks advice on outcome tables as if they were a stranger's files.

Each held-out experiment is asked about with nothing but the columns of cheaper runs. The proposals
are answered by the table. So regrets can be set beside those of the evaluation, and intervals be
compared with what came.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from autollm_jax.advise import reading
from autollm_jax.advise.advisor import Advisor
from autollm_jax.advise.columns import Hints
from autollm_jax.advise.decider import Decider
from autollm_jax.advise.intervals import COVERAGES, Calibration
from autollm_jax.advise.levels import best_loss, level_of
from autollm_jax.advise.setting import spelled
from autollm_jax.forecasts.gathering import TargetScale
from autollm_jax.forecasts.relevance import relevant_evidence
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting
from autollm_jax.gym.splits import evidence_for

SIZES = ("parameters", "tokens", "flops")
FAR = 4.0  # how many times as many FLOPs as its far evidence a target has, at least
TRIALS = (1, 3, 5)  # after which regrets are told
MOMENTS = {  # names of the states that coverage is told of
    "before": ("untested", "before"), "few_sizes": ("untested",), "more_sizes": ("before",),
    "after": ("after",),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Checked:
    """One game.

    Attributes:
      experiment: the target's id.
      regrets: best regret after each trial.
      errors: for each predicted configuration (state of knowledge, outcome - mean, deviation).
    """

    experiment: str
    regrets: tuple[float, ...]
    errors: tuple[tuple[str, float, float], ...]


def file_of(evidence: Sequence[Experiment], target: Setting) -> tuple[reading.Rows, dict, Hints]:
    """Write evidence as the rows of a stranger's file.

    Returns:
      The rows, the target as `Advisor.from_runs` takes it, and what a person would say of columns:
      that the facts are facts, and which columns are the components of a mixture.
    """
    everyone = (*evidence, target)
    facts = []
    for name in sorted({name for e in everyone for name in e.facts}):
        values = [e.facts.get(name) for e in everyone]
        if "limit" not in name and all(isinstance(v, str) for v in values) and len(set(values)) > 1:
            facts.append(name)
    rows, mixtures, seen = [], {}, set()
    limited = target.limit is not None
    kept = [name for name in SIZES if not (limited and name != "tokens")]
    for e in evidence:
        if e.objective.metric != target.objective.metric:
            continue
        sizes = {n: getattr(e.fidelity, n) for n in kept if getattr(e.fidelity, n)}
        own = {f"fact.{name}": e.facts[name] for name in facts}
        for number, (config, outcome, status) in enumerate(
            zip(e.configurations, e.outcomes.values_R.tolist(), e.outcomes.status_R, strict=True)
        ):
            row = own | sizes
            if limited:
                row["parameters"] = float(e.sizes_R[number])
                key = json.dumps([row, config])
                if status == "infeasible" or key in seen:  # one run answers several limits
                    continue
                seen.add(key)
            for name, value in config.items():
                if isinstance(value, dict):
                    row |= {f"config.{name}.{part}": weight for part, weight in value.items()}
                    mixtures |= {
                        f"config.{name}.{part}": {"role": "hyperparameter", "mixture": name}
                        for part in value
                    }
                else:
                    row[f"config.{name}"] = value
            rows.append(row | {"outcome": outcome, "status": str(status)})
    asked = {n: getattr(target.fidelity, n) for n in kept if getattr(target.fidelity, n)}
    asked |= {f"fact.{name}": target.facts[name] for name in facts}
    if target.limit is not None:
        asked["parameters<="] = target.limit["at_most"]
    hints = Hints("outcome", target.objective.minimize, columns=mixtures)
    return reading.of_mappings(rows), asked, hints


def check(
    target: Experiment,
    evidence: Sequence[Experiment],
    decider: Decider,
    calibration: Calibration,
    budget: int = 5,
) -> Checked:
    """Ask about one experiment, and let its table answer, trial by trial."""
    rows, asked, hints = file_of(evidence, target)
    feasible = np.flatnonzero(target.feasible_R).tolist()
    candidates = [dict(target.configurations[row]) for row in feasible]
    if target.limit is not None:
        for candidate, row in zip(candidates, feasible, strict=True):
            candidate["parameters"] = float(target.sizes_R[row])
    advisor = Advisor.from_runs(
        rows, target=asked, hints=hints, candidates=candidates, default=target.default,
        task=target.task, decider=decider, budget=budget,
    )  # fmt: skip
    advisor = dataclasses.replace(advisor, calibration=calibration)
    space = advisor.question.setting.space
    row_of: dict = {}
    for row in feasible:
        config = space.validate(spelled(space, target.configurations[row]))
        row_of.setdefault(space.key_of(config), row)
    regrets, errors, best = [], [], math.inf
    for _ in range(budget):
        advice = advisor.ask()
        if not advice.ranked:
            break
        for ranked in advice.ranked:
            row = row_of[space.key_of(ranked.config)]
            if target.outcomes.ok_R[row] and math.isfinite(ranked.outcome):
                half = (ranked.interval_80[1] - ranked.interval_80[0]) / 2
                deviation = half / calibration.factors(advice.state)[0]
                errors.append(
                    (advice.state, target.outcomes.values_R[row] - ranked.outcome, deviation)
                )
        row = row_of[space.key_of(advice.config)]
        measured = target.outcomes.measured(row)
        best = min(best, measured.regret)
        regrets.append(best)
        advisor = advisor.tell(advice.config, measured.outcome, measured.status)
    regrets += [best] * (budget - len(regrets))
    return Checked(target.id, tuple(regrets), tuple(errors))


def calibrated(
    found: Iterable[Checked], untested: Mapping[str, Sequence[float]], provenance: str
) -> Calibration:
    """Measure the quantiles of |error| / deviation; each source weighs alike.

    Args:
      found: games, which tell the errors where the level is known or its law was tried.
      untested: by source, what `untested_levels` returns.
      provenance: of the calibration.
    """
    found = list(found)
    before, after = (
        weighted_quantiles({s: _ratios(own, (state,)) for s, own in _by_source(found).items()})
        for state in ("before", "after")
    )
    return Calibration(weighted_quantiles(untested), before, after, provenance)


def untested_levels(experiments: Sequence[Experiment]) -> dict[str, list[float]]:
    """Return by source how many times their scale the levels were off that no law was tried on.

    Each experiment is predicted from all cheaper ones, from those alone that are far below it, for
    that is where targets lie, and from those of each size alone. Where the runs leave a law to
    try, the level is not of this kind.
    """
    found: dict[str, list[float]] = {}
    for target in experiments:
        relevant = relevant_evidence(evidence_for(target, experiments), target)
        by_size = [
            tuple(e for e in relevant if e.fidelity == size)
            for size in dict.fromkeys(e.fidelity for e in relevant)
        ]
        for chosen in dict.fromkeys((relevant, far_below(target, relevant), *by_size)):
            if chosen:
                level = level_of(target, chosen, TargetScale(target, chosen).unit)
                if not level.tested:
                    off = abs(best_loss(target) - level.loss) / level.error
                    found.setdefault(target.source, []).append(off)
    return found


def far_below(target: Setting, evidence: Sequence[Experiment]) -> tuple[Experiment, ...]:
    """Return the evidence with FAR times fewer FLOPs a run than the target has."""
    return tuple(e for e in evidence if e.fidelity.flops * FAR <= target.fidelity.flops)


def weighted_quantiles(ratios: Mapping[str, Sequence[float]]) -> tuple[float, ...]:
    """Return the quantiles at COVERAGES of all sources' numbers, each source weighing alike.

    Without a number they are a normal distribution's.
    """
    every_N = np.array([ratio for own in ratios.values() for ratio in own])
    if not len(every_N):
        return Calibration.normal().before
    weights_N = np.array([1 / len(own) for own in ratios.values() for _ in own])
    order_N = np.argsort(every_N)
    reached_N = np.cumsum(weights_N[order_N]) / weights_N.sum()
    return tuple(float(every_N[order_N][np.searchsorted(reached_N, c)]) for c in COVERAGES)


def coverage_elsewhere(ratios: Mapping[str, Sequence[float]]) -> list[float]:
    """Return how much of each source the quantiles of the other sources cover; sources weigh alike.

    It tells what intervals are worth on a source that they were not calibrated on.
    """
    shares = []
    for source, own in ratios.items():
        factors_C = weighted_quantiles({s: each for s, each in ratios.items() if s != source})
        shares.append((np.array(own)[:, None] <= np.array(factors_C)).mean(0))
    return np.mean(shares, 0).tolist()


def _by_source(found: Sequence[Checked]) -> dict[str, list[Checked]]:
    made: dict[str, list[Checked]] = {}
    for each in found:
        made.setdefault(each.experiment.split("/")[0], []).append(each)
    return made


def _ratios(found: Sequence[Checked], states: Sequence[str]) -> list[float]:
    """Return |error| / deviation of the predictions made in some states of knowledge."""
    return [abs(e) / d for each in found for state, e, d in each.errors if state in states]


def coverage(
    found: Sequence[Checked], calibration: Calibration, states: Sequence[str]
) -> list[float] | None:
    """Return the share of outcomes within each interval; None where nothing was predicted."""
    within = [
        np.array(_ratios(found, (state,)))[:, None] <= np.array(calibration.factors(state))
        for state in states
    ]
    inside_NC = np.concatenate(within)
    return inside_NC.mean(0).tolist() if len(inside_NC) else None


def summarised(found: Sequence[Checked], calibration: Calibration) -> dict:
    """Return how many games there are, their mean regrets, and what the intervals cover."""
    regrets_NK = np.array([each.regrets for each in found])
    return {
        "experiments": len(found),
        "regret": {str(k): float(regrets_NK[:, k - 1].mean()) for k in TRIALS},
        "coverage": {
            name: coverage(found, calibration, states) for name, states in MOMENTS.items()
        },
    }
