"""What an audit counts, besides what `check_claims` finds (tested with the simulation)."""

import dataclasses
import re

import pytest

from autollm_jax.curriculum.teacher import respond
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.outcomes import Objective
from autollm_jax.text import prompts, statements
from autollm_jax.text.claims import audit, check_claims
from autollm_jax.text.parsing import parse_action
from autollm_jax.text.playing import act
from tests.families import observed


@pytest.fixture
def observation(family):
    return observed(Episode(family[-1], family[:-1], 5))


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
    found = audit("lowest A 10%", observed(episode))
    assert (found.n, found.true) == (1, 0)


@pytest.mark.parametrize(
    ("module", "function", "wrong"),
    [
        (statements, "slope_text", lambda slope: "9.9"),
        (statements, "law_value", lambda value: "7.7e-7"),
        (statements, "sizes_text", lambda seen: "target has 9.0 x parameters of the nearest"),
        (prompts, "verdict", lambda trial, observation: "worse"),
        (prompts, "best_text", lambda observation: "trial 4"),
        (prompts, "size", lambda fidelity: "123M 456M"),
    ],
)
def test_what_a_wrong_prompt_says_is_false(monkeypatch, family, module, function, wrong):
    """The audit reads the tables, not the functions that write the prompt."""

    def states():
        episode = Episode(family[-1], family[:-1], 2)
        yield observed(episode)
        act(episode, respond(observed(episode)))
        yield observed(episode)

    def false():
        found = [audit(parse_action(respond(o)).think, o) for o in states()]
        return sum(a.n - a.true for a in found)

    assert false() == 0
    monkeypatch.setattr(module, function, wrong)
    assert false() > 0


def test_an_effect_of_another_size_or_direction_is_false(mixtures):
    *cheaper, target = mixtures
    observation = observed(Episode(target, cheaper, 5))
    think = parse_action(respond(observation)).think
    found = re.search(r"(\S+) (helps|hurts) (\d+\.?\d*)%", think)
    assert found is not None
    flipped = {"helps": "hurts", "hurts": "helps"}[found[2]]
    for other in (
        f"{found[1]} {flipped} {found[3]}%",
        f"{found[1]} {found[2]} {float(found[3]) + 2}%",
    ):
        said = audit(think.replace(found[0], other), observation)
        assert said.true == said.n - 1


def test_more_than_the_size_behind_the_nearest_is_false(observation, think):
    told = re.search(r"experiment: ([^;]*?) at ", think)[1]
    for other in (f"{told} limit 7k", f"{told} score", told.split()[0]):
        said = audit(think.replace(f"{told} at", f"{other} at"), observation)
        assert said.true == said.n - 1


def test_an_objective_of_several_words_is_read(family):
    """The nearest experiment's objective stands between its size and its configuration."""
    evidence = [dataclasses.replace(family[0], objective=Objective("loss on web"))]
    observation = observed(Episode(family[3], evidence, 2))
    think = parse_action(respond(observation)).think
    assert " loss on web at " in think
    assert all(claim.true for claim in check_claims(think, observation))
    wrong = check_claims(think.replace(" loss on web at ", " score at "), observation)
    assert not all(claim.true for claim in wrong)
