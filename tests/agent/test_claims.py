"""What an audit counts, besides what `check_claims` finds (tested with the simulation)."""

import pytest

from autollm_jax.agent.claims import audit
from autollm_jax.agent.parsing import parse_action
from autollm_jax.agent.simulation import respond
from autollm_jax.gym.environment import Episode


@pytest.fixture
def observation(family):
    return Episode(family[-1], family[:-1], 5).tell()


@pytest.fixture
def think(observation):
    return parse_action(respond(observation)).think


def test_the_researchers_thinking_is_true_and_understood_whole(think, observation):
    found = audit(think, observation)
    assert found.n == found.true > 3 and found.numbers > 3
    assert found.unchecked == found.unread == 0


def test_a_false_trend_is_a_claim_that_is_not_true(think, observation):
    found = audit(think.replace("falls with", "rises with"), observation)
    assert found.true < found.n == audit(think, observation).n


def test_a_number_in_no_claim_is_unchecked(think, observation):
    before = audit(think, observation)
    found = audit(f"so 3.5 or 1e-4 or 7k at w16. {think}", observation)
    assert found.numbers == before.numbers + 3 and found.unchecked == 3
    assert found.n == before.n


@pytest.mark.parametrize("text", ["", "a guess", "lowest Z", "<<>> 12 %%"])
def test_text_that_says_nothing_is_unread(text, observation):
    found = audit(text, observation)
    assert found.n == found.true == 0 and found.unread == found.words


def test_when_every_cell_is_tried_a_lowest_one_is_false(bowl):
    one = bowl("m", 1e7, 2e8, (2.0**-8, 64), learning_rates=(2.0**-8,), batch_sizes=(64, 128))
    episode = Episode(one, (), 5)
    for config in one.configurations:
        episode.exec_config(config)
    found = audit("lowest A 10%", episode.tell())
    assert (found.n, found.true) == (1, 0)
