"""Checks advice on outcome tables as if they were a stranger's files.

Each held-out experiment is asked about with nothing but the columns of cheaper runs. The proposals
are answered by the table. So regrets can be set beside those of the evaluation, and intervals be
compared with what came.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence

import numpy as np

from autollm_jax.advise import reading
from autollm_jax.advise.advisor import Advisor
from autollm_jax.advise.columns import Hints
from autollm_jax.advise.decider import Decider
from autollm_jax.advise.intervals import COVERAGES, Calibration
from autollm_jax.advise.setting import spelled
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting

SIZES = ("parameters", "tokens", "flops")


@dataclasses.dataclass(frozen=True)
class Checked:
    """One game.

    Attributes:
      experiment: the target's id.
      regrets: best regret after each trial.
      errors: for each predicted configuration (tried before, outcome - mean, deviation).
      seconds: of the first answer.
    """

    experiment: str
    regrets: tuple[float, ...]
    errors: tuple[tuple[bool, float, float], ...]
    seconds: float = 0.0


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
        tried = any(trial.ok for trial in advisor.question.trials)
        for ranked in advice.ranked:
            row = row_of[space.key_of(ranked.config)]
            if target.outcomes.ok_R[row] and math.isfinite(ranked.outcome):
                half = (ranked.interval_80[1] - ranked.interval_80[0]) / 2
                deviation = half / calibration.factors(tried)[0]
                errors.append((tried, target.outcomes.values_R[row] - ranked.outcome, deviation))
        row = row_of[space.key_of(advice.config)]
        measured = target.outcomes.measured(row)
        best = min(best, measured.regret)
        regrets.append(best)
        advisor = advisor.tell(advice.config, measured.outcome, measured.status)
    regrets += [best] * (budget - len(regrets))
    return Checked(target.id, tuple(regrets), tuple(errors))


def calibrated(found: Iterable[Checked], provenance: str) -> Calibration:
    """Measure the quantiles of |error| / deviation; each source weighs alike."""
    quantiles: list[tuple[float, ...]] = []
    for after in (False, True):
        ratios, weights = [], []
        by_source: dict[str, list[float]] = {}
        for each in found:
            source = each.experiment.split("/")[0]
            by_source.setdefault(source, []).extend(
                abs(error) / deviation for tried, error, deviation in each.errors if tried == after
            )
        for own in by_source.values():
            ratios += own
            weights += [1 / max(len(own), 1)] * len(own)
        order = np.argsort(ratios)
        reached = np.cumsum(np.array(weights)[order]) / np.sum(weights)
        quantiles.append(
            tuple(float(np.array(ratios)[order][np.searchsorted(reached, c)]) for c in COVERAGES)
        )
    return Calibration(quantiles[0], quantiles[1], provenance)


def coverage(found: Sequence[Checked], calibration: Calibration) -> dict[bool, list[float]]:
    """Return the share of outcomes within each interval, before and after a first trial."""
    shares = {}
    for after in (False, True):
        ratios = np.array(
            [abs(e) / d for each in found for tried, e, d in each.errors if tried == after]
        )
        factors = calibration.factors(after)
        shares[after] = [float((ratios <= factor).mean()) for factor in factors]
    return shares
