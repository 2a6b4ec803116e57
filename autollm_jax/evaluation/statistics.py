"""Paired bootstrap intervals over experiments and seeds.

A score belongs to an experiment and a seed. New experiments are what a claim is about, so a draw
first picks experiments with replacement, then, within each, seeds with replacement; every method is
given the same draws (paired), so that what makes an experiment hard cancels in a difference.
(Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13: percentile intervals.)

Edge cases, chosen so that no interval is narrower than what is known:
  - One experiment says nothing about others: the interval is the score's whole range.
  - One seed: the interval holds the spread between experiments alone, which includes that of the
    seeds, since each experiment has a draw of its own.
  - All scores equal: the interval has no width. It says that these experiments did not differ,
    which few experiments do easily; `n` stands beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

REGRET_RANGE = (0.0, 1.0)
DIFFERENCE_RANGE = (-1.0, 1.0)
DRAWS = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval.

    Attributes:
      mean: mean over experiments of the mean over seeds; nan without scores.
      low: lower end.
      high: upper end.
      n: number of scores (experiments x seeds).
      experiments: number of experiments; with fewer than 2 the ends are the score's range.
    """

    mean: float
    low: float
    high: float
    n: int
    experiments: int

    def to_json(self) -> dict:
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}


def mean_interval(
    scores: Mapping[str, Mapping[int, float]],
    bounds: tuple[float, float] = REGRET_RANGE,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Estimate the mean score over experiments, with a 95 % bootstrap interval.

    Args:
      scores: experiment -> seed -> score, finite. Experiments may have different seeds.
      bounds: the range of a score: the interval where only one experiment is known.
      draws: number of bootstrap draws.
      seed: of the draws.

    Returns:
      The interval. Experiments weigh the same, however many seeds they have.
    """
    rows = [[scores[e][s] for s in sorted(scores[e])] for e in sorted(scores) if len(scores[e]) > 0]
    n = sum(map(len, rows))
    if not rows:
        return Interval(float("nan"), *map(float, bounds), 0, 0)
    mean = float(np.mean([np.mean(row) for row in rows]))
    if len(rows) == 1:
        return Interval(mean, *map(float, bounds), n, 1)
    means_B = _resampled_means(rows, draws, np.random.default_rng(seed))
    low, high = np.percentile(means_B, [2.5, 97.5])
    # Rounding may put the percentile of equal draws a last digit beyond their mean.
    return Interval(mean, min(float(low), mean), max(float(high), mean), n, len(rows))


def paired_interval(
    ours: Mapping[str, Mapping[int, float]],
    theirs: Mapping[str, Mapping[int, float]],
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Estimate the mean difference `ours - theirs`, paired by experiment and seed.

    Args:
      ours: experiment -> seed -> score.
      theirs: likewise; pairs that one of the two lacks are left out.
      draws: number of bootstrap draws.
      seed: of the draws.

    Returns:
      The interval: a difference is shown where it excludes 0.
    """
    difference = {
        e: {s: ours[e][s] - theirs[e][s] for s in ours[e] if s in theirs[e]}
        for e in ours
        if e in theirs
    }
    return mean_interval(difference, DIFFERENCE_RANGE, draws, seed)


def _resampled_means(rows: list[list[float]], draws: int, rng) -> np.ndarray:
    """Return the mean of each bootstrap draw [B]."""
    experiments = len(rows)
    count_E = np.array([len(row) for row in rows])
    scores_ES = np.full((experiments, count_E.max()), np.nan)
    for e, row in enumerate(rows):
        scores_ES[e, : len(row)] = row
    means_B = np.empty(draws)
    # In blocks, so that hundreds of experiments x seeds need no gigabytes.
    block = max(1, 2_000_000 // scores_ES.size)
    for start in range(0, draws, block):
        size = min(block, draws - start)
        pick_BE = rng.integers(experiments, size=(size, experiments))
        count_BE = count_E[pick_BE]
        uniform_BES = rng.random((size, experiments, scores_ES.shape[1]))
        seed_BES = (uniform_BES * count_BE[..., None]).astype(int)
        drawn_BES = scores_ES[pick_BE[..., None], seed_BES]
        used_BES = np.arange(scores_ES.shape[1]) < count_BE[..., None]
        sum_BE = np.where(used_BES, drawn_BES, 0.0).sum(-1)
        means_B[start : start + size] = (sum_BE / count_BE).mean(-1)
    return means_B
