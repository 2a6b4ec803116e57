"""Successive halving over fidelities: many cheap runs, fewer dearer ones, the survivors last.

(Jamieson and Talwalkar, arXiv 1502.07943; Li et al., Hyperband, arXiv 1603.06560.)
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from autollm_jax.baselines.base import Candidates, Problem
from autollm_jax.forecasts import coordinates
from autollm_jax.forecasts.base import draw_seed
from autollm_jax.forecasts.relevance import named_differences, relevant_evidence
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.runs import flops_of_runs

# Chosen on cheap experiments: more configurations or a slower halving cost more and gain nothing.
CONFIGURATIONS = 256  # at the first rung
ETA = 2  # one in ETA goes on to the next rung ...
KEEP = 2  # ... yet at least so many a trial of the budget


class SuccessiveHalving:
    """Race configurations up the ladder of the evidence; try the survivors, best first.

    It looks at the runs that it pays for and at nothing else: no regret, no optimum of a table.
    What they cost is `evidence_flops`, as other methods are charged for all evidence. Not weakened:
    the first rung races as many configurations as help, the ladder leads up to the target (see
    `rungs`), configurations that a cheaper rung's limit excludes join where there is room for them,
    a survivor whose nearest cell was tried gives its place to the next, and those that dropped out
    follow when the survivors are through. Without evidence the default comes first, then draws.
    """

    def __init__(self, problem: Problem, seed: int):
        self._candidates = Candidates(problem.setting)
        self._rng = np.random.default_rng(draw_seed(problem.setting, seed))
        least = math.ceil(KEEP * problem.budget)
        ladder, looks, points = rungs(problem), [], []
        survivors: list[dict] = []
        for lower, rung in zip([None, *ladder], ladder, strict=False):
            fresh = self._rng.permutation(_newcomers(lower, rung))[:CONFIGURATIONS]
            rows = np.concatenate([_carry(survivors, lower, rung), fresh]).astype(int)
            rows = rows[np.argsort(_losses(rung, rows), kind="stable")]
            looks.append((rung, rows))
            configs = [rung.configurations[r] for r in rows]
            survivors = configs[: max(math.ceil(len(configs) / ETA), least)]
            target = problem.setting
            points.insert(0, coordinates.project(configs, rung.space, target.space, target.default))
        self.evidence_flops = flops_of_runs(looks)
        if not ladder:
            space = problem.setting.space
            points.append(coordinates.project([problem.setting.default], space, space))
        self._rows = self._candidates.in_turn(np.concatenate(points))

    def ask(self) -> dict:
        row = next(self._rows, None)
        if row is None:
            row = int(self._rng.choice(self._candidates.untried))
        return self._candidates.take(row)

    def tell(self, trial) -> None:
        self._candidates.mark(trial)


def rungs(problem: Problem) -> list[Experiment]:
    """Return the ladder of the evidence that leads up to the target, cheapest first.

    Its top is the experiment nearest to the target; below each rung is the dearest one that is
    cheaper and has no more parameters (or a lower limit) and no more tokens.
    """
    evidence = relevant_evidence(problem.evidence, problem.setting)
    least = min((named_differences(e, problem.setting) for e in evidence), default=0)
    left = [e for e in evidence if named_differences(e, problem.setting) == least]
    ladder = left[:1]
    while left:
        top = ladder[0]
        left = [
            e
            for e in left
            if e.fidelity.flops < top.fidelity.flops
            and not (e.fidelity.log > top.fidelity.log).any()
        ]
        ladder[:0] = sorted(left, key=lambda e: (e.fidelity.flops, e.id))[-1:]
    return ladder


def _losses(experiment: Experiment, rows: np.ndarray) -> np.ndarray:
    """Return what each run brought, lower is better, inf where it failed; nothing else is read."""
    sign = experiment.objective.sign
    ok = experiment.outcomes.status_R[rows] == "ok"
    return np.where(ok, sign * experiment.outcomes.values_R[rows], np.inf)


def _carry(configs: Sequence[dict], lower: Experiment | None, upper: Experiment) -> list[int]:
    """Return the next rung's feasible rows nearest to configurations, in their order, each once."""
    if not configs:
        return []
    cells = Candidates(upper)
    points = coordinates.project(configs, lower.space, upper.space, upper.default)
    return [*dict.fromkeys(cells.nearest(p) for p in points)]


def _newcomers(lower: Experiment | None, upper: Experiment) -> np.ndarray:
    """Return a rung's feasible rows that the limit below left out; all of the first rung's."""
    rows = np.flatnonzero(upper.feasible_R)
    if lower is None:
        return rows
    cells_RD = coordinates.project(lower.configurations, lower.space, lower.space)
    configs = [upper.configurations[r] for r in rows]
    points_ND = coordinates.project(configs, upper.space, lower.space, lower.default)
    _, nearest_N = cKDTree(cells_RD).query(points_ND)
    return rows[~lower.feasible_R[nearest_N]]
