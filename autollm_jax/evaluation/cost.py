"""What it costs to reach a regret of 0.05, as more and more experiments are configured.

A method's cumulative cost is what it pays once, and then what each experiment takes:

  once            the evidence of the task and source: every run of the training experiments that
                  a limit allows, a run that several experiments share counted once. Each method
                  pays it, whether it looks at the evidence or not; only one that reports
                  `evidence_flops` of its own (it makes its cheap runs itself) pays those instead,
                  experiment by experiment. A trained method also pays its whole training, for
                  each task and source by itself, and once where they are pooled.
  per experiment  its trials until the regret is reached, each at the mean cost of the runs that
                  may be made there, invalid ones as well; and what a trained method's own reading
                  and writing takes. (What other methods compute is not counted.)

Where a budget ends above that regret, the search is taken to go on at random, without repeats,
over the cells that are left: (N + 1) / (M + 1) further trials are expected until the first of M
good cells among N. Costs come from the tables' columns `flops` and `seconds`; a column that is not
published, or that is per token, makes that cost unknown (None), never 0.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from autollm_jax.evaluation.run_costs import MEASURES, Cost, finite_or_none, mean_cost
from autollm_jax.evaluation.summary import ALL, Results
from autollm_jax.gym.experiments import Experiment

THRESHOLD = 0.05


@dataclasses.dataclass(frozen=True)
class Spending:
    """What the results themselves do not tell.

    Attributes:
      training: of the trained methods' policy, all stages.
      playing: of the policy's own reading and writing, an episode.
      trained: names of the methods that use the trained policy.
      runs: by experiment id, each run's key and cost (`read_runs`).
      evidence: the experiments that are evidence, open.
      untrained: names of the methods that play with such a policy, but as it came.
    """

    training: Cost
    playing: Cost
    trained: tuple[str, ...]
    runs: Mapping[str, Mapping[tuple, Cost]]
    evidence: Sequence[Experiment]
    untrained: tuple[str, ...] = ()


def expected_trials(experiment: Experiment, tried: int, threshold: float = THRESHOLD) -> float:
    """Return how many random trials more reach the threshold, after some that did not.

    Args:
      experiment: open.
      tried: how many cells were tried, none of them good enough.
      threshold: the regret to be reached.
    """
    good = int((experiment.outcomes.regrets_R <= threshold).sum())
    left = max(int(experiment.feasible_R.sum()) - tried, good)
    return (left + 1) / (good + 1)


@dataclasses.dataclass(frozen=True)
class Line:
    """A method's cumulative cost: evidence + training + number of experiments x per_experiment.

    reached: share of the episodes that reach the threshold within their budget.
    trials: mean number of trials until it is reached, those beyond the budget as expected.
    """

    evidence: Cost
    training: Cost
    per_experiment: Cost
    reached: float
    trials: float

    @property
    def fixed(self) -> Cost:
        return self.evidence + self.training

    def at(self, measure: str, number: float) -> float:
        """Return the cost in FLOPs or hours after so many experiments."""
        return getattr(self.fixed, measure) + number * getattr(self.per_experiment, measure)


@dataclasses.dataclass(frozen=True)
class Group:
    """A task of a source: what its evidence and one of its runs cost, and each method's line."""

    name: str
    evidence: Cost
    run: Cost
    lines: Mapping[str, Line]


def cost_groups(
    results: Results,
    experiments: Sequence[Experiment],
    spending: Spending,
    transcripts: Sequence[Mapping],
    threshold: float = THRESHOLD,
) -> list[Group]:
    """Return the costs of each task of each source, where there are several of all of them first.

    In what is named `all` experiments come from each in turn, and training is paid once; those of
    unknown FLOPs are left out.

    Args:
      results: the results.
      experiments: those of the results, open.
      spending: what else was spent.
      transcripts: some carry `evidence_flops`, what the game's own cheap runs cost.
      threshold: the regret to be reached.
    """
    opened = {e.id: e for e in experiments}
    names = sorted({(unit.experiment.split("/")[0], unit.task) for unit in results.units})
    own = _own_evidence(transcripts)
    reached = {m: results.reached(m, threshold) for m in results.methods}
    groups = []
    for source, task in names:
        units = [u for u in results.units if u.experiment.startswith(f"{source}/{task}/")]
        evidence = _evidence(spending, source, task)
        run_of = {u.experiment: _mean_run(spending.runs.get(u.experiment, {})) for u in units}
        lines = {}
        for method in results.methods:
            trials = [
                reached[method][u]
                or results.budget + expected_trials(opened[u.experiment], results.budget, threshold)
                for u in units
            ]
            spent = [run_of[u.experiment].times(t) for u, t in zip(units, trials, strict=True)]
            each, once, training = mean_cost(spent), evidence, Cost()
            if (method, source, task) in own:
                flops = float(np.mean(own[method, source, task]))
                share = flops / evidence.flops if evidence.flops else math.nan
                each, once = each + Cost(flops, share * evidence.hours), Cost()
            if method in (*spending.trained, *spending.untrained):
                each = each + spending.playing
            if method in spending.trained:
                training = spending.training
            hits = [reached[method][u] is not None for u in units]
            shares = float(np.mean(hits)), float(np.mean(trials))
            lines[method] = Line(once, training, each, *shares)
        groups.append(Group(f"{source}/{task}", evidence, mean_cost(list(run_of.values())), lines))
    known = [group for group in groups if math.isfinite(group.run.flops)]
    return [_pooled(known), *groups] if len(known) > 1 else groups


def _pooled(groups: Sequence[Group]) -> Group:
    """Return the cost of experiments of which each group has as many; one training is for all."""

    def line(method):
        of = [group.lines[method] for group in groups]
        return Line(
            sum((one.evidence for one in of), Cost()),
            of[0].training,
            mean_cost([one.per_experiment for one in of]),
            float(np.mean([one.reached for one in of])),
            float(np.mean([one.trials for one in of])),
        )

    return Group(
        ALL,
        sum((group.evidence for group in groups), Cost()),
        mean_cost([group.run for group in groups]),
        {method: line(method) for method in groups[0].lines},
    )


def cheaper_from(line: Line, other: Line, measure: str) -> float:
    """Return the number of experiments from which a line stays below another; inf for never.

    It is nan where a cost is unknown.
    """
    ahead = getattr(line.fixed, measure) - getattr(other.fixed, measure)
    gain = getattr(other.per_experiment, measure) - getattr(line.per_experiment, measure)
    if math.isnan(ahead) or math.isnan(gain):
        return math.nan
    if gain <= 0:
        return 1 if gain == 0 and ahead < 0 else math.inf
    return max(math.floor(ahead / gain) + 1, 1)


def break_even(group: Group, focus: str, measure: str) -> tuple[float, str | None]:
    """Return from how many experiments the focus is cheaper than any other method, and than whom.

    Returns:
      The number (inf for never, nan for unknown), and the method that holds out longest: of those
      that are never overtaken, the cheapest per experiment.
    """
    others = {m: line for m, line in group.lines.items() if m != focus}
    if not others:
        return math.nan, None
    numbers = {m: cheaper_from(group.lines[focus], line, measure) for m, line in others.items()}
    if any(math.isnan(number) for number in numbers.values()):
        return math.nan, None
    rate = {m: getattr(line.per_experiment, measure) for m, line in others.items()}
    last = max(others, key=lambda m: (numbers[m], -rate[m]))
    return numbers[last], last


def summarise_costs(groups: Sequence[Group], focus: str, spending: Spending) -> dict:
    """Return what summary.json holds of costs.

    Returns:
      {"threshold", "training": {"flops", "hours"}, "groups": {"SOURCE/TASK": {"evidence", "run",
      "methods": {METHOD: {"fixed", "per_experiment", "reached", "trials"}},
      "break_even": {"flops": {"experiments", "against"}, "hours": …}}}}; costs are
      {"flops", "hours"}; None is unknown, "never" is never.
    """

    def even(group, measure):
        number, against = break_even(group, focus, measure)
        return {"experiments": "never" if number == math.inf else finite_or_none(number),
                "against": against}  # fmt: skip

    return {
        "threshold": THRESHOLD,
        "training": spending.training.to_json(),
        "groups": {
            group.name: {
                "evidence": group.evidence.to_json(),
                "run": group.run.to_json(),
                "methods": {
                    method: {
                        "fixed": line.fixed.to_json(),
                        "per_experiment": line.per_experiment.to_json(),
                        "reached": line.reached,
                        "trials": line.trials,
                    }
                    for method, line in group.lines.items()
                },
                "break_even": {
                    measure: even(group, measure) for measure in MEASURES if focus in group.lines
                },
            }
            for group in groups
        },
    }


def _evidence(spending: Spending, source: str, task: str) -> Cost:
    """Add up the runs of a task's evidence, each once."""
    runs: dict[tuple, Cost] = {}
    for e in spending.evidence:
        if (e.source, e.task) == (source, task):
            runs |= spending.runs.get(e.id, {})
    return sum(runs.values(), Cost())


def _own_evidence(transcripts: Sequence[Mapping]) -> dict[tuple, list[float]]:
    spent: dict[tuple, list[float]] = {}
    for t in transcripts:
        if t.get("evidence_flops") is not None:
            key = (t["method"], t["source"], t["task"])
            spent.setdefault(key, []).append(t["evidence_flops"])
    return spent


def _mean_run(runs: Mapping[tuple, Cost]) -> Cost:
    return mean_cost(list(runs.values()))
