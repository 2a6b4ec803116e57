"""Advice side by side, and the candidates that are offered from it."""

import numpy as np
import pytest

from autollm_jax.forecasts.advice import LEAST, MOST, advise, offer, trusts_of
from autollm_jax.forecasts.advisers import COUNSEL
from autollm_jax.forecasts.conditioning import Conditioned, condition
from autollm_jax.forecasts.drift import Drift
from autollm_jax.forecasts.nearest import NearestExperiment
from autollm_jax.gym.environment import Episode
from tests.families import decided, panel_of


@pytest.fixture
def episode(family):
    return Episode(family[3], tuple(family[:3]), 5)


@pytest.fixture
def panel(episode):
    return panel_of(episode.setting, episode.evidence)


def test_conditioning_is_that_of_the_joint_distribution():
    """Against the textbook formula, the level a common part of every covariance."""
    random = np.random.default_rng(0)
    root = random.normal(size=(6, 6))
    covariance_RR, mean_R = root @ root.T, random.normal(size=6)
    tried, scores_T = [4, 1], np.array([0.3, -0.2])
    mean, deviation = condition(
        mean_R, np.diag(covariance_RR), lambda rows: covariance_RR[rows], 0.01, tried, scores_T
    )
    joint_RR = covariance_RR + 4.0
    gain_RT = joint_RR[:, tried] @ np.linalg.inv(joint_RR[np.ix_(tried, tried)] + 0.01 * np.eye(2))
    np.testing.assert_allclose(mean, mean_R + gain_RT @ (scores_T - mean_R[tried]))
    variance_R = np.diag(joint_RR - gain_RT @ joint_RR[tried])
    np.testing.assert_allclose(deviation, np.sqrt(variance_R), rtol=1e-6)


def test_a_conditioned_forecast_starts_as_the_other_and_learns(episode, family):
    other = NearestExperiment(episode.setting, episode.evidence)
    learning = Conditioned(other)
    np.testing.assert_array_equal(learning.predict().mean_R, other.predict().mean_R)
    best = int(other.predict().mean_R.argmin())
    gap_R = other.predict().mean_R - family[3].outcomes.regrets_R
    worst = int(np.abs(gap_R - gap_R[best]).argmax())
    trials = [episode.exec_config(episode.setting.configurations[row]) for row in (worst, best)]
    scores_T = learning.scored(trials)[2]
    mean_R = learning.predict(trials).mean_R
    told = scores_T[0] - scores_T[1]
    expected = other.predict().mean_R[worst] - other.predict().mean_R[best]
    assert abs(mean_R[worst] - mean_R[best] - told) < abs(expected - told)
    np.testing.assert_array_equal(other.predict(trials).mean_R, other.predict().mean_R)


def test_a_drift_that_goes_on_is_extrapolated(bowl):
    """Optima move by one octave a level: the lines lead where the next one is."""
    cheap = [bowl(f"e{n}", 1e6 * 4**n, 1e8, (2.0 ** (-8 - n), 128)) for n in range(3)]
    target = bowl("t", 64e6, 1e8, (2.0**-11, 128), level="mid")
    mean_R = Drift(target.setting, cheap).predict().mean_R
    rate = target.configurations[int(mean_R.argmin())]["learning_rate"]
    nearest = NearestExperiment(target.setting, cheap).predict().mean_R
    of_nearest = target.configurations[int(nearest.argmin())]["learning_rate"]
    assert abs(np.log2(rate / 2.0**-11)) < abs(np.log2(of_nearest / 2.0**-11))


def test_what_does_not_repeat_is_not_extrapolated(bowl):
    """Optima go to and fro: the forecast stays with the mean of the tables."""
    places = (-8, -9.5, -8)
    cheap = [bowl(f"e{n}", 1e6 * 4**n, 1e8, (2.0**p, 128)) for n, p in enumerate(places)]
    target = bowl("t", 64e6, 1e8, (2.0**-8.5, 128), level="mid")
    mean_R = Drift(target.setting, cheap).predict().mean_R
    rate = target.configurations[int(mean_R.argmin())]["learning_rate"]
    assert 2.0**-9.5 < rate <= 2.0**-7.5


def test_every_adviser_is_asked(episode, panel):
    for _ in range(3):
        advice = advise(panel, episode.trials)
        assert advice.names == tuple(COUNSEL)
        shape = len(COUNSEL), len(episode.setting.cells)
        assert advice.mean_AR.shape == advice.deviation_AR.shape == shape
        assert (np.isfinite(advice.remaining_AR) == advice.open_R).all()
        assert np.isnan(advice.best_A).all() == (not episode.trials)
        assert (advice.surprise_A > 0).all() == (len(episode.trials) > 1)
        row = int(advice.remaining_AR.mean(0).argmin())
        episode.exec_config(episode.setting.configurations[row])


def test_no_adviser_counts_the_unknown_level_as_its_own_doubt(episode, panel):
    assert (advise(panel).deviation_AR < 1.5).all()


def test_trusted_are_each_adviser_all_but_each_and_all():
    assert trusts_of(3) == ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))
    assert trusts_of(2) == ((0,), (1,), (0, 1)) and trusts_of(1) == ((0,),)
    assert trusts_of(4)[4:] == ((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3), (0, 1, 2, 3))
    assert len(trusts_of(len(COUNSEL))) == 11


def test_a_panels_pick_is_what_its_members_expect_least_to_remain_after(episode, panel):
    while not episode.done:
        advice = advise(panel, episode.trials)
        made = offer(panel, advice, seed=len(episode.trials))
        firsts = []
        for group in made.trusts:
            total_R = sum(advice.remaining_AR[adviser] for adviser in group)
            firsts.append(int((total_R / len(group)).argmin()))
        assert [made.rows[pick] for pick in made.picks] == firsts
        assert len(set(firsts)) > 2
        assert LEAST <= len(made.rows) == len(set(made.rows)) <= MOST
        episode.exec_config(episode.setting.configurations[made.rows[0]])


def test_where_picks_are_few_the_default_and_the_counterpart_are_offered(episode, panel):
    made = offer(panel, advise(panel), seed=0)
    default, _ = episode.setting.match(episode.setting.default)
    assert len(set(made.picks)) + 2 <= len(made.rows) == LEAST
    assert {default, panel.counterpart} <= set(made.rows)


def test_the_order_is_shuffled_and_repeats_by_seed(panel):
    advice = advise(panel)
    orders = {offer(panel, advice, seed).rows for seed in range(8)}
    assert len(orders) == 8 and len({frozenset(order) for order in orders}) == 1
    assert offer(panel, advice, 3) == offer(panel, advice, 3)


def test_the_same_seed_orders_the_candidates_of_the_next_trial_otherwise(bowl):
    """Else a pick's letter would tell the pick."""
    small = bowl("o", 1e7, 2e8, (2.0**-8, 64), batch_sizes=(64,))
    episode = Episode(small, (), 5)
    places = []
    for _ in range(4):
        decision = decided(episode, seed=3)
        places.append(decision.offer.picks[-1])
        episode.exec_config(small.configurations[decision.offer.rows[places[-1]]])
    assert len(set(places)) > 1


def test_only_open_rows_are_offered(episode):
    while not episode.done:
        rows = decided(episode).offer.rows
        assert not {trial.row for trial in episode.trials} & set(rows)
        episode.exec_config(episode.setting.configurations[rows[0]])


def test_a_small_space_is_offered_whole_until_it_is_tried(bowl):
    small = dict(learning_rates=(2.0**-8,), batch_sizes=(64, 128))
    cheap, target = (bowl(n, p, 2e8, (2.0**-8, 64), **small) for n, p in (("a", 1e6), ("b", 1e7)))
    episode = Episode(target, (cheap,), 2)
    for left in (2, 1):
        rows = decided(episode).offer.rows
        assert len(rows) == left
        episode.exec_config(episode.setting.configurations[rows[0]])
    assert decided(episode) is None
