"""Numbers and configurations as the report writes them."""

import pytest

from autollm_jax.gym.spaces import Dimension, Space
from autollm_jax.report.formats import show_config, show_regret, show_value


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00034526, "3.5e-4"), (256, "256"), (0.5, "0.5"), (2e6, "2e6"), (True, "True"), (0.0, "0")],
)
def test_values_are_shown_plainly(value, text):
    assert show_value(value) == text


def test_no_regret_is_minus_nothing():
    assert (show_regret(-0.0001), show_regret(0.5, signed=True)) == ("0.000", "+0.500")


def test_a_configuration_is_written_in_the_spaces_order():
    space = Space((Dimension("width", "ordinal", (8, 16)), Dimension("mlp_ratio", "ordinal", (2,))))
    assert show_config(space, {"mlp_ratio": 2, "width": 16}) == "width 16, mlp ratio 2"


def test_a_mixture_is_written_by_its_heaviest_components():
    space = Space((Dimension("mix", "simplex", tuple("abcdef")),))
    weights = dict(zip("abcdef", (0.5, 0.2, 0.1, 0.1, 0.1, 0.0), strict=True))
    assert show_config(space, {"mix": weights}) == "a 50%, b 20%, c 10%, d 10% …"
