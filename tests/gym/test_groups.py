"""The shorthand of per-layer dimensions."""

import numpy as np
import pytest

from autollm_jax.gym.cells import Cells
from autollm_jax.gym.groups import Group
from autollm_jax.gym.spaces import Dimension, InvalidConfiguration, Space

RATIOS = ("mlp_ratio.1", "mlp_ratio.2", "mlp_ratio.3")
SPACE = Space(
    (
        Dimension("layers", "ordinal", (1, 2, 3)),
        Dimension("mlp_ratio.1", "ordinal", (2, 4)),
        Dimension("mlp_ratio.2", "ordinal", (0, 2, 4)),
        Dimension("mlp_ratio.3", "ordinal", (0, 2, 4)),
        Dimension("bias", "categorical", (True, False)),
    ),
    {"mlp_ratio": Group("mlp_ratio", RATIOS, "layers")},
)


def full(layers, *ratios, bias=True):
    return {"layers": layers, **dict(zip(RATIOS, ratios, strict=True)), "bias": bias}


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"layers": 3, "mlp_ratio": 4, "bias": True}, full(3, 4, 4, 4)),
        ({"layers": 2, "mlp_ratio": 2, "bias": True}, full(2, 2, 2, 0)),
        ({"bias": True, "mlp_ratio": 2.01, "layers": 1}, full(1, 2, 0, 0)),
        ({"layers": 3, "mlp_ratio": 4, "mlp_ratio.2": 2, "bias": True}, full(3, 4, 2, 4)),
        (full(2, 4, 2, 0), full(2, 4, 2, 0)),
    ],
)
def test_the_stem_stands_for_the_members_in_use(short, long):
    assert SPACE.validate(short) == long
    assert list(SPACE.validate(short)) == list(SPACE.names)
    np.testing.assert_allclose(SPACE.to_unit(short), SPACE.to_unit(long), atol=0.01)


def test_shortening_inverts_where_the_members_in_use_agree():
    assert SPACE.shorten(full(2, 4, 4, 0)) == {"layers": 2, "mlp_ratio": 4, "bias": True}
    assert list(SPACE.shorten(full(3, 4, 4, 4))) == ["layers", "mlp_ratio", "bias"]
    for uneven in (full(2, 4, 2, 0), full(1, 4, 0, 2), {"layers": 1}, {}):
        assert SPACE.shorten(uneven) == uneven


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (full(2, 4, 4, 4), "mlp_ratio.3 is 4, but layers is 2; accepted are 0$"),
        (full(3, 4, 4, 0), "mlp_ratio.3 is 0, but layers is 3; accepted are 2, 4$"),
        ({"layers": 3, "mlp_ratio": 3, "bias": True}, "mlp_ratio.1 is 3; accepted are 2, 4"),
        ({"layers": 3, "mlp_ratio": "wide", "bias": True}, "'wide', not a number"),
        ({"mlp_ratio": 4, "bias": True}, "layers is missing"),
        ({"layers": None, "mlp_ratio": 4, "bias": True}, "layers is None, not a number"),
        (
            {"layers": 3, "bias": True},
            r"mlp_ratio is missing; accepted are exactly layers, mlp_ratio \(or mlp_ratio.1 to "
            r"mlp_ratio.3\), bias$",
        ),
        ({"layers": 3, "mlp_ratio.1": 2, "bias": True}, "mlp_ratio.2 is missing"),
        ({"layers": 1, "mlp_ratio": 4, "bias": True, "x": 1}, "no such name: 'x'"),
    ],
)
def test_what_is_wrong_is_named(config, reason):
    with pytest.raises(InvalidConfiguration, match=reason):
        SPACE.validate(config)


@pytest.mark.parametrize("layers", [0, -7, 2.4, 99, 10**400])
def test_a_shorthand_off_the_grid_is_no_crash(layers):
    short = {"layers": layers, "mlp_ratio": 4, "bias": True}
    with pytest.raises(InvalidConfiguration):
        SPACE.validate(short)


def test_a_group_counts_as_one_dimension_where_the_nearest_is_sought():
    layers = [Dimension(f"heads.{i}", "ordinal", (4, 8, 12)) for i in range(1, 10)]
    space = Space((Dimension("width", "ordinal", (64, 128, 192)), *layers))
    cells, _ = Cells.pool(
        space, [space.validate({"width": width, "heads": h}) for width, h in ((64, 8), (192, 12))]
    )
    # Per layer the second is nearer, by 9 x 1/4 against 1; as one dimension it is not.
    assert cells.match({"width": 64, "heads": 12}) == (0, True)
    assert space.distance_weights_D.tolist() == [1.0] + [1 / 9] * 9


def test_any_unit_coordinates_give_a_valid_configuration():
    for unit_D in np.random.default_rng(0).random((200, SPACE.width)):
        config = SPACE.from_unit(unit_D)
        assert SPACE.validate(config) == config


def test_json_round_trip_shows_the_groups():
    written = SPACE.to_json()
    assert written["groups"] == {"mlp_ratio": {"members": list(RATIOS), "count": "layers"}}
    assert Space.from_json(written) == SPACE
    assert hash(Space.from_json(written)) == hash(SPACE)


def test_numbered_dimensions_are_a_group_by_themselves():
    dimensions = [Dimension(f"heads.{i}", "ordinal", (4, 8)) for i in (1, 2)]
    lone = [Dimension(name, "ordinal", (1, 2)) for name in ("rope.1", "v.2", "v.3", "plain")]
    space = Space((*dimensions, *lone))
    assert list(space.groups) == ["heads"]
    assert Space.from_json({"dimensions": space.to_json()["dimensions"]}) == space
    rest = {"rope.1": 1, "v.2": 1, "v.3": 1, "plain": 1}
    assert space.validate({"heads": 8} | rest) == {"heads.1": 8, "heads.2": 8} | rest


@pytest.mark.parametrize(
    "group",
    [
        Group("layers", RATIOS),
        Group("r", ("mlp_ratio.1", "mlp_ratio.9")),
        Group("r", RATIOS, "depth"),
        Group("r", RATIOS, "bias"),
        Group("r", RATIOS, "mlp_ratio.1"),
        Group("r", (RATIOS[1], RATIOS[0], RATIOS[2]), "layers"),
        Group("r", ()),
        Group("r", (RATIOS[0], RATIOS[0])),
    ],
)
def test_an_impossible_group_is_refused(group):
    with pytest.raises(ValueError, match=f"group {group.name}"):
        Space(SPACE.dimensions, {group.name: group})


@pytest.mark.parametrize(
    "groups", [[], {"r": []}, {"r": {}}, {"r": {"members": "abc"}}, {"r": {"members": [1]}}]
)
def test_json_that_is_no_group_is_refused(groups):
    with pytest.raises(ValueError, match="groups are"):
        Space.from_json(SPACE.to_json() | {"groups": groups})
