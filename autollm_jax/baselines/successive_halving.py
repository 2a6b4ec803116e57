"""Successive halving over fidelities: many cheap runs, then fewer and dearer runs.

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

# Chosen on cheap experiments: more configurations, or a slower halving, cost more and gain nothing.
CONFIGURATIONS = 256  # at the first rung
ETA = 2  # one configuration in ETA goes on to the next rung
KEEP = 2  # at least KEEP x budget configurations go on to the next rung


class SuccessiveHalving:
    """Race configurations from rung to rung of the evidence; try the survivors, best first.

    Each rung is one experiment (see `rungs`). The best configurations of a rung go on to the next
    dearer rung. A configuration that the limit of a cheaper rung excludes joins at the first rung
    whose limit admits it. If the cell nearest to a survivor was tried already, the next survivor is
    tried. After all survivors come the configurations that dropped out, those of the dearest rung
    first. Without evidence the default configuration is tried first; random draws follow.

    The race reads the outcomes of the runs that it pays for and nothing else: no regret and no
    optimum of a table.

    >>> from autollm_jax.baselines import BASELINES, Problem
    >>> from autollm_jax.gym.experiments import Fidelity, make_experiment
    >>> from autollm_jax.gym.spaces import Dimension, Space
    >>> space = Space((Dimension("rate", "log-ordinal", (1e-4, 1e-3, 1e-2)),))
    >>> rates = [{"rate": 1e-4}, {"rate": 1e-3}, {"rate": 1e-2}]
    >>> def made(name, parameters, losses):
    ...     return make_experiment(
    ...         source="mine", task="pretraining", name=name, space=space,
    ...         fidelity=Fidelity("low", parameters, 1e9, 6e9 * parameters),
    ...         configurations=rates, outcomes=losses, default=rates[0],
    ...         default_origin="the first")
    >>> cheap, dear = made("1M", 1e6, [3, 2, 4]), made("2M", 2e6, [2, 1, 3])
    >>> method = BASELINES["successive_halving"](Problem(dear.setting, (cheap,), budget=1), seed=0)
    >>> method.ask()
    {'rate': 0.001}
    >>> method.evidence_flops == 3 * cheap.fidelity.flops
    True

    Args:
      problem: the setting, its evidence and the budget.
      seed: of the draws.

    Attributes:
      evidence_flops: FLOPs of the runs that the race read.
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
    """Return the experiments of the evidence that lead up to the target, cheapest first.

    The last rung is the experiment nearest to the target. Below each rung is the dearest experiment
    that costs fewer FLOPs per run and has no more parameters (or no higher limit) and no more
    tokens than the rung.
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
    """Return the loss of each row, lower is better, inf for a failed run; read nothing else."""
    sign = experiment.objective.sign
    ok = experiment.outcomes.status_R[rows] == "ok"
    return np.where(ok, sign * experiment.outcomes.values_R[rows], np.inf)


def _carry(configs: Sequence[dict], lower: Experiment | None, upper: Experiment) -> list[int]:
    """Return the next rung's feasible row nearest to each configuration, each row once."""
    if not configs:
        return []
    cells = Candidates(upper)
    points = coordinates.project(configs, lower.space, upper.space, upper.default)
    return [*dict.fromkeys(cells.nearest(p) for p in points)]


def _newcomers(lower: Experiment | None, upper: Experiment) -> np.ndarray:
    """Return the feasible rows that the rung below excludes; without a rung below, all of them."""
    rows = np.flatnonzero(upper.feasible_R)
    if lower is None:
        return rows
    cells_RD = coordinates.project(lower.configurations, lower.space, lower.space)
    configs = [upper.configurations[r] for r in rows]
    points_ND = coordinates.project(configs, upper.space, lower.space, lower.default)
    _, nearest_N = cKDTree(cells_RD).query(points_ND)
    return rows[~lower.feasible_R[nearest_N]]
