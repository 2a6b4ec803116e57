"""Evidence as one data set: points in the target's scale, outcomes brought to one scale."""

import functools
import math
from dataclasses import dataclass

import numpy as np

from autollm_jax.baselines.base import Problem, relevant_evidence
from autollm_jax.forecasts import coordinates
from autollm_jax.forecasts.scaling_law import extrapolate
from autollm_jax.gym.environment import Trial

# Of each experiment's rows, what a law is fitted to that moves them: chosen on cheap experiments.
BEST_SHARE = 0.02


@dataclass(frozen=True)
class Evidence:
    """The evidence's rows, nearest experiment first.

    Attributes:
      points_ND: coordinates in the target's scale.
      sizes_NS: relative sizes of the cells (S = 1), where the target's are known too; else S = 0.
      fidelities_NF: log parameters and log tokens, relative to the target's; 0 where missing.
      scores_N: outcomes standardised per experiment: 0 its best, 1 its median and all that is worse
        or diverged. Clipped there, the bowl around the optimum is resolved and not the cliffs.
      experiments_N: index of the experiment that a row is from.
    """

    points_ND: np.ndarray
    sizes_NS: np.ndarray
    fidelities_NF: np.ndarray
    scores_N: np.ndarray
    experiments_N: np.ndarray

    def __len__(self) -> int:
        return len(self.scores_N)


def gather(problem: Problem, limit: int) -> Evidence:
    """Collect at most `limit` rows of evidence, an equal share from each experiment.

    Args:
      problem: the target and its evidence.
      limit: greatest number of rows; an experiment with more than its share gives every second,
        third, … of its feasible rows in order of outcome, so that its best is among them.

    Returns:
      The rows, nearest experiment first.
    """
    target = problem.setting
    evidence = relevant_evidence(problem)
    points, sizes, fidelities, scores, experiments = [], [], [], [], []
    sized = all(e.parameters_R is not None for e in (target, *evidence))
    for index, experiment in enumerate(evidence):
        regrets_R = np.asarray(experiment.outcomes.regrets_R, float)
        # What a limit excludes was not run: it is no bad outcome.
        order = np.argsort(regrets_R, kind="stable")
        order = order[np.asarray(experiment.feasible_R)[order]]
        rows = order[:: -(-len(order) // max(limit // len(evidence), 1))]
        configs = [experiment.configurations[r] for r in rows]
        points.append(coordinates.project(configs, experiment.space, target.space, target.default))
        sizes.append(coordinates.relative_sizes(experiment)[rows, : int(sized)])
        relative_F = np.nan_to_num(experiment.fidelity.log - target.fidelity.log)
        fidelities.append(np.tile(relative_F, (len(rows), 1)))
        scores.append(regrets_R[rows])
        experiments.append(np.full(len(rows), index))
    if not evidence:
        dims = coordinates.project([target.default], target.space, target.space).shape[1]
        empty = np.zeros((0, dims)), np.zeros((0, int(sized))), np.zeros((0, 2))
        return Evidence(*empty, np.zeros(0), np.zeros(0, int))
    return Evidence(*map(np.concatenate, (points, sizes, fidelities, scores, experiments)))


def move_along_law(problem: Problem, evidence: Evidence, share: float = BEST_SHARE) -> np.ndarray:
    """Move each experiment's points as a law of the best ones says, on to the target's fidelity.

    Per numeric coordinate, the mean of an experiment's best points is a linear function of log
    parameters and log tokens (see scaling_law.py); each experiment's points are shifted by what
    that law changes between it and the target. Choices and mixtures have no scale: they stay.

    Args:
      problem: the target and its evidence.
      evidence: what `gather` returned for it.
      share: which part of each experiment's rows, at least one row, counts as its best.

    Returns:
      [N, D'] points in the target's scale, none beyond the range of evidence and target.
    """
    experiments, target = relevant_evidence(problem), problem.setting
    if not experiments:
        return evidence.points_ND
    centres = []
    for index in range(len(experiments)):
        points_ND = evidence.points_ND[evidence.experiments_N == index]  # best first
        centres.append(points_ND[: max(1, math.ceil(share * len(points_ND)))].mean(0))
    fidelities_EF = np.stack([e.fidelity.log for e in experiments])
    at_F = target.fidelity.log
    known_F = np.isfinite(fidelities_EF).all(0) & np.isfinite(at_F)
    fidelities_EF, at_F = fidelities_EF[:, known_F], at_F[known_F]
    law = functools.partial(extrapolate, fidelities_EF, np.stack(centres))
    shift_ED = law(at_F) - np.stack([law(own_F) for own_F in fidelities_EF])
    moves_D = np.zeros(shift_ED.shape[1], bool)
    spans = coordinates.columns(target.space)
    for dimension in target.space.dimensions:
        moves_D[spans[dimension.name]] = dimension.is_numeric
    moved_ND = evidence.points_ND + np.where(moves_D, shift_ED, 0.0)[evidence.experiments_N]
    low_D = np.minimum(evidence.points_ND.min(0), 0.0)
    return np.clip(moved_ND, low_D, np.maximum(evidence.points_ND.max(0), 1.0))


class TargetScale:
    """Brings the target's outcomes to the evidence's scale, without knowing its best or median.

    Both are extrapolated from the evidence over log parameters and log tokens, as a scaling law
    does: the best outcome and the logarithm of the distance from the best to the median. Outcomes
    may then score below 0; who uses them should trust their differences more than their level.
    """

    def __init__(self, problem: Problem):
        target, evidence = problem.setting, relevant_evidence(problem)
        self._sign = target.objective.sign
        self.known = bool(evidence)
        self._best, self._scale = 0.0, 1.0
        if evidence:
            levels = [(self._sign * e.outcomes.optimum, np.log(e.outcomes.unit)) for e in evidence]
            fidelities_EF = np.stack([e.fidelity.log for e in evidence])
            best, log_scale = extrapolate(fidelities_EF, np.array(levels), target.fidelity.log)
            # The spread is the less certain of the two: never beyond what the evidence showed.
            spreads = [level[1] for level in levels]
            self._best = float(best)
            self._scale = float(np.exp(np.clip(log_scale, min(spreads), max(spreads))))

    def scores(self, trials: list[Trial]) -> np.ndarray:
        """Return one score a trial; a failed one scores 1 above the best seen, at least 1."""
        ok = np.array([t.status == "ok" for t in trials], bool)
        outcome = np.array([self._sign * t.outcome if t.status == "ok" else np.nan for t in trials])
        best, scale = self._best, self._scale
        if not self.known and ok.any():
            best = np.nanmin(outcome)
            scale = max(np.nanstd(outcome), 1e-12) if ok.sum() > 1 else 1.0
        scores = (outcome - best) / scale
        ceiling = max(1.0, (np.nanmin(scores) if ok.any() else 0.0) + 1.0)
        return np.where(ok, np.minimum(np.nan_to_num(scores, nan=ceiling), ceiling), ceiling)
