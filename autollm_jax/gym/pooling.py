"""Pooling: the runs of one configuration under several seeds become one outcome.

Runs of one seed share their initialisation and the order of their data, so a whole seed can be
better or worse by an amount that does not depend on the configuration. If only some configurations
ran under a second seed, plain means would rank configurations by that amount. Seeds are therefore
the blocks of an incomplete block design: each seed's effect is estimated on the configurations that
ran under several seeds, and subtracted from every run.
"""

import math
from collections.abc import Sequence

import numpy as np

from autollm_jax.gym.outcomes import Objective, Outcomes

LEAST_REPEATED = 8  # fewest configurations under several seeds for which effects are estimated
POLISHES = 10  # rounds of the median polish


def pool_outcomes(
    row_N: np.ndarray,
    rows: int,
    outcomes: Sequence[float | None],
    status: Sequence[str],
    seconds: Sequence[float | None],
    seeds: Sequence[int | None] | None,
    objective: Objective,
) -> Outcomes:
    """Pool N runs into one outcome for each of R rows.

    A configuration diverged if any of its runs did. Its outcome is the mean over its runs of that
    status, each less its seed's effect.

    >>> pooled = pool_outcomes(np.array([0, 0, 1]), 2, [1.0, 3.0, 5.0], ["ok"] * 3, [None] * 3,
    ...     [0, 1, None], Objective())
    >>> pooled.values_R
    array([2., 5.])

    Args:
      row_N: each run's row.
      rows: R.
      outcomes, status, seconds: of each run.
      seeds: of each run, None for a run whose seed is not known; None where no seed is known. A
        run without a seed has no seed's effect taken off.
      objective: the outcome's direction.
    """
    value_N = np.array([float_or_nan(value) for value in outcomes])
    time_N = np.array([float_or_nan(value) for value in seconds])
    status_N = np.array(status)
    effect_N = np.zeros(len(row_N))
    spent = 0  # degrees of freedom
    if seeds is not None:
        known_N = np.flatnonzero([seed is not None for seed in seeds])
        seed_N = np.array([seed for seed in seeds if seed is not None], int)
        usable_N = ((status_N == "ok") & np.isfinite(value_N))[known_N]
        effect_N[known_N], spent = seed_effects(
            row_N[known_N], seed_N, value_N[known_N], usable_N, objective
        )
    value_N = value_N - effect_N
    runs_R = [[] for _ in range(rows)]
    for run, row in enumerate(row_N.tolist()):
        runs_R[row].append(run)
    pooled = [_pool_row(value_N[runs], time_N[runs], status_N[runs]) for runs in runs_R]
    status_R, *numbers = zip(*pooled, strict=True)
    value_R, seconds_R, squares_R, freedom_R = map(np.array, numbers)
    # The effects were fitted on the same runs: the degrees of freedom that they used up are taken
    # from all rows in proportion.
    if spent:
        freedom_R *= max(freedom_R.sum() - spent, 0.0) / max(freedom_R.sum(), 1.0)
    numbers_R = value_R, np.array(status_R), seconds_R, squares_R, freedom_R
    return Outcomes(*numbers_R, np.bincount(row_N, minlength=rows), objective)


def _pool_row(value_N: np.ndarray, time_N: np.ndarray, status_N: np.ndarray) -> tuple:
    """Pool a configuration's N runs: status, value, seconds, squares and degrees of freedom."""
    state = next((s for s in ("diverged", "infeasible") if s in status_N.tolist()), "ok")
    values = value_N[(status_N == state) & np.isfinite(value_N)]
    times = time_N[np.isfinite(time_N)]
    value = float(values.mean()) if len(values) else math.nan
    seconds = float(times.mean()) if len(times) else math.nan
    if state != "ok" or len(values) < 2:
        return state, value, seconds, 0.0, 0.0
    return state, value, seconds, float(values.var() * len(values)), float(len(values) - 1)


def seed_effects(
    row_N: np.ndarray,
    seed_N: np.ndarray,
    value_N: np.ndarray,
    usable_N: np.ndarray,
    objective: Objective,
) -> tuple[np.ndarray, int]:
    """Estimate the effect of each run's seed on its outcome.

    The method is median polish (Tukey, Exploratory Data Analysis, 1977) over the configurations
    that ran under several seeds. Only the half of them with the better means is used, since runs
    far from the optimum are noisier.

    Args:
      row_N: each run's configuration.
      seed_N: each run's seed.
      value_N: each run's outcome.
      usable_N: whether a run is used for the estimate.
      objective: the outcome's direction.

    Returns:
      [N] effects in the outcome's units, zero on average over the seeds (all zero if fewer than
      LEAST_REPEATED configurations ran under several seeds), and the number of fitted parameters.
    """
    none = np.zeros(len(row_N)), 0
    seeds, place_N = np.unique(seed_N, return_inverse=True)
    rows, where_N = np.unique(row_N, return_inverse=True)
    if len(seeds) < 2:
        return none
    table_RS = np.full((len(rows), len(seeds)), math.nan)
    # Of several runs under one seed the last one is used.
    table_RS[where_N[usable_N], place_N[usable_N]] = value_N[usable_N]
    table_RS = table_RS[np.isfinite(table_RS).sum(1) > 1]
    if len(table_RS) < LEAST_REPEATED or not np.isfinite(table_RS).any(0).all():
        return none
    mean_R = np.nanmean(table_RS, axis=1) * objective.sign
    table_RS = table_RS[mean_R <= np.median(mean_R)]
    if not np.isfinite(table_RS).any(0).all():
        return none
    effect_S = np.zeros(len(seeds))
    for _ in range(POLISHES):
        left_RS = table_RS - effect_S
        effect_S += np.nanmedian(left_RS - np.nanmean(left_RS, axis=1, keepdims=True), axis=0)
    effect_S -= effect_S.mean()
    return effect_S[place_N], len(seeds) - 1


def float_or_nan(value: float | None) -> float:
    """Read a number of a table's column, in which a missing one is null."""
    return math.nan if value is None else float(value)
