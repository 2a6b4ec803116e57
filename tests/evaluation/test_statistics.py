"""Bootstrap intervals."""

import numpy as np
import pytest

from autollm_jax.evaluation.statistics import mean_interval, paired_interval


def scores(values_ES):
    return {f"e{e}": dict(enumerate(map(float, row))) for e, row in enumerate(values_ES)}


def test_mean_weighs_experiments_alike_however_many_seeds():
    assert mean_interval({"a": {0: 0.0}, "b": {0: 1.0, 1: 1.0, 2: 1.0}}).mean == 0.5


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        level_E = rng.uniform(size=20)
        values = np.clip(level_E[:, None] * 0.5 + rng.uniform(0, 0.5, size=(20, 3)), 0, 1)
        interval = mean_interval(scores(values), draws=500, seed=trial)
        hits += interval.low <= 0.5 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_interval_is_deterministic_in_its_seed():
    values = scores(np.random.default_rng(1).random((4, 3)))
    assert mean_interval(values, seed=5) == mean_interval(values, seed=5)
    assert mean_interval(values, seed=5) != mean_interval(values, seed=6)


def test_one_experiment_gives_the_whole_range():
    interval = mean_interval({"a": {0: 0.2, 1: 0.4}})
    assert (interval.low, interval.high, interval.experiments) == (0.0, 1.0, 1)


def test_one_seed_still_shows_the_spread_between_experiments():
    interval = mean_interval(scores([[0.1], [0.5], [0.9]]))
    assert interval.low < 0.4 and interval.high > 0.6


def test_no_scores_have_no_mean():
    interval = mean_interval({})
    assert np.isnan(interval.mean) and interval.n == 0


def test_pairing_cancels_what_makes_an_experiment_hard():
    hard = np.linspace(0, 0.8, 6)[:, None] + np.zeros((6, 2))
    difference = paired_interval(scores(hard), scores(hard + 0.1))
    assert difference.mean == pytest.approx(-0.1) and difference.high < 0
    assert mean_interval(scores(hard)).high - mean_interval(scores(hard)).low > 0.3


def test_pairs_that_one_lacks_are_left_out():
    ours, theirs = {"a": {0: 0.5, 1: 0.9}, "b": {0: 0.1}}, {"a": {0: 0.3}, "b": {0: 0.1}}
    difference = paired_interval(ours, theirs)
    assert difference.n == 2 and difference.mean == pytest.approx(0.1)


def test_experiments_may_have_different_numbers_of_seeds():
    interval = mean_interval({"a": {0: 0.0}, "b": {0: 1.0, 1: 0.0, 2: 0.5}})
    assert np.isfinite([interval.low, interval.high]).all()
