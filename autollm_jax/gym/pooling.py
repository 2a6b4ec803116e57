"""Runs of the same configurations under several seeds, brought together as one outcome each.

Runs that share a seed share their initialisation and the order of their data, and so a good part of
their luck: whole seeds are better or worse by an amount that has nothing to do with the
configuration. Where only some configurations were run under a second seed, plain means would rank
them by that amount. So seeds are treated as the blocks of an incomplete block design: their effects
are estimated on the configurations that ran under several of them, and taken off every run.
"""

import math
from collections.abc import Sequence

import numpy as np

from autollm_jax.gym.outcomes import Outcomes

LEAST_REPEATED = 8  # configurations under several seeds that it takes to tell a seed's effect
POLISHES = 10


def pool_outcomes(
    row_N: np.ndarray,
    rows: int,
    outcomes: Sequence[float | None],
    status: Sequence[str],
    seconds: Sequence[float | None],
    seeds: Sequence[int | None] | None,
    minimize: bool,
) -> Outcomes:
    """Pool N runs into one outcome for each of R rows.

    A configuration diverged if any of its runs did; its outcome is the mean over its runs of that
    status, each less its seed's effect.

    Args:
      row_N: the row that each run is of.
      rows: R.
      outcomes, status, seconds: of each run.
      seeds: of each run, None for a run whose seed is not known; None where no seed is known. A
        run without a seed has no seed's effect taken off.
      minimize: whether lower outcomes are better.
    """
    value_N = np.array([float_or_nan(value) for value in outcomes])
    time_N = np.array([float_or_nan(value) for value in seconds])
    status_N = np.array(status)
    effect_N = np.zeros(len(row_N))
    spent = 0  # degrees of freedom
    if seeds is not None:
        known_N = np.flatnonzero([seed is not None for seed in seeds])
        seed_N = np.array([seeds[run] for run in known_N], int)
        usable_N = ((status_N == "ok") & np.isfinite(value_N))[known_N]
        effect_N[known_N], spent = seed_effects(
            row_N[known_N], seed_N, value_N[known_N], usable_N, minimize
        )
    value_N = value_N - effect_N
    runs_R = [[] for _ in range(rows)]
    for run, row in enumerate(row_N.tolist()):
        runs_R[row].append(run)
    status_R, outcome_R, seconds_R = [], np.full(rows, math.nan), np.full(rows, math.nan)
    squares_R, freedom_R = np.zeros(rows), np.zeros(rows)
    for row, runs in enumerate(runs_R):
        statuses = status_N[runs].tolist()
        state = next((s for s in ("diverged", "infeasible") if s in statuses), "ok")
        values = value_N[runs][(status_N[runs] == state) & np.isfinite(value_N[runs])]
        times = time_N[runs][np.isfinite(time_N[runs])]
        status_R.append(state)
        if len(values):
            outcome_R[row] = values.mean()
        if len(times):
            seconds_R[row] = times.mean()
        if state == "ok" and len(values) > 1:
            squares_R[row] = values.var() * len(values)
            freedom_R[row] = len(values) - 1
    # The effects were fitted on the same runs: what they took is shared out evenly.
    if spent:
        freedom_R *= max(freedom_R.sum() - spent, 0.0) / max(freedom_R.sum(), 1.0)
    return Outcomes(outcome_R, np.array(status_R), seconds_R, squares_R, freedom_R, minimize)


def seed_effects(
    row_N: np.ndarray,
    seed_N: np.ndarray,
    value_N: np.ndarray,
    usable_N: np.ndarray,
    minimize: bool,
) -> tuple[np.ndarray, int]:
    """Estimate what each run owes to its seed.

    By median polish (Tukey, Exploratory Data Analysis, 1977) over the configurations that ran under
    several seeds, of these the half with the better means: runs far from the optimum are noisier.

    Args:
      row_N: the configuration of each run.
      seed_N: its seed.
      value_N: its outcome.
      usable_N: whether it counts.
      minimize: whether lower outcomes are better.

    Returns:
      [N] effects in the outcome's units, zero on average over the seeds, all of them zero where
      fewer than LEAST_REPEATED configurations tell; and how many free parameters were fitted.
    """
    none = np.zeros(len(row_N)), 0
    seeds, place_N = np.unique(seed_N, return_inverse=True)
    rows, where_N = np.unique(row_N, return_inverse=True)
    if len(seeds) < 2:
        return none
    table_RS = np.full((len(rows), len(seeds)), math.nan)
    # A run that was repeated under its own seed counts once, the last time.
    table_RS[where_N[usable_N], place_N[usable_N]] = value_N[usable_N]
    table_RS = table_RS[np.isfinite(table_RS).sum(1) > 1]
    if len(table_RS) < LEAST_REPEATED or not np.isfinite(table_RS).any(0).all():
        return none
    mean_R = np.nanmean(table_RS, axis=1) * (1.0 if minimize else -1.0)
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
