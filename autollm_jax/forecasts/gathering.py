"""Evidence as one data set: points on the setting's scale, outcomes on the scale of regret."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autollm_jax.forecasts import coordinates
from autollm_jax.forecasts.relevance import relevant_evidence
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting

# Share of each experiment's rows, the best ones, that `move_along_law` fits the law to. Chosen on
# cheap experiments.
BEST_SHARE = 0.02
# A setting counts as at most so many times as far from the evidence's mean as the farthest
# experiment, along each direction in which their fidelities vary. Where these hardly vary, a slope
# is noise, which a setting far along the direction multiplies. Chosen on cheap experiments.
REACH = 3.0
# A direction in which the fidelities vary by less than this share of their greatest variation gets
# slope 0. Two tables, say, determine the slope along the line through their fidelities only.
RANK_TOLERANCE = 0.02
LEAST_VARIED = 1e-9  # below it fidelities are equal but for rounding


@dataclass(frozen=True)
class Rows:
    """Rows of the evidence, the rows of the most relevant experiment first.

    Attributes:
      points_ND: coordinates on the setting's scale.
      sizes_NS: relative sizes (S = 1) if the setting and all relevant experiments have sizes; else
        S = 0.
      fidelities_NF: log parameters and log tokens, relative to the setting, which counts as within
        reach of the evidence (`within_reach`); 0 where missing.
      scores_N: the spread regret (`Experiment.spread_regrets_R`), 0 at the experiment's best and 1
        at its spread median and above. The cut at 1 keeps detail near the optimum. A failed run
        scores 1.
      experiments_N: index of the row's experiment, in order of relevance.
    """

    points_ND: np.ndarray
    sizes_NS: np.ndarray
    fidelities_NF: np.ndarray
    scores_N: np.ndarray
    experiments_N: np.ndarray

    def __len__(self) -> int:
        return len(self.scores_N)


def gather(setting: Setting, evidence: Sequence[Experiment], limit: int) -> Rows:
    """Collect at most `limit` rows of the relevant evidence, an equal share of each experiment.

    Args:
      setting: the question.
      evidence: experiments over any spaces.
      limit: the greatest number of rows. An experiment with more than its share gives every second
        (third, ...) feasible row in order of outcome, the best row included.
    """
    relevant = relevant_evidence(evidence, setting)
    sized = all(e.parameters_R is not None for e in (setting, *relevant))
    if not relevant:
        empty = np.zeros((0, setting.space.width)), np.zeros((0, int(sized))), np.zeros((0, 2))
        return Rows(*empty, np.zeros(0), np.zeros(0, int))
    at_F = within_reach(np.stack([e.fidelity.log for e in relevant]), setting.fidelity.log)
    points, sizes, fidelities, scores, experiments = [], [], [], [], []
    for index, experiment in enumerate(relevant):
        regrets_R = experiment.spread_regrets_R
        # A row over the limit was not run, so it has no outcome and is left out.
        order = np.argsort(regrets_R, kind="stable")
        order = order[np.asarray(experiment.feasible_R)[order]]
        rows = order[:: -(-len(order) // max(limit // len(relevant), 1))]
        configs = [experiment.configurations[r] for r in rows]
        points.append(
            coordinates.project(configs, experiment.space, setting.space, setting.default)
        )
        sizes.append(coordinates.relative_sizes(experiment)[rows, : int(sized)])
        relative_F = np.nan_to_num(experiment.fidelity.log - at_F)
        fidelities.append(np.tile(relative_F, (len(rows), 1)))
        scores.append(regrets_R[rows])
        experiments.append(np.full(len(rows), index))
    return Rows(*map(np.concatenate, (points, sizes, fidelities, scores, experiments)))


def within_reach(features_EF: np.ndarray, at_F: np.ndarray) -> np.ndarray:
    """Move a point towards the experiments' mean until it is within REACH of them.

    It moves along their principal directions; one in which they do not vary at all is left alone.

    >>> experiments = np.array([[0.0, 0.1], [2.0, -0.1], [4.0, -0.1], [6.0, 0.1]])
    >>> within_reach(experiments, np.array([9.0, -1.0])).round(1)
    array([ 9. , -0.3])

    Args:
      features_EF: the experiments' features.
      at_F: the point's.

    Returns:
      [F] the point's features; one that is missing (nan) somewhere stays.
    """
    known_F = np.isfinite(features_EF).all(0) & np.isfinite(at_F)
    features_EF, known = features_EF[:, known_F], at_F[known_F]
    if len(features_EF) < 2 or not len(known):
        return at_F
    mean_F = features_EF.mean(0)
    _, varied_M, directions_MF = np.linalg.svd(features_EF - mean_F, full_matrices=False)
    directions_MF = directions_MF[varied_M > LEAST_VARIED]
    farthest_M = np.abs((features_EF - mean_F) @ directions_MF.T).max(0, initial=0.0)
    away_M = directions_MF @ (known - mean_F)
    over_M = away_M - np.clip(away_M, -REACH * farthest_M, REACH * farthest_M)
    moved_F = at_F.copy()
    moved_F[known_F] = known - over_M @ directions_MF
    return moved_F


def extrapolate(features_EF: np.ndarray, values_ED: np.ndarray, at_F: np.ndarray) -> np.ndarray:
    """Fit a linear function by least squares, with the slope of least norm, and evaluate it.

    It is evaluated within reach of the features (`within_reach`).

    >>> extrapolate(np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]]), np.array([2.0]))
    array([4.])

    Args:
      features_EF: features; one with a missing number (nan) is dropped.
      values_ED: the values to predict.
      at_F: the features to predict them for.

    Returns:
      [D] predictions.
    """
    known_F = np.isfinite(features_EF).all(0) & np.isfinite(at_F)
    features_EF, at_F = features_EF[:, known_F], at_F[known_F]
    at_F = within_reach(features_EF, at_F)
    mean_F, mean_D = features_EF.mean(0), values_ED.mean(0)
    slope_FD = np.linalg.pinv(features_EF - mean_F, rcond=RANK_TOLERANCE) @ (values_ED - mean_D)
    return mean_D + (at_F - mean_F) @ slope_FD


def move_along_law(
    setting: Setting, evidence: Sequence[Experiment], rows: Rows, share: float = BEST_SHARE
) -> np.ndarray:
    """Shift each experiment's points to the setting's fidelity, along a law of the best points.

    The law: for each numeric coordinate, the mean of an experiment's best points is a linear
    function of log parameters and log tokens (`extrapolate`). All points of an experiment are
    shifted by the law's value at the setting less the law's value at the experiment. Categories and
    mixtures are not shifted.

    Args:
      setting, evidence: the arguments that `rows` was gathered with.
      rows: the result of `gather`.
      share: the share of each experiment's rows, at least one row, that counts as its best.

    Returns:
      [N, D'] points on the setting's scale, within the range of the evidence and the setting.
    """
    relevant = relevant_evidence(evidence, setting)
    if not relevant:
        return rows.points_ND
    centres = []
    for index in range(len(relevant)):
        points_ND = rows.points_ND[rows.experiments_N == index]  # best first
        centres.append(points_ND[: max(1, math.ceil(share * len(points_ND)))].mean(0))
    centres_ED = np.stack(centres)
    fidelities_EF, at_F = np.stack([e.fidelity.log for e in relevant]), setting.fidelity.log
    known_F = np.isfinite(fidelities_EF).all(0) & np.isfinite(at_F)
    fidelities_EF, at_F = fidelities_EF[:, known_F], at_F[known_F]
    here_ED = np.stack([extrapolate(fidelities_EF, centres_ED, own_F) for own_F in fidelities_EF])
    shift_ED = extrapolate(fidelities_EF, centres_ED, at_F) - here_ED
    moves_D = np.zeros(shift_ED.shape[1], bool)
    spans = coordinates.columns(setting.space)
    for dimension in setting.space.dimensions:
        moves_D[spans[dimension.name]] = dimension.is_numeric
    moved_ND = rows.points_ND + np.where(moves_D, shift_ED, 0.0)[rows.experiments_N]
    low_D = np.minimum(rows.points_ND.min(0), 0.0)
    return np.clip(moved_ND, low_D, np.maximum(rows.points_ND.max(0), 1.0))


class TargetScale:
    """Brings a setting's losses to the scale of regret without reading the setting's outcomes.

    The best loss, and the logarithm of the distance from the best to the median loss, are
    extrapolated from the relevant evidence over log parameters and log tokens, as a scaling law
    does. A loss may therefore score below 0: differences of scores are more reliable than scores.

    Attributes:
      known: whether there is relevant evidence to extrapolate from.
      best: the loss that scores 0.
      unit: the difference in loss that scores 1.
    """

    def __init__(self, setting: Setting, evidence: Sequence[Experiment]):
        relevant = relevant_evidence(evidence, setting)
        sign = setting.objective.sign
        self.known = bool(relevant)
        self.best, self.unit = 0.0, 1.0
        if relevant:
            levels = [(sign * e.outcomes.optimum, np.log(e.spread_unit)) for e in relevant]
            fidelities_EF = np.stack([e.fidelity.log for e in relevant])
            best, log_unit = extrapolate(fidelities_EF, np.array(levels), setting.fidelity.log)
            # The unit is less certain than the best loss, so it stays in the range of the evidence.
            units = [level[1] for level in levels]
            self.best = float(best)
            self.unit = float(np.exp(np.clip(log_unit, min(units), max(units))))

    def anchored(self, losses_T: np.ndarray) -> tuple[float, float]:
        """Return the loss that scores 0, and the unit; estimated from the trials without evidence.

        The loss is nan if there is neither evidence nor an ok trial.
        """
        if self.known:
            return self.best, self.unit
        ok = losses_T[np.isfinite(losses_T)]
        if not len(ok):
            return math.nan, 1.0
        return float(ok.min()), max(float(ok.std()), 1e-12) if len(ok) > 1 else 1.0

    def scores(self, losses_T: np.ndarray) -> np.ndarray:
        """Return a score for each trial [T].

        Args:
          losses_T: lower is better, inf for a failed trial.

        Returns:
          [T] scores, cut at the best trial's score + 1, or at 1 if that is higher. A failed trial
          scores the cut.
        """
        losses_T = np.asarray(losses_T, float)
        best, unit = self.anchored(losses_T)
        ok_T = np.isfinite(losses_T)
        score_T = (np.where(ok_T, losses_T, np.nan) - best) / unit
        ceiling = max(1.0, (np.nanmin(score_T) if ok_T.any() else 0.0) + 1.0)
        return np.where(ok_T, np.minimum(score_T, ceiling), ceiling)
