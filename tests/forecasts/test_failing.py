"""Advisers that are wrong on purpose."""

import numpy as np
import pytest

from autollm_jax.forecasts.advice import advise
from autollm_jax.forecasts.advisers import COUNSEL, counsel, forecast
from autollm_jax.forecasts.failing import FAILURES, Failing
from autollm_jax.gym.environment import Episode


@pytest.fixture
def game(family):
    *cheap, target = family
    return target, tuple(cheap)


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_adviser_is_wrong_where_the_right_one_is_not(game, failure):
    target, cheap = game
    right = forecast(target.setting, cheap, "own")
    wrong = Failing(right, failure)
    regrets_R = target.outcomes.regrets_R
    truth, error = (np.corrcoef(f.scored()[0], regrets_R)[0, 1] for f in (right, wrong))
    assert error < truth - 0.1
    again = Failing(forecast(target.setting, cheap, "own"), failure)
    np.testing.assert_array_equal(again.scored()[0], wrong.scored()[0])


def test_reversed_means_the_best_is_the_worst(game):
    target, cheap = game
    right = forecast(target.setting, cheap, "own")
    mean_R, wrong_R = right.scored()[0], Failing(right, "reversed").scored()[0]
    assert wrong_R.argmax() == mean_R.argmin() and wrong_R.argmin() == mean_R.argmax()
    assert np.ptp(wrong_R) == pytest.approx(np.ptp(mean_R))


def test_one_adviser_of_a_counsel_fails_and_the_trials_tell(game):
    target, cheap = game
    honest, misled = (counsel(target.setting, cheap, failing=f) for f in ("", "drift:reversed"))
    place = list(COUNSEL).index("drift")
    for number, (a, b) in enumerate(zip(honest.members, misled.members, strict=True)):
        same = np.array_equal(a.scored()[0], b.scored()[0])
        assert same == (number != place)
    episode = Episode(target, cheap, budget=3)
    for row in (0, len(target.configurations) // 2, -1):
        episode.exec_config(target.configurations[row])
    before_A, off_A = (advise(panel, episode.trials).surprise_A for panel in (honest, misled))
    assert off_A[place] > 2 * before_A[place]
    np.testing.assert_array_equal(np.delete(off_A, place), np.delete(before_A, place))
