"""Stress changes the evidence in the way it says, and nothing else."""

import numpy as np
import pytest

from autollm_jax.errors import UserError
from autollm_jax.gym.experiments import Fidelity, make_experiment
from autollm_jax.gym.outcomes import Objective
from autollm_jax.gym.renaming import renamed_alike
from autollm_jax.gym.spaces import Dimension, Space
from autollm_jax.gym.splits import split
from autollm_jax.gym.stress import KINDS, Stress, axes_by_importance, distort
from tests import differing

RATES, BATCHES = (0.001, 0.002, 0.004, 0.008, 0.016), (32, 64, 128)
GRID = Space(
    (
        Dimension("learning_rate", "log-ordinal", RATES),
        Dimension("batch_size", "log-ordinal", BATCHES),
    )
)
PARTS = ("web", "code", "wiki")
MIXTURE = Space((Dimension("mixture", "simplex", PARTS),))


def made(name, level, space, cells, outcomes, task="pretraining", size=1e6, **fields):
    return make_experiment(
        source="made", task=task, name=name, space=space,
        fidelity=Fidelity(level, size, 1e8, 6e8 * size),
        configurations=cells, outcomes=list(outcomes), default=cells[0],
        default_origin="the tests", **fields,
    )  # fmt: skip


def grid(name, level, **fields):
    """The learning rate matters most, and is best at its lowest."""
    cells = [{"learning_rate": r, "batch_size": b} for r in RATES for b in BATCHES]
    outcomes = [3.0 + RATES.index(c["learning_rate"]) + 0.1 * (c["batch_size"] == 32)
                for c in cells]  # fmt: skip
    return made(name, level, space=GRID, cells=cells, outcomes=outcomes, **fields)


def mixture(name, level, **fields):
    """Code helps, wiki hurts."""
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 30).tolist()
    cells = [{"mixture": dict(zip(PARTS, w, strict=True))} for w in weights]
    outcomes = [3.0 - w[1] + w[2] for w in weights]
    return made(name, level, MIXTURE, cells, outcomes, task="data_mixture", **fields)


@pytest.fixture
def whole():
    return split(
        [make(f"{make.__name__}_{level}", level) for make in (grid, mixture)
         for level in ("low", "mid")],
        "dev",
    )  # fmt: skip


def cheap(found, task="pretraining"):
    (experiment,) = (e for e in found.training if e.task == task)
    return experiment


@pytest.mark.parametrize("kind", KINDS)
def test_targets_keep_their_outcomes(whole, kind):
    for before, after in zip(whole.held_out, distort(whole, Stress(kind)).held_out, strict=True):
        assert after.id == before.id
        assert (after.outcomes.values_R == before.outcomes.values_R).all()


def test_none_is_the_split_itself(whole):
    assert distort(whole, Stress()) is whole and Stress().label == ""


def test_thinning_keeps_a_share_of_the_rows_and_their_outcomes(whole):
    before, after = cheap(whole), cheap(distort(whole, Stress("thin", keep=0.4)))
    assert len(after.cells) == 6
    for config, outcome in zip(after.configurations, after.outcomes.values_R, strict=True):
        assert before.lookup(config) == outcome
    assert (
        after.outcomes.optimum == after.outcomes.values_R.min()
        and after.outcomes.median == np.median(after.outcomes.values_R)
    )


def test_thinning_is_drawn_by_its_seed(whole):
    rows = [cheap(distort(whole, Stress("thin", seed=s))).configurations for s in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


def test_objectives_of_the_same_runs_are_thinned_alike():
    cells = [{"learning_rate": r, "batch_size": b} for r in RATES for b in BATCHES]
    one = made("one", "low", GRID, cells, range(15), facts={"objective": "a"}, objective_metric="a")
    other = {"name": "two", "facts": {"objective": "b"}, "objective": Objective("b")}
    both = [one, type(one)(**{**vars_of(one), **other})]
    thinned = distort(split(both, "dev"), Stress("thin")).training
    assert thinned[0].cells is thinned[1].cells and len(thinned[0].cells) == 5


def vars_of(experiment):
    return {name: getattr(experiment, name) for name in type(experiment).__dataclass_fields__}


@pytest.mark.parametrize("ok", [1, 2, 14])
def test_a_thinned_experiment_can_be_scored(ok):
    """One ok run is kept at least, and two different ones where there are two."""
    cells = [{"learning_rate": r, "batch_size": b} for r in RATES for b in BATCHES]
    status = ["ok"] * ok + ["diverged"] * (15 - ok)
    before = split([made("x", "low", GRID, cells, range(15), status=status)], "dev")
    for seed in range(10):
        (after,) = distort(before, Stress("thin", keep=0.01, seed=seed)).training
        assert after.outcomes.optimum <= after.outcomes.median and (
            after.outcomes.optimum < after.outcomes.median or ok == 1
        )


def test_reversing_moves_the_optimum_to_the_other_end_of_the_axis_that_matters_most(whole):
    before, after = cheap(whole), cheap(distort(whole, Stress("reverse")))
    assert axes_by_importance([before]) == ["learning_rate", "batch_size"]
    assert before.configurations[before.outcomes.best_row]["learning_rate"] == RATES[0]
    assert after.configurations[after.outcomes.best_row]["learning_rate"] == RATES[-1]
    flipped = {"learning_rate": RATES[1], "batch_size": 64}
    assert after.lookup(flipped) == before.lookup({**flipped, "learning_rate": RATES[3]})


def test_reversing_a_mixture_exchanges_what_helps_most_and_what_hurts_most(whole):
    before, after = (cheap(s, "data_mixture") for s in (whole, distort(whole, Stress("reverse"))))
    for old, new in zip(before.configurations, after.configurations, strict=True):
        old, new = old["mixture"], new["mixture"]
        assert (new["code"], new["wiki"], new["web"]) == (old["wiki"], old["code"], old["web"])
    assert (before.outcomes.values_R == after.outcomes.values_R).all()


def test_under_a_limit_cells_keep_their_parameters_when_reversed():
    cells = [{"learning_rate": r, "batch_size": b} for r in RATES for b in BATCHES]
    parameters = [1.0 + n // 3 for n in range(15)]  # they grow with the rate
    limited = made(
        "limited", "low", GRID, cells, [float(n // 3) for n in range(12)] + [np.nan] * 3,
        status=["ok"] * 12 + ["infeasible"] * 3, parameters=parameters,
        limit={"quantity": "parameters", "at_most": 4},
    )  # fmt: skip
    (after,) = distort(split([limited], "dev"), Stress("reverse")).training
    assert after.cells is limited.cells and (after.parameters_R == limited.parameters_R).all()
    assert (after.feasible_R == (after.outcomes.status_R == "ok")).all()
    assert after.configurations[after.outcomes.best_row]["learning_rate"] == RATES[3]


def test_noise_is_in_units_of_regret(whole):
    before, after = cheap(whole), cheap(distort(whole, Stress("noise", noise=0.5)))
    added = (after.outcomes.values_R - before.outcomes.values_R) / (
        before.outcomes.median - before.outcomes.optimum
    )
    assert 0.25 < added.std() < 0.75
    assert after.cells is before.cells


def test_renaming_changes_every_name_in_targets_as_well(whole):
    renamed = distort(whole, Stress("rename"))
    for e in (*renamed.training, *renamed.held_out):
        assert set(e.space.names) <= {"x1", "x2"}
        assert e.space.validate(e.default) == e.default
        assert not e.match(e.configurations[0]).matched
    low, mid = (e for e in (*renamed.training, *renamed.held_out) if e.task == "data_mixture")
    assert low.space["x1"].choices == mid.space["x1"].choices == ("part1", "part2", "part3")
    assert (low.outcomes.values_R == cheap(whole, "data_mixture").outcomes.values_R).all()


@pytest.mark.parametrize("bad", [{"kind": "heat"}, {"keep": 0}, {"keep": 2}, {"noise": -1}])
def test_a_stress_that_there_is_not_is_refused_by_its_field(bad):
    with pytest.raises(UserError, match=f"config.stress.{next(iter(bad))}"):
        Stress(**bad)


def test_labels_tell_stresses_apart():
    stresses = [
        *(Stress("thin"), Stress("thin", keep=0.1), Stress("thin", seed=1), Stress("noise")),
        *(Stress("lie"), Stress("lie", adviser="drift")),
    ]
    assert len({s.label for s in stresses}) == 6


def test_a_lie_changes_no_evidence_and_names_who_lies(whole):
    assert distort(whole, Stress("lie")) is whole
    assert Stress("lie", adviser="trees").failing == "trees:reversed"
    assert not Stress("noise").failing


@pytest.mark.parametrize("make", differing.FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_experiments_over_different_spaces_are_stressed_each_in_its_own(make, kind):
    before = make()
    made = distort(split(before, "dev"), Stress(kind)).training
    for old, new in zip(before, made, strict=True):
        assert new.outcomes.ok_R.any() and len(new.space.names) == len(old.space.names)
        keys = list(map(new.space.key_of, new.configurations))
        assert keys == [new.space.key_of(new.space.validate(c)) for c in new.configurations]
        if kind == "reverse":
            regrets = (e.outcomes.regrets_R.tolist() for e in (old, new))
            assert new.configurations != old.configurations or next(regrets) != next(regrets)


def test_each_experiment_is_reversed_along_an_axis_that_it_has(whole):
    """The weight decay matters most to the one experiment that has it."""
    decays = (0.0, 0.1, 0.2)
    space = Space((*GRID.dimensions[:1], Dimension("weight_decay", "ordinal", decays)))
    cells = [{"learning_rate": r, "weight_decay": d} for r in RATES for d in decays]
    losses = [3 + 20 * c["weight_decay"] + c["learning_rate"] for c in cells]
    both = [grid("plain", "low"), made("decayed", "low", space, cells, losses)]
    assert axes_by_importance(both)[0] == "weight_decay"
    plain, decayed = distort(split(both, "dev"), Stress("reverse")).training
    assert plain.configurations[plain.outcomes.best_row]["learning_rate"] == RATES[-1]
    best = decayed.configurations[decayed.outcomes.best_row]
    assert best == {"learning_rate": RATES[0], "weight_decay": 0.2}


def test_cells_that_two_sources_share_get_each_source_its_own_names():
    one = grid("one", "low")
    other = type(one)(**{**vars_of(one), "source": "other", "cells": one.cells})
    for e in renamed_alike([one, other]):
        assert set(e.default) == set(e.space.names) == {"x1", "x2"}
