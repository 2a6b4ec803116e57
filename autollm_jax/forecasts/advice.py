"""Advice: what several advisers expect of a setting's rows, side by side, after some trials.

Letters: A advisers, R rows of the setting, T trials.
"""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Sequence

import numpy as np

from autollm_jax.forecasts.panel import Panel
from autollm_jax.gym.environment import Observation, Trial

LEAST, MOST = 8, 16  # candidates
GOOD_SHARE = 0.5  # far candidates come from this share of the rows, the best expected ones


@dataclasses.dataclass(frozen=True, eq=False)
class Advice:
    """What the advisers expect, in units of regret.

    Attributes:
      names: the advisers'.
      mean_AR: expected regrets, up to a constant of each adviser.
      deviation_AR: standard deviations of these.
      remaining_AR: the regret expected to remain after trying a row next, relative to the adviser's
        best row, and a share of the row's own (`Forecast.costs`); inf where a row is not open.
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
        remaining.append(member.costs(trials))
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


@dataclasses.dataclass(frozen=True)
class Offer:
    """The candidates of a decision, and what an agent may trust.

    Attributes:
      rows: the candidates' rows of the setting, in shuffled order; LEAST to MOST of them, or all
        open rows where there are fewer.
      trusts: the panels that may be trusted, each named by positions of advisers (`trusts_of`).
      picks: of each panel, the position in `rows` of the candidate that it puts first.
    """

    rows: tuple[int, ...]
    trusts: tuple[tuple[int, ...], ...]
    picks: tuple[int, ...]


@functools.cache
def trusts_of(advisers: int) -> tuple[tuple[int, ...], ...]:
    """Name the panels among so many advisers: each, all but one, all.

    Advisers together err less than each, so that what experience can add is to leave one out.
    """
    each = range(advisers)
    some = [group for size in (1, advisers - 1) for group in itertools.combinations(each, size)]
    return tuple(dict.fromkeys([*filter(None, some), tuple(each)]))


def offer(panel: Panel, advice: Advice, seed: int) -> Offer:
    """Choose the rows that are offered.

    They are the first pick of each panel that may be trusted: the row of the least mean of the
    regrets that its members expect to remain. If these are few, they are joined by the row most
    like the best of the nearest experiment, the default, and good rows far from those chosen.

    Args:
      panel: the advisers.
      advice: theirs, after the trials so far; a row is open.
      seed: of the order; the setting's name and the open rows shuffle besides.
    """
    remaining_AR, open_R = advice.remaining_AR, advice.open_R
    trusts = trusts_of(len(advice.names))
    firsts = [int(remaining_AR[list(group)].mean(0).argmin()) for group in trusts]
    chosen = list(dict.fromkeys(firsts))
    default, _ = panel.setting.match(panel.setting.default)
    for row in (panel.counterpart, default):
        if len(chosen) < LEAST and open_R[row] and row not in chosen:
            chosen.append(row)
    rows = np.flatnonzero(open_R)
    good = rows[np.argsort(remaining_AR.mean(0)[rows], kind="stable")]
    good = good[: max(int(GOOD_SHARE * len(good)), LEAST)]
    while len(chosen) < min(LEAST, len(rows)):
        away_N = ((panel.units_RD[good, None] - panel.units_RD[chosen]) ** 2).sum(-1).min(1)
        chosen.append(int(good[np.where(np.isin(good, chosen), -1.0, away_N).argmax()]))
    name = zlib.crc32(f"{panel.setting.id} {int(open_R.sum())}".encode())
    order = np.random.default_rng([seed, name]).permutation(chosen).tolist()
    return Offer(tuple(order), trusts, tuple(order.index(row) for row in firsts))


@dataclasses.dataclass(frozen=True, eq=False)
class Decision:
    """What an agent decides on: a state, what the advisers say of it, and the candidates."""

    observation: Observation
    panel: Panel
    advice: Advice
    offer: Offer


def decision_of(panel: Panel, observation: Observation, seed: int) -> Decision | None:
    """Put a state to the advisers; None where nothing is left to try (`seed` as in `offer`)."""
    advice = advise(panel, observation.trials)
    if not advice.open_R.any():
        return None
    return Decision(observation, panel, advice, offer(panel, advice, seed))
