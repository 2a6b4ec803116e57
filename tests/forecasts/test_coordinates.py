"""Configurations placed on another space's scale, and methods on spaces that differ."""

import numpy as np
import pytest

from autollm_jax.baselines import BASELINES, Problem
from autollm_jax.forecasts import coordinates
from autollm_jax.forecasts.advisers import forecast
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.experiments import Fidelity, make_experiment
from autollm_jax.gym.spaces import Dimension, Space

LISTED = Dimension("rate", "log-ordinal", (1e-4, 1e-3, 1e-2))
FREE = Dimension("rate", "log-continuous", bounds=(1e-4, 1e-2))
DEPTH = Dimension("depth", "ordinal", (2, 4, 8))
MIX = Dimension("mix", "simplex", ("web", "code"))
OTHER_MIX = Dimension("mix", "simplex", ("code", "books", "web"))


def experiment(name, dimensions, level="low", parameters=1e6, rows=25):
    space = Space(tuple(dimensions))
    random = np.random.default_rng(len(name))
    configs = [space.from_unit(unit_D) for unit_D in random.random((rows, space.width))]
    losses = [
        2
        + np.log10(c.get("rate", 1e-3) / 2e-3) ** 2
        + c.get("mix", {}).get("web", 0)
        + 0.01 * c.get("layers", 0)
        for c in configs
    ]
    return make_experiment(
        source="test", task="pretraining", name=name, space=space,
        fidelity=Fidelity(level, parameters, 1e9, 6e9 * parameters), configurations=configs,
        outcomes=losses, default=configs[0], default_origin="the tests",
    )  # fmt: skip


@pytest.mark.parametrize(("source", "target"), [(LISTED, FREE), (FREE, LISTED), (FREE, FREE)])
def test_listed_and_continuous_numbers_share_a_scale(source, target):
    unit = coordinates.project([{"rate": 1e-3}, {"rate": 1e-2}], Space((source,)), Space((target,)))
    np.testing.assert_allclose(unit, [[0.5], [1.0]])


def test_a_number_keeps_its_meaning_on_other_bounds():
    wide = Space((Dimension("rate", "log-continuous", bounds=(1e-5, 1e-1)),))
    unit = coordinates.project([{"rate": 1e-5}], wide, Space((FREE,)))
    np.testing.assert_allclose(unit, [[-0.5]])


def test_what_has_no_logarithm_stands_at_the_lowest_number():
    zero = Space((Dimension("rate", "ordinal", (0.0, 1e-3)),))
    unit = coordinates.project([{"rate": 0.0}, {"rate": 1e-3}], zero, Space((FREE,)))
    np.testing.assert_allclose(unit, [[0.0], [0.5]])


def test_a_dimension_that_the_evidence_lacks_stands_at_the_targets_default():
    low, high = Space((FREE,)), Space((FREE, DEPTH, MIX))
    default = {"rate": 1e-4, "depth": 8, "mix": {"web": 0.75, "code": 0.25}}
    unit = coordinates.project([{"rate": 1e-3}], low, high, default)
    np.testing.assert_allclose(unit, [[0.5, 1.0, 0.75, 0.25]])
    assert coordinates.lacks_dimensions(low, high) and not coordinates.lacks_dimensions(high, low)


def test_one_of_another_kind_counts_as_lacking():
    low = Space((Dimension("depth", "categorical", ("few", "many")),))
    unit = coordinates.project([{"depth": "many"}], low, Space((DEPTH,)), {"depth": 2})
    np.testing.assert_allclose(unit, [[0.0]])
    scalar = Space((Dimension("mix", "ordinal", (1, 2)),))
    unit = coordinates.project(
        [{"mix": 1}], scalar, Space((MIX,)), {"mix": {"web": 0.5, "code": 0.5}}
    )
    np.testing.assert_allclose(unit, [[0.5, 0.5]])


PAIRS = {
    "continuous": ((FREE, DEPTH), (FREE, DEPTH)),
    "listed below, continuous above": ((LISTED, DEPTH), (FREE, DEPTH)),
    "continuous below, listed above": ((FREE, DEPTH), (LISTED, DEPTH)),
    "a dimension more": ((FREE,), (FREE, DEPTH, Dimension("bias", "categorical", (True, False)))),
    "a dimension less": ((FREE, DEPTH), (FREE,)),
    "other components": ((FREE, MIX), (FREE, OTHER_MIX)),
    "nothing shared": ((MIX,), (FREE, DEPTH)),
}


# As HW-GPT's scales: more layers, and with them more dimensions.
SCALE_S, SCALE_M = (
    (
        Dimension("layers", "ordinal", layers),
        *(Dimension(f"heads_{n}", "ordinal", (4, 8, 12)) for n in range(max(layers))),
        Dimension("bias", "categorical", (True, False)),
    )
    for layers in ((2, 3, 4), (5, 6, 7))
)
# Evidence whose experiments differ among themselves, and a target that differs from each.
FAMILIES = {
    "low and mid of a scale": ((SCALE_S, SCALE_S), SCALE_M),
    "one lacks a dimension": (((FREE, DEPTH), (FREE,)), (FREE, DEPTH)),
    "listed and continuous": (((LISTED, DEPTH), (FREE, DEPTH)), (FREE, DEPTH)),
    "other components each": (((FREE, MIX), (FREE, OTHER_MIX)), (FREE, MIX, DEPTH)),
    "nothing in common": (((MIX,), (DEPTH,)), (FREE, DEPTH, MIX)),
    "kinds exchanged": (((Dimension("depth", "categorical", ("few", "many")), FREE), (FREE,)),
                        (FREE, DEPTH)),
}  # fmt: skip


def family(name):
    low, target = FAMILIES[name]
    evidence = (experiment("small", low[0]), experiment("medium", low[1], parameters=2e6))
    return evidence, experiment("large", target, "mid", 1e7)


def play(method, evidence, target):
    episode = Episode(target, evidence, 3)
    player = method(Problem(episode.setting, evidence, 3), 0)
    while not episode.done:
        player.tell(episode.exec_config(player.ask()))
    assert all(trial.valid and not trial.matched for trial in episode.trials)
    assert len({trial.row for trial in episode.trials}) == 3


@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize("pair", PAIRS)
def test_every_method_plays_where_spaces_differ(method, pair):
    below, above = PAIRS[pair]
    evidence = (experiment("small", below), experiment("medium", below, parameters=2e6))
    play(BASELINES[method], evidence, experiment("large", above, "mid", 1e7))


@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_method_plays_where_the_evidence_differs_among_itself(method, name):
    play(BASELINES[method], *family(name))


@pytest.mark.parametrize("adviser", ["own", "panel"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_adviser_forecasts_where_spaces_differ(adviser, name):
    evidence, target = family(name)
    seen = forecast(target.setting, evidence, adviser)
    episode = Episode(target, evidence, 3)
    while not episode.done:
        expected_R = seen.expected_regrets(episode.trials)
        episode.exec_config(target.configurations[int(expected_R.argmin())])
    assert np.isfinite(seen.predict(episode.trials).mean_R).all()
    assert np.isfinite(seen.predict_at([target.default], episode.trials).outcomes()[0]).all()
