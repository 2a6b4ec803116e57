"""A scaling law of the optimum, refitted on the cheap experiments."""

import numpy as np

from autollm_jax.baselines.base import (
    Candidates,
    Problem,
    relevant_evidence,
)
from autollm_jax.forecasts import coordinates

# Directions in which the evidence's fidelities spread by less than this share of their widest
# spread carry no slope: two tables give a slope along the line through them and none across it.
RANK_TOLERANCE = 0.02


class ScalingLaw:
    """Predict the optimum from parameters and tokens; try the cells around the prediction.

    Per numeric dimension, the optimum's coordinate (the logarithm of a log-ordinal value) is a
    linear function of log parameters and log tokens, fitted by least squares on the optima of the
    evidence. This is the form of the laws of Kaplan et al. (arXiv 2001.08361) and of Step Law
    (arXiv 2503.04715). Where the evidence does not determine a slope, the least one around the mean
    is taken. Where nothing has a scale to extrapolate on (categories, mixtures) the method falls
    back on the mean of the evidence's optima. Trials are the cells nearest to the prediction, in
    order of distance; under a limit, those within it.
    """

    def __init__(self, problem: Problem, seed: int):
        del seed  # Nothing is drawn.
        self._candidates = Candidates(problem.setting)
        self._prediction_D = predict_optimum(problem)

    def ask(self) -> dict:
        return self._candidates.take(self._candidates.nearest(self._prediction_D, untried=True))

    def tell(self, trial) -> None:
        self._candidates.mark(trial)


def predict_optimum(problem: Problem) -> np.ndarray:
    """Extrapolate the evidence's optima to the target.

    Args:
      problem: the target and its evidence.

    Returns:
      [D'] coordinates in the target's scale; the default configuration's without evidence.
    """
    target = problem.setting
    evidence = relevant_evidence(problem)
    if not evidence:
        return coordinates.project([target.default], target.space, target.space)[0]
    optima_ED = np.concatenate(
        [
            coordinates.project(
                [e.configurations[e.outcomes.best_row]], e.space, target.space, target.default
            )
            for e in evidence
        ]
    )
    fidelities_EF = np.stack([e.fidelity.log for e in evidence])
    law_D = extrapolate(fidelities_EF, optima_ED, target.fidelity.log)
    mean_D = optima_ED.mean(0)
    spans = coordinates.columns(target.space)
    for dimension in target.space.dimensions:
        if dimension.is_numeric:
            mean_D[spans[dimension.name]] = law_D[spans[dimension.name]]
    # Beyond the window the nearest cell is on its edge; the other dimensions must not pay for it.
    return np.clip(mean_D, 0.0, 1.0)


def extrapolate(features_EF: np.ndarray, values_ED: np.ndarray, at_F: np.ndarray) -> np.ndarray:
    """Fit a linear function by least squares and evaluate it; minimum norm around the mean.

    Args:
      features_EF: features, nan where one is missing: such a feature is dropped.
      values_ED: what to predict.
      at_F: where to predict it.

    Returns:
      [D] predictions.
    """
    known_F = np.isfinite(features_EF).all(0) & np.isfinite(at_F)
    features_EF, at_F = features_EF[:, known_F], at_F[known_F]
    mean_F, mean_D = features_EF.mean(0), values_ED.mean(0)
    slope_FD = np.linalg.pinv(features_EF - mean_F, rcond=RANK_TOLERANCE) @ (values_ED - mean_D)
    return mean_D + (at_F - mean_F) @ slope_FD
