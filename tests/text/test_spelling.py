"""Numbers, mixtures and categories: how they are spelled, and read back."""

import json

import numpy as np
import pytest

from autollm_jax.gym.environment import Episode
from autollm_jax.gym.spaces import Dimension
from autollm_jax.text import spelling


@pytest.mark.parametrize(
    "number, text",
    [(2.0**-9.5, "1.4e-3"), (2.0**-9, "2.0e-3"), (128, "128"), (2048, "2048"), (0.1, "0.10"),
     (1.05e-3, "1.05e-3"), (1_048_576, "1.05e6"), (0, "0"), (-0.5, "-0.50")],
)  # fmt: skip
def test_numbers_are_spelled_briefly(number, text):
    assert spelling.spell_number(number) == text


@pytest.mark.parametrize(
    "number, text",
    [(429e6, "429M"), (8e9, "8.0B"), (11.4e9, "11.4B"), (1e11, "100B"), (999.7e6, "1.0B"),
     (512, "512"), (33_500, "33.5k"), (2e12, "2.0T")],
)  # fmt: skip
def test_sizes_have_three_digits(number, text):
    assert spelling.short(number) == text


def test_every_choice_reads_back_as_itself():
    for choices in [
        tuple(2.0 ** (n / 2) for n in range(-24, -10)),
        tuple(1.01**n * 3e-4 for n in range(12)),
        (22, 24, 1_048_576, 1_048_577),
    ]:
        dimension = Dimension("x", "log-ordinal", choices)
        names = list(spelling.choice_names(dimension).values())
        assert len(set(names)) == len(names)
        assert [dimension.canonical(json.loads(name)) for name in names] == list(choices)


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
        weights = dict(spelling.mixture(cells, "mixture", row))
        assert cells.match(spelling.read_config(cells, {"mixture": weights})) == (row, False)


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


def test_a_configuration_is_spelled_in_the_spaces_order(architectures):
    cells = architectures[0].cells
    assert spelling.spell_row(cells, 0) == "width 32 layers 2 mlp_ratio 2 bias true"
