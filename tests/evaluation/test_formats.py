"""Numbers and configurations as the report writes them."""

import pytest

from autollm_jax.evaluation.formats import show_config, show_regret, show_value
from autollm_jax.gym.spaces import Dimension, Space

LAYERS = Space(tuple(Dimension(f"ratio.{n}", "ordinal", (2, 4)) for n in (1, 2, 3)))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00034526, "3.5e-4"), (256, "256"), (0.5, "0.5"), (2e6, "2e6"), (True, "True"), (0.0, "0")],
)
def test_values_are_shown_plainly(value, text):
    assert show_value(value) == text


def test_no_regret_is_minus_nothing():
    assert (show_regret(-0.0001), show_regret(0.5, signed=True)) == ("0.000", "+0.500")


def test_layers_that_agree_are_written_once():
    assert show_config(LAYERS, {"ratio.1": 4, "ratio.2": 4, "ratio.3": 4}) == "ratio 4"


def test_layers_that_differ_are_written_as_their_mean():
    text = show_config(LAYERS, {"ratio.1": 2, "ratio.2": 4, "ratio.3": 4})
    assert text == "ratio 3.3 on average"


def test_a_mixture_is_written_by_its_heaviest_components():
    space = Space((Dimension("mix", "simplex", tuple("abcdef")),))
    weights = dict(zip("abcdef", (0.5, 0.2, 0.1, 0.1, 0.1, 0.0), strict=True))
    assert show_config(space, {"mix": weights}) == "a 50%, b 20%, c 10%, d 10% …"
