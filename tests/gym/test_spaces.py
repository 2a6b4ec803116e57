import math

import numpy as np
import pytest

from autollm_jax.gym.spaces import Dimension, InvalidConfiguration, Space

MIXED = Space(
    (
        Dimension("learning_rate", "log-ordinal", (0.001, 0.01, 0.1)),
        Dimension("layers", "ordinal", (10, 11, 12)),
        Dimension("optimizer", "categorical", ("adam", "sgd")),
        Dimension("mixture", "simplex", ("web", "code")),
    )
)
CONTINUOUS = Space(
    (
        Dimension("learning_rate", "log-continuous", bounds=(1e-4, 1e-2)),
        Dimension("dropout", "continuous", bounds=(0, 0.5)),
        Dimension("layers", "ordinal", (2, 4)),
    )
)
CONFIG = {
    "learning_rate": 0.01,
    "layers": 11,
    "optimizer": "sgd",
    "mixture": {"web": 0.25, "code": 0.75},
}


def test_unit_coordinates_of_each_kind():
    np.testing.assert_allclose(MIXED.to_unit(CONFIG), [0.5, 0.5, 0, 1, 0.25, 0.75])


def test_from_unit_inverts_to_unit():
    assert MIXED.from_unit(MIXED.to_unit(CONFIG)) == CONFIG


def test_json_round_trip():
    assert Space.from_json(MIXED.to_json()) == MIXED


@pytest.mark.parametrize("spelling", [0.01, 0.0099, 0.0104, 1e-2, np.float32(0.01)])
def test_a_number_within_rounding_is_the_choice(spelling):
    assert MIXED.validate(CONFIG | {"learning_rate": spelling})["learning_rate"] == 0.01


def test_rounding_takes_the_nearest_of_close_choices():
    space = Space((Dimension("batch_size", "log-ordinal", (704, 736)),))
    assert space.validate({"batch_size": 728})["batch_size"] == 736


def test_validation_orders_names_and_keeps_the_choices_type():
    config = MIXED.validate(dict(reversed((CONFIG | {"layers": 11.0}).items())))
    assert list(config) == list(MIXED.names)
    assert isinstance(config["layers"], int)


def test_weights_that_nearly_sum_to_one_are_normalised():
    config = MIXED.validate(CONFIG | {"mixture": {"web": 0.251, "code": 0.75}})
    assert math.isclose(sum(config["mixture"].values()), 1.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"learning_rate": 0.02}, "learning_rate is 0.02; accepted are 0.001, 0.01, 0.1"),
        ({"learning_rate": "0.01"}, "learning_rate is '0.01', not a number"),
        ({"learning_rate": math.nan}, "not a finite number"),
        ({"learning_rate": 10**400}, "an integer of 1329 bits, not a finite number"),
        ({"learning_rate": 0}, "must be positive"),
        ({"layers": 10.4}, "layers is 10.4"),
        ({"layers": True}, "not a number"),
        ({"layers": [10]}, "layers is a list"),
        ({"optimizer": "lion"}, "accepted are adam, sgd"),
        ({"mixture": 0.5}, "not a mapping"),
        ({"mixture": {"web": 0.5}}, "sum to 0.5"),
        ({"mixture": {"web": -1, "code": 2}}, "0 or more"),
        ({"mixture": {"books": 1}}, "no component 'books'"),
        ({"width": 3}, "no such name: 'width'"),
    ],
)
def test_what_is_wrong_is_named(change, reason):
    with pytest.raises(InvalidConfiguration, match=reason):
        MIXED.validate(CONFIG | change)


@pytest.mark.parametrize("config", [None, 3, "lr", [], {}, {"learning_rate": 0.01}, {1: 2}])
def test_what_is_no_configuration_is_refused(config):
    with pytest.raises(InvalidConfiguration):
        MIXED.to_unit(config)


def test_a_number_off_the_grid_has_a_place_inside_the_cube():
    units = [MIXED.to_unit(CONFIG | {"learning_rate": lr})[0] for lr in (1e-9, 0.0316, 5.0)]
    np.testing.assert_allclose(units, [0, 0.75, 1], atol=1e-3)


def test_continuous_numbers_lie_between_their_bounds_on_their_scale():
    config = {"learning_rate": 1e-3, "dropout": 0.1, "layers": 4}
    np.testing.assert_allclose(CONTINUOUS.to_unit(config), [0.5, 0.2, 1])
    assert CONTINUOUS.validate(config | {"dropout": np.float32(0.25)})["dropout"] == 0.25
    back = CONTINUOUS.from_unit(CONTINUOUS.to_unit(config))
    assert back == pytest.approx(config)
    assert CONTINUOUS.validate(back) == back
    ends = CONTINUOUS.from_unit(np.array([-3.0, 7.0, 0.0]))
    assert ends == {"learning_rate": 1e-4, "dropout": 0.5, "layers": 2}


@pytest.mark.parametrize(("outside", "bound"), [(1.003e-2, 1e-2), (0.998e-4, 1e-4)])
def test_a_number_a_hair_outside_its_bounds_is_the_bound(outside, bound):
    config = {"learning_rate": outside, "dropout": 0, "layers": 2}
    assert CONTINUOUS.validate(config)["learning_rate"] == bound


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"learning_rate": 0.011}, "learning_rate is 0.011; accepted are numbers from 0.0001 to"),
        ({"learning_rate": -1}, "learning_rate is -1, but it must be positive"),
        ({"dropout": 0.51}, "dropout is 0.51; accepted are numbers from 0 to 0.5$"),
        ({"dropout": -0.01}, "dropout is -0.01; accepted are"),
        ({"dropout": math.nan}, "not a finite number"),
        ({"dropout": "much"}, "dropout is 'much', not a number"),
    ],
)
def test_a_number_farther_outside_is_refused_by_its_bounds(change, reason):
    config = {"learning_rate": 1e-3, "dropout": 0.1, "layers": 2}
    with pytest.raises(InvalidConfiguration, match=reason):
        CONTINUOUS.validate(config | change)


def test_continuous_dimensions_are_written_with_bounds():
    written = CONTINUOUS.to_json()
    assert written["dimensions"][1] == {
        "name": "dropout", "kind": "continuous", "bounds": [0.0, 0.5]
    }  # fmt: skip
    assert Space.from_json(written) == CONTINUOUS


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("continuous", {}),
        ("continuous", {"choices": (1, 2)}),
        ("continuous", {"bounds": (1,)}),
        ("continuous", {"bounds": (1, 1)}),
        ("continuous", {"bounds": (2, 1)}),
        ("continuous", {"bounds": (0, math.inf)}),
        ("log-continuous", {"bounds": (0, 1)}),
        ("ordinal", {"choices": (1, 2), "bounds": (1, 2)}),
    ],
)
def test_impossible_bounds_are_refused(kind, fields):
    with pytest.raises(ValueError, match="^(x|a bound of x)"):
        Dimension("x", kind, **fields)


@pytest.mark.parametrize(
    ("kind", "choices"),
    [
        ("linear", (1, 2)),
        ("ordinal", ()),
        ("ordinal", (1, 1)),
        ("ordinal", (2, 1)),
        ("ordinal", ("a", "b")),
        ("log-ordinal", (0, 1)),
    ],
)
def test_an_impossible_dimension_is_refused(kind, choices):
    with pytest.raises(ValueError):
        Dimension("x", kind, choices)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"dimensions": "abc"},
        {"dimensions": [{"name": "x"}]},
        {"dimensions": []},
        MIXED.to_json() | {"groups": {}},
        {"dimensions": [{"name": "x", "kind": "continuous", "choices": [1, 2]}]},
        {"dimensions": [{"name": "x", "kind": "ordinal", "bounds": [1, 2]}]},
        {"dimensions": [{"name": "x", "kind": [], "choices": [1, 2]}]},
    ],
)
def test_json_that_is_no_space_is_refused(value):
    with pytest.raises(ValueError):
        Space.from_json(value)
