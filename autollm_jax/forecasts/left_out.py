"""Each configuration of a table, predicted from the table's other configurations.

It is no forecast: it reads the very table that is asked about. It tells what could be known there
(`evaluation.ceiling`, `evaluation.difficulty`).
"""

import lightgbm
import numpy as np

from autollm_jax.forecasts.boosted_trees import PARAMETERS, ROUNDS, ridge
from autollm_jax.forecasts.surfaces import CAP, left_out_means, place
from autollm_jax.gym.experiments import Experiment

FOLDS = 10
FEWEST = 10
MEMBERS = 2  # trees of a fold


def left_out_predictions(experiment: Experiment) -> np.ndarray:
    """Predict each configuration from all the other ones of its table.

    The prediction is the mean of two: a Gaussian process, a row left out in closed form
    (`surfaces.left_out_means`), and trees boosted from a ridge regression, a tenth of the rows left
    out at a time. On low tables the mean was better than either. A row is a configuration, whose
    seeds are pooled (`gym.pooling`), so that no run of it is left in.

    A table of fewer than FEWEST configurations is left to the Gaussian process: bagging would leave
    the trees without a row.

    Returns:
      [R] expected spread regrets, lower is better; inf for a configuration over the limit.
    """
    best = experiment.outcomes.sign * experiment.outcomes.optimum
    smooth_R = (left_out_means(experiment) - best) / experiment.spread_unit
    if experiment.feasible_R.sum() < FEWEST:
        return smooth_R
    return (smooth_R + _trees(experiment)) / 2


def _trees(experiment: Experiment) -> np.ndarray:
    rows = np.flatnonzero(experiment.feasible_R)
    x_NX = place(experiment, experiment)[rows]
    regret_N = np.minimum(experiment.uncut_spread_regrets_R[rows], CAP)
    fold_N = np.random.default_rng(0).permutation(len(rows)) % FOLDS
    predicted_R = np.full(len(experiment.cells), np.inf)
    for fold in range(FOLDS):
        kept_N = fold_N != fold
        at_NX = np.concatenate([x_NX[kept_N], x_NX[~kept_N]])
        trend_N = ridge(x_NX[kept_N], regret_N[kept_N], np.ones(kept_N.sum()), at_NX)
        own_N, left_N = np.split(trend_N, [kept_N.sum()])
        data = lightgbm.Dataset(
            x_NX[kept_N], regret_N[kept_N] - own_N, params=PARAMETERS, free_raw_data=False
        )
        for member in range(MEMBERS):
            model = lightgbm.train(PARAMETERS | {"seed": member}, data, ROUNDS)
            added_N = np.asarray(model.predict(x_NX[~kept_N], num_threads=1))
            left_N = left_N + added_N / MEMBERS
        predicted_R[rows[~kept_N]] = left_N
    return predicted_R
