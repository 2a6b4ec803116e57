import numpy as np
import pytest

from autollm_jax.curriculum.lookahead import Lookahead, worth
from autollm_jax.gym.environment import Episode
from tests.families import decided, panel_of

BUDGET = 4


@pytest.fixture
def known(family):
    """A target with cheaper evidence, and all advisers together."""
    target, evidence = family[3], tuple(family[:3])
    return target, panel_of(target.setting, evidence)


def started(known, *rows):
    target, panel = known
    episode = Episode(target, panel.evidence, BUDGET)
    for row in rows:
        episode.exec_config(episode.setting.configurations[row])
    return episode


def played_on(known, *rows):
    """Let all advisers together finish an episode; return what the trials after these rows earn."""
    episode = started(known, *rows)
    while not episode.done:
        offer = decided(episode).offer
        row = offer.rows[offer.picks[-1]]
        episode.exec_config(episode.setting.configurations[row])
    return episode.rewards


@pytest.mark.parametrize("tried", [(), (5,), (70, 5, 0)])
def test_a_return_is_that_of_playing_all_advisers_picks_to_the_end(known, tried):
    lookahead, episode = Lookahead(known[1]), started(known, *tried)
    rows = [1, 33, 40, 33, 60]
    expected = [sum(played_on(known, *tried, row)[len(tried) :]) for row in rows]
    for _ in range(2):  # what is remembered is what was found
        np.testing.assert_allclose(lookahead.returns_of(episode, rows), expected, atol=1e-12)
    assert len(episode.trials) == len(tried) and np.ptp(expected) > 0.01


def test_the_last_trial_earns_its_reward_alone(known):
    episode, rows = started(known, 5, 0, 70), [33, 40, 76, 60]
    last = Lookahead(known[1]).returns_of(episode, rows)
    np.testing.assert_allclose(last, episode.rewards_of(rows), atol=1e-12)
    first = started(known)
    assert (Lookahead(known[1]).returns_of(first, rows) > first.rewards_of(rows) + 0.01).any()


def test_an_episode_without_open_rows_ends_early(bowl):
    rates = {"learning_rates": (2.0**-9, 2.0**-7), "batch_sizes": (64,)}
    small, target = (bowl(str(n), n * 1e7, 2e8, (2.0**-9, 64), **rates) for n in (1, 2))
    panel = panel_of(target.setting, (small,))
    episode = Episode(target, (small,), BUDGET)
    # The better row first earns all from the first trial on, the other from the second.
    found = Lookahead(panel).returns_of(episode, (0, 1))
    np.testing.assert_allclose(found, [1.0, (BUDGET - 1) / BUDGET])


def test_a_panel_is_worth_what_its_pick_brings(known):
    episode = started(known, 5)
    offer, lookahead = decided(episode).offer, Lookahead(known[1])
    rows = [offer.rows[pick] for pick in offer.picks]
    np.testing.assert_array_equal(
        worth(episode, offer, lookahead), lookahead.returns_of(episode, rows)
    )
    np.testing.assert_array_equal(worth(episode, offer, None), episode.rewards_of(rows))
