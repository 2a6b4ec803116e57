"""Counts the FLOPs that a method needs until it reaches a regret of 0.05.

The cumulative cost of a method has two parts.

  once            The evidence of the task and source: every run of the training experiments that
                  a limit allows. A run that several experiments share counts once. Every method
                  pays the evidence, also a method that ignores it. A method that makes its own
                  cheap runs reports `evidence_flops` and pays those per experiment instead. A
                  trained method also pays its whole training: in full for each task and source,
                  and once for all of them pooled.
  per experiment  The trials until the regret is reached, each at the mean FLOPs of the
                  experiment's runs; invalid trials count too. A method that plays a language
                  model also pays its tokens. The computation of other methods is not counted.

Where the budget ends above that regret, random search without repeats is assumed to go on: of N
untried configurations M are good enough, so (N + 1) / (M + 1) further trials are expected.
FLOPs that a table does not have, or has per token, are unknown (nan, in JSON null), never 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autollm_jax.evaluation.summary import ALL, Results
from autollm_jax.gym.experiments import Experiment

THRESHOLD = 0.05  # the regret to be reached


@dataclass(frozen=True)
class Spending:
    """FLOPs that the results do not hold.

    Attributes:
      training: FLOPs of training the policy, all stages.
      playing: FLOPs of the policy's own tokens in one episode.
      trained: names of the methods that use the trained policy.
      runs: {experiment id: {run key: FLOPs}}, from `read_runs`.
      evidence: the experiments that are evidence.
      untrained: names of the methods that use the policy without training.
    """

    training: float
    playing: float
    trained: tuple[str, ...]
    runs: Mapping[str, Mapping[tuple, float]]
    evidence: Sequence[Experiment]
    untrained: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """The cumulative FLOPs of a method: evidence + training + experiments x per_experiment.

    Attributes:
      evidence, training: paid once.
      per_experiment: paid for each experiment that is configured.
      reached: share of the episodes that reach the threshold within their budget.
      trials: mean number of trials until the threshold; expected ones beyond the budget.
    """

    evidence: float
    training: float
    per_experiment: float
    reached: float
    trials: float

    @property
    def fixed(self) -> float:
        """FLOPs that are paid once."""
        return self.evidence + self.training

    def at(self, experiments: float):
        """Return the FLOPs after so many experiments (a number or an array)."""
        return self.fixed + experiments * self.per_experiment


@dataclass(frozen=True)
class Group:
    """The costs of one task of one source, or of all pooled.

    Attributes:
      name: "source/task", or `all`.
      evidence: FLOPs of the evidence.
      run: mean FLOPs of a run of the scored experiments.
      lines: by method.
    """

    name: str
    evidence: float
    run: float
    lines: Mapping[str, Line]


def expected_trials(experiment: Experiment, tried: int, threshold: float = THRESHOLD) -> float:
    """Return how many further random trials are expected until the threshold is reached.

    Args:
      experiment: the target.
      tried: how many configurations were tried, none of them good enough.
      threshold: the regret to be reached.
    """
    good = int((experiment.outcomes.regrets_R <= threshold).sum())
    left = max(int(experiment.feasible_R.sum()) - tried, good)
    return (left + 1) / (good + 1)


def cost_groups(
    results: Results,
    experiments: Sequence[Experiment],
    spending: Spending,
    transcripts: Sequence[Mapping],
    threshold: float = THRESHOLD,
) -> list[Group]:
    """Compute the costs of each task of each source.

    Args:
      results: the results.
      experiments: the scored experiments.
      spending: FLOPs that the results do not hold.
      transcripts: some carry `evidence_flops`, the FLOPs of a game's own cheap runs.
      threshold: the regret to be reached.

    Returns:
      One group per source and task. Where the FLOPs of several are known, a group `all` comes
      first: as many experiments of each of them, and one training for all.
    """
    targets = {e.id: e for e in experiments}
    own = _own_evidence(transcripts)
    names = sorted({(unit.experiment.split("/")[0], unit.task) for unit in results.units})
    groups = []
    for source, task in names:
        units = [u for u in results.units if u.experiment.startswith(f"{source}/{task}/")]
        run_of = {u.experiment: _mean(spending.runs.get(u.experiment, {}).values()) for u in units}
        evidence = _evidence(spending, source, task)
        beyond = {
            name: results.budget + expected_trials(targets[name], results.budget, threshold)
            for name in run_of
        }
        lines = {}
        for method in results.methods:
            first = results.reached(method, threshold)
            trials = [first[u] or beyond[u.experiment] for u in units]
            each = _mean(run_of[u.experiment] * t for u, t in zip(units, trials, strict=True))
            own_flops = own.get((method, source, task))
            plays = method in (*spending.trained, *spending.untrained)
            lines[method] = Line(
                evidence=evidence if own_flops is None else 0.0,
                training=spending.training if method in spending.trained else 0.0,
                per_experiment=each + (own_flops or 0.0) + (spending.playing if plays else 0.0),
                reached=_mean(first[u] is not None for u in units),
                trials=_mean(trials),
            )
        groups.append(Group(f"{source}/{task}", evidence, _mean(run_of.values()), lines))
    known = [group for group in groups if math.isfinite(group.run)]
    return [_pooled(known), *groups] if len(known) > 1 else groups


def _pooled(groups: Sequence[Group]) -> Group:
    """Return the costs of as many experiments of each group, with one training for all."""

    def line(method: str) -> Line:
        lines = [group.lines[method] for group in groups]
        return Line(
            evidence=sum(one.evidence for one in lines),
            training=lines[0].training,
            per_experiment=_mean(one.per_experiment for one in lines),
            reached=_mean(one.reached for one in lines),
            trials=_mean(one.trials for one in lines),
        )

    return Group(
        ALL,
        sum(group.evidence for group in groups),
        _mean(group.run for group in groups),
        {method: line(method) for method in groups[0].lines},
    )


def cheaper_from(line: Line, other: Line) -> float:
    """Return the number of experiments from which a line stays below another.

    Returns:
      At least 1; inf for never; nan where FLOPs are unknown.
    """
    ahead = line.fixed - other.fixed
    gain = other.per_experiment - line.per_experiment
    if math.isnan(ahead) or math.isnan(gain):
        return math.nan
    if gain <= 0:
        return 1 if gain == 0 and ahead < 0 else math.inf
    return max(math.floor(ahead / gain) + 1, 1)


def break_even(group: Group, focus: str) -> tuple[float, str | None]:
    """Return the number of experiments from which a method is cheaper than every other one.

    Args:
      group: the costs.
      focus: the method.

    Returns:
      The number (inf for never, nan for unknown), and the method that is overtaken last. Of several
      that are never overtaken this is the cheapest per experiment. None where there is no other.
    """
    others = {m: line for m, line in group.lines.items() if m != focus}
    numbers = {m: cheaper_from(group.lines[focus], line) for m, line in others.items()}
    if not others or any(math.isnan(number) for number in numbers.values()):
        return math.nan, None
    last = max(others, key=lambda m: (numbers[m], -others[m].per_experiment))
    return numbers[last], last


def summarise_costs(groups: Sequence[Group], focus: str, spending: Spending) -> dict:
    """Return the entry `cost` of summary.json. All amounts are FLOPs, null where unknown.

    Returns:
      {"threshold", "unit": "FLOPs", "training", "groups": {"SOURCE/TASK": {"evidence", "run",
      "methods": {METHOD: {"fixed", "per_experiment", "reached", "trials"}},
      "break_even": {"experiments": number, "never" or null, "against": METHOD or null}}}}.
      `break_even` is null where the focus was not played.
    """

    def even(group: Group) -> dict | None:
        if focus not in group.lines:
            return None
        number, against = break_even(group, focus)
        return {"experiments": "never" if number == math.inf else _finite(number),
                "against": against}  # fmt: skip

    return {
        "threshold": THRESHOLD,
        "unit": "FLOPs",
        "training": _finite(spending.training),
        "groups": {
            group.name: {
                "evidence": _finite(group.evidence),
                "run": _finite(group.run),
                "methods": {
                    method: {
                        "fixed": _finite(line.fixed),
                        "per_experiment": _finite(line.per_experiment),
                        "reached": line.reached,
                        "trials": line.trials,
                    }
                    for method, line in group.lines.items()
                },
                "break_even": even(group),
            }
            for group in groups
        },
    }


def _evidence(spending: Spending, source: str, task: str) -> float:
    """Add up the FLOPs of a task's evidence, each run once.

    A run that answers several experiments at several points costs as much as the furthest one.
    """
    runs: dict[tuple, float] = {}
    for e in spending.evidence:
        if (e.source, e.task) == (source, task):
            for key, flops in spending.runs.get(e.id, {}).items():
                runs[key] = float(np.maximum(runs.get(key, 0.0), flops))
    return float(sum(runs.values()))


def _own_evidence(transcripts: Sequence[Mapping]) -> dict[tuple, float]:
    """Return the mean FLOPs per episode of own cheap runs, by method, source and task."""
    spent: dict[tuple, list[float]] = {}
    for t in transcripts:
        if t.get("evidence_flops") is not None:
            key = (t["method"], t["source"], t["task"])
            spent.setdefault(key, []).append(t["evidence_flops"])
    return {key: _mean(flops) for key, flops in spent.items()}


def _mean(values) -> float:
    """Return the mean of numbers; nan of none."""
    values = list(values)
    return float(np.mean(values)) if values else math.nan


def _finite(value: float) -> float | None:
    """Return a number as JSON can hold it: None where it is nan or infinite."""
    return value if math.isfinite(value) else None
