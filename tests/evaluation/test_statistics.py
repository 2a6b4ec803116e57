"""Bootstrap intervals."""

import numpy as np
import pytest

from autollm_jax.evaluation.statistics import Bootstrap, Unit


def estimate(values, *, task="t", clusters=None, draws=2000, seed=0):
    """Estimate the mean of scores given as {experiment: [score of each seed]}."""
    return estimate_tasks({task: values}, clusters=clusters, draws=draws, seed=seed)


def estimate_tasks(tasks, *, clusters=None, draws=2000, seed=0):
    units, scores = [], []
    for task, experiments in tasks.items():
        for name, row in experiments.items():
            for number, score in enumerate(row):
                units.append(Unit(task, (clusters or {}).get(name, name), name, number))
                scores.append(score)
    made = Bootstrap(units, draws, seed)
    return made.regrets(np.array(scores, float).reshape(-1, 1))[0]


def numbered(values_ES):
    return {f"e{e:03}": list(row) for e, row in enumerate(values_ES)}


def width(interval):
    return interval.high - interval.low


def test_mean_weighs_experiments_alike_however_many_seeds():
    assert estimate({"a": [0.0], "b": [1.0, 1.0, 1.0]}).mean == 0.5


def test_mean_weighs_tasks_alike_however_many_experiments():
    many = numbered(np.full((30, 2), 0.8))
    interval = estimate_tasks({"large": many, "small": {"a": [0.0], "b": [0.4]}})
    assert interval.mean == pytest.approx((0.8 + 0.2) / 2) and interval.n == 62


def test_pooled_interval_resamples_each_task_by_itself():
    constant = {"low": {"a": [0.0], "b": [0.0]}, "high": {"c": [1.0], "d": [1.0]}}
    interval = estimate_tasks(constant)
    assert (interval.low, interval.high) == (0.5, 0.5)


@pytest.mark.parametrize("experiments", [6, 20])
def test_interval_covers_the_truth_about_as_often_as_it_says(experiments):
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        level_E = rng.uniform(size=experiments)
        values = level_E[:, None] * 0.5 + rng.uniform(0, 0.5, size=(experiments, 3))
        interval = estimate(numbered(values), draws=500, seed=trial)
        hits += interval.low <= 0.5 <= interval.high
    assert 0.9 <= hits / 200 <= 0.99


def test_clusters_cover_the_truth_where_single_experiments_would_not():
    rng = np.random.default_rng(0)
    clusters = {f"e{e:03}": f"c{e // 8}" for e in range(80)}
    hits, naive_hits = 0, 0
    for trial in range(150):
        level_C = rng.uniform(size=10)  # the 8 objectives of one run agree
        values = numbered(np.repeat(level_C, 8)[:, None] * 0.8 + rng.uniform(0, 0.2, (80, 1)))
        interval = estimate(values, clusters=clusters, draws=400, seed=trial)
        naive = estimate(values, draws=400, seed=trial)
        hits += interval.low <= 0.5 <= interval.high
        naive_hits += naive.low <= 0.5 <= naive.high
    assert hits / 150 >= 0.85 and naive_hits / 150 <= 0.7


def test_one_cluster_shows_the_spread_between_its_experiments():
    values = numbered([[0.1], [0.5], [0.9]])
    interval = estimate(values, clusters=dict.fromkeys(values, "one"))
    assert 0 < interval.low < 0.4 and 0.6 < interval.high < 1


def test_interval_is_deterministic_in_its_seed():
    values = numbered(np.random.default_rng(1).random((4, 3)))
    assert estimate(values, seed=5) == estimate(values, seed=5)
    assert estimate(values, seed=5) != estimate(values, seed=6)


def test_one_experiment_gives_the_whole_range():
    interval = estimate({"a": [0.2, 0.4]})
    assert (interval.low, interval.high, interval.experiments) == (0.0, 1.0, 1)


def test_a_task_with_one_experiment_leaves_its_share_of_the_pooled_interval_open():
    known = {"a": [0.5], "b": [0.5]}
    interval = estimate_tasks({"known": known, "unknown": {"c": [0.5]}})
    assert (interval.low, interval.mean, interval.high) == (0.25, 0.5, 0.75)


def test_one_seed_still_shows_the_spread_between_experiments():
    interval = estimate({"a": [0.1], "b": [0.5], "c": [0.9]})
    assert interval.low < 0.4 and interval.high > 0.6


def test_seeds_are_resampled_within_their_experiment():
    spread = estimate({"a": [0.0, 1.0], "b": [0.0, 1.0]})
    assert spread.low < 0.2 and spread.high > 0.8


def test_no_scores_have_no_mean():
    interval = estimate({})
    assert np.isnan(interval.mean) and interval.n == 0


def test_pairing_cancels_what_makes_an_experiment_hard():
    hard = np.linspace(0, 0.8, 6)[:, None]
    made = Bootstrap([Unit("t", f"e{e}", f"e{e}", 0) for e in range(6)])
    difference = made.differences(hard, hard + 0.1)[0]
    assert difference.mean == pytest.approx(-0.1) and difference.high < 0
    assert width(made.regrets(hard)[0]) > 0.3


def test_scores_side_by_side_are_estimated_as_alone():
    made = Bootstrap([Unit("t", f"e{e}", f"e{e}", 0) for e in range(6)])
    scores_UN = np.random.default_rng(0).random((6, 3))
    alone = [made.regrets(scores_UN[:, [n]])[0] for n in range(3)]
    for together, single in zip(made.regrets(scores_UN), alone, strict=True):
        assert (together.low, together.high) == pytest.approx((single.low, single.high))


def test_experiments_may_have_different_numbers_of_seeds():
    interval = estimate({"a": [0.0], "b": [1.0, 0.0, 0.5]})
    assert np.isfinite([interval.low, interval.high]).all()
