"""Numbers in all their spellings."""

import math

import pytest

from autollm_jax.advise.values import has_decimal_commas, is_missing, number


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("3e-4", 3e-4), ("1,000", 1000), ("1_000", 1000), ("12,345,678.5", 12345678.5), (".5", 0.5),
        ("7B", 7e9), ("7 B params", 7e9), ("300k tokens", 3e5), ("1.5T", 1.5e12), ("5%", 0.05),
        ("2^-9", 2**-9), ("3x10^-4", 3e-4), ("10**-3", 1e-3), ("12 h", 12), ("90 min", 1.5),
        ("1:30:00", 1.5), ("2 days, 0:00:00", 48), ("−3", -3), ("~4", 4), (True, None), (5, 5),
        ("adam", None), ("3 cats", None), ("2026-11-28", None),
    ],
)  # fmt: skip
def test_a_number_is_read_in_every_spelling(cell, value):
    assert number(cell) == (value if value is None else pytest.approx(value))


def test_what_is_undefined_or_infinite_is_no_missing_value():
    assert math.isnan(number("NaN")) and number("-inf") == -math.inf
    assert is_missing("") and is_missing("N/A") and is_missing(None)
    assert not is_missing("nan") and not is_missing(0)


def test_commas_stand_before_decimals_or_between_thousands():
    assert has_decimal_commas(["0,5", "1,25"]) and has_decimal_commas(["0,001"])
    assert not has_decimal_commas(["1,000", "12,000"]) and not has_decimal_commas(["1.5"])
    assert number("0,001", decimal_comma=True) == 0.001
    assert number("1.234,5", decimal_comma=True) == 1234.5
