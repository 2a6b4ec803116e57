"""Mixtures, per-layer values and categories: how they are spelled, and read back."""

import numpy as np
import pytest

from autollm_jax.curriculum.teacher import respond
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.spaces import Dimension
from autollm_jax.text import candidates, prompts, spelling
from autollm_jax.text.claims import check_claims
from autollm_jax.text.parsing import parse_action
from autollm_jax.text.playing import act
from tests.families import observed


def test_short_names_are_the_words_that_tell_components_apart():
    names = ("the_pile_arxiv", "the_pile_wikipedia_en", "the_pile_cc", "persona_if", "persona")
    short = spelling.short_names(Dimension("m", "simplex", names))
    assert list(short.values()) == ["arxiv", "wikipe", "thepilcc", "perif", "per"]


def test_names_that_cannot_be_shortened_stay_whole():
    names = ("a b", "ab", "c")
    assert list(spelling.short_names(Dimension("m", "simplex", names)).values()) == list(names)


def test_every_mixture_reads_back_as_itself(mixtures):
    cells = mixtures[0].cells
    for row in range(len(cells)):
        action = parse_action(spelling.exec_part(cells, row))
        assert cells.match(spelling.read_config(cells, action.config)) == (row, False)


def test_a_mixture_is_told_apart_by_its_heaviest_components(mixtures):
    cells = mixtures[0].cells
    row = int(np.argmax(cells.units_RD.max(1)))
    shown = spelling.mixture(cells, "mixture", row)
    assert len(shown) == 2 and shown[0][1] == round(100 * cells.units_RD[row].max())
    assert [w for _, w in shown] == sorted((w for _, w in shown), reverse=True)


def test_another_mixture_is_relative_weights_and_matched(mixtures):
    cells = mixtures[0].cells
    config = spelling.read_config(cells, {"mixture": {"source": 30, "old_books": 10}})
    assert config == {"mixture": {"source_code": 0.75, "old_books": 0.25}}
    assert cells.match(config).matched


@pytest.mark.parametrize(
    "weights", [{"nonsense": 1}, {"source": -1}, {"source": 0}, {"source": 1, "source_code": 1}, 3]
)
def test_what_is_no_mixture_is_left_for_the_gym_to_refuse(mixtures, weights):
    config = {"mixture": weights}
    assert spelling.read_config(mixtures[0].cells, config) == config
    assert not Episode(mixtures[0], (), 1).exec_config(config).valid


def test_a_configuration_is_spelled_in_the_spaces_order_and_read_back(architectures):
    cells = architectures[0].cells
    assert spelling.row_json(cells, 0) == '{"width": 32,"layers": 2,"mlp_ratio": 2,"bias": true}'
    assert spelling.spell_row(cells, 0) == "width 32 layers 2 mlp_ratio 2 bias true"
    action = parse_action(spelling.exec_part(cells, 0))
    assert cells.match(spelling.read_config(cells, action.config)) == (0, False)


def test_configurations_are_offered_with_their_size_under_a_limit(architectures):
    *cheap, target = architectures
    observation = observed(Episode(target, cheap, 2))
    best = candidates.list_candidates(observation)[0]
    size = spelling.short(target.parameters_R[best.row])
    text = prompts.describe(observation)
    assert f" A {candidates.percent(best.expected)} {size} at {best.text};" in text
    assert f"limit {spelling.short(target.limit['at_most'])};" in text and "at equal size" in text


@pytest.mark.parametrize("kind", ["mixtures", "architectures", "tunings"])
def test_every_statement_on_the_new_kinds_is_true(kind, request):
    *cheap, target = request.getfixturevalue(kind)
    episode = Episode(target, cheap, 4)
    checked = 0
    while not episode.done:
        observation = observed(episode)
        turn = respond(observation)
        claims = check_claims(parse_action(turn).think, observation)
        assert [c for c in claims if not c.true] == []
        checked += len(claims)
        assert not act(episode, turn).matched
    assert checked >= 12


def test_a_wrong_effect_is_caught(mixtures):
    *cheap, target = mixtures
    observation = observed(Episode(target, cheap, 2))
    think = parse_action(respond(observation)).think
    wrong = think.replace("helps", "hurts", 1)
    assert wrong != think
    assert not all(c.true for c in check_claims(wrong, observation))


def test_a_part_of_a_mixture_is_named_by_how_much_it_moves_the_outcome(mixtures):
    *cheap, target = mixtures
    text = prompts.describe(observed(Episode(target, cheap, 2)))
    assert "mixture: percent of genera source math wiki old;" in text
    assert "source helps" in text


def test_long_configurations_are_not_repeated(mixtures):
    *cheap, target = mixtures
    episode = Episode(target, cheap, 3)
    trial = act(episode, respond(observed(episode)))
    text = prompts.feedback(trial, observed(episode))
    assert text.startswith("trial 1 gives loss ")


def test_an_end_is_no_trial(mixtures):
    episode = Episode(mixtures[0], (), 3)
    assert act(episode, '<exec>{"done": true}</exec>') is None
    assert episode.done and not episode.trials


def test_texts_estimates_are_of_the_order_of_their_tokens():
    assert prompts.estimate('{"code": 46,"web": 12}') == 9
    assert prompts.estimate("<think>more tokens</think>") == 5
