"""Advice side by side, and the candidates that are offered from it."""

import numpy as np
import pytest

from autollm_jax.forecasts.advice import OFFERED, advise, offer
from autollm_jax.forecasts.advisers import COUNSEL, counsel
from autollm_jax.forecasts.conditioning import Conditioned, condition
from autollm_jax.forecasts.drift import Drift
from autollm_jax.forecasts.nearest import NearestExperiment
from autollm_jax.gym.environment import Episode


@pytest.fixture
def episode(family):
    return Episode(family[3], tuple(family[:3]), 5)


@pytest.fixture
def panel(episode):
    return counsel(episode.setting, episode.evidence)


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


def test_the_offer_has_the_advisers_first_picks_and_the_default(episode, panel):
    advice = advise(panel)
    rows = offer(panel, advice, seed=0)
    assert len(rows) == len(set(rows)) == OFFERED
    default, _ = episode.setting.match(episode.setting.default)
    firsts = advice.remaining_AR.argmin(1).tolist()
    assert {*firsts, default, panel.counterpart} <= set(rows)


def test_the_order_is_shuffled_and_repeats_by_seed(panel):
    advice = advise(panel)
    orders = {offer(panel, advice, seed) for seed in range(8)}
    assert len(orders) == 8 and len({frozenset(order) for order in orders}) == 1
    assert offer(panel, advice, 3) == offer(panel, advice, 3)


def test_only_open_rows_are_offered(episode, panel):
    while not episode.done:
        rows = offer(panel, advise(panel, episode.trials), 0)
        assert not {trial.row for trial in episode.trials} & set(rows)
        episode.exec_config(episode.setting.configurations[rows[0]])


def test_a_small_space_is_offered_whole_until_it_is_tried(bowl):
    small = dict(learning_rates=(2.0**-8,), batch_sizes=(64, 128))
    cheap, target = (bowl(n, p, 2e8, (2.0**-8, 64), **small) for n, p in (("a", 1e6), ("b", 1e7)))
    episode = Episode(target, (cheap,), 2)
    panel = counsel(episode.setting, episode.evidence)
    for left in (2, 1, 0):
        rows = offer(panel, advise(panel, episode.trials), 0)
        assert len(rows) == left
        if rows:
            episode.exec_config(episode.setting.configurations[rows[0]])
