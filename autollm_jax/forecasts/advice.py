"""Advice: what several advisers expect of a setting's rows, side by side, after some trials.

Letters: A advisers, R rows of the setting, T trials.
"""

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from autollm_jax.forecasts.panel import Panel
from autollm_jax.gym.environment import Trial

OFFERED = 12  # candidates
GOOD_SHARE = 0.5  # the far candidate comes from this share of the rows, the best expected ones


@dataclasses.dataclass(frozen=True, eq=False)
class Advice:
    """What the advisers expect, in units of regret.

    Attributes:
      names: the advisers'.
      mean_AR: expected regrets, up to a constant of each adviser.
      deviation_AR: standard deviations of these.
      remaining_AR: the regret expected to remain after trying a row next, relative to the adviser's
        best row; inf where a row is not open.
      best_A: the least score of a trial, on the adviser's own scale; nan before any.
      surprise_A: how far the adviser's expectations before the first trial were off at the trials,
        their common level apart (mean absolute difference); 0 before two trials.
      open_R: rows that may be tried.
    """

    names: tuple[str, ...]
    mean_AR: np.ndarray
    deviation_AR: np.ndarray
    remaining_AR: np.ndarray
    best_A: np.ndarray
    surprise_A: np.ndarray
    open_R: np.ndarray


def advise(panel: Panel, trials: Sequence[Trial] = ()) -> Advice:
    """Ask a panel's members."""
    seen = panel.seen(trials)
    tried = [row for row, _ in seen]
    means, deviations, remaining, best, surprise = [], [], [], [], []
    for member in panel.members:
        mean_R, deviation_R, scores_T = member.scored(trials)
        scores_T = _of_failed(np.asarray(scores_T, float))
        means.append(mean_R)
        deviations.append(deviation_R)
        remaining.append(member.expected_regrets(trials))
        best.append(min(scores_T, default=np.nan))
        off_T = scores_T - member.scored()[0][tried]
        surprise.append(np.abs(off_T - off_T.mean()).mean() if len(seen) > 1 else 0.0)
    return Advice(
        panel.names,
        np.stack(means),
        np.stack(deviations),
        np.stack(remaining),
        np.array(best, float),
        np.array(surprise, float),
        panel.open_rows(trials),
    )


def _of_failed(scores_T: np.ndarray) -> np.ndarray:
    """Give failed trials (inf) one unit more than the best trial, or 1 if that is higher."""
    ok_T = np.isfinite(scores_T)
    return np.where(ok_T, scores_T, max(1.0, min(scores_T[ok_T], default=0.0) + 1.0))


def offer(panel: Panel, advice: Advice, seed: int, count: int = OFFERED) -> tuple[int, ...]:
    """Choose the rows that are offered, in shuffled order.

    They are the row that the panel's mean puts first, the row most like the best of the nearest
    experiment, the default, each adviser's first picks in turn, and one good row far from these.

    Args:
      panel: the advisers.
      advice: theirs, after the trials so far.
      seed: of the order; the setting's name and the open rows shuffle besides.
      count: the most rows.
    """
    remaining_AR, open_R = advice.remaining_AR, advice.open_R
    rows = np.flatnonzero(open_R)
    if len(rows) <= count:
        chosen = rows.tolist()
    else:
        together_R = remaining_AR.mean(0)
        default, _ = panel.setting.match(panel.setting.default)
        firsts = [int(together_R.argmin()), panel.counterpart, default]
        chosen = [row for row in dict.fromkeys(firsts) if open_R[row]]
        picks_AR = np.argsort(remaining_AR, axis=1, kind="stable")
        for row in picks_AR[:, : len(rows)].T.ravel().tolist():
            if len(chosen) >= count - 1:
                break
            if row not in chosen:
                chosen.append(row)
        good = rows[np.argsort(together_R[rows], kind="stable")]
        good = good[: max(int(GOOD_SHARE * len(good)), count)]
        units_RD = panel.units_RD
        away_N = ((units_RD[good, None] - units_RD[chosen]) ** 2).sum(-1).min(1)
        chosen.append(int(good[away_N.argmax()]))
    name = zlib.crc32(f"{panel.setting.id} {int(open_R.sum())}".encode())
    random = np.random.default_rng([seed, name])
    return tuple(int(row) for row in random.permutation(chosen))
