"""Comparing methods on changed copies of training experiments."""

from pathlib import Path

import numpy as np
import pytest

from autollm_jax.baselines import BASELINES
from autollm_jax.evaluation.runner import play_method
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.gym.splits import split
from autollm_jax.job import cross_validation

ROOT = Path(__file__).parents[2] / "gym_data"


@pytest.fixture(scope="module")
def pairs():
    training = split(load_experiments([ROOT]), "dev").training
    return cross_validation.pairs_of(training, 24, 0)


def test_pairs_come_from_every_table_and_are_never_those_held_out(pairs):
    assert {p.target.task for p in pairs} == {"architecture", "data_mixture", "grpo", "pretraining"}
    assert all(e.fidelity.level == "low" for p in pairs for e in (p.target, *p.evidence))


def test_methods_play_the_same_games_and_the_better_is_seen(pairs):
    players = {name: play_method(BASELINES[name]) for name in ("nearest_experiment", "random")}
    found = cross_validation.cross_validate(players, pairs, 3)
    regrets = {name: groups["all"][:3] for name, groups in found.items()}
    assert (np.diff(regrets["nearest_experiment"]) <= 1e-9).all()
    assert regrets["nearest_experiment"][0] < regrets["random"][0]
    assert (found["random"]["all"][3:] == 0).all()  # invalid, matched
    again = cross_validation.cross_validate(players, pairs, 3)
    np.testing.assert_array_equal(found["random"]["all"], again["random"]["all"])


def test_the_table_has_a_line_for_each_group_and_no_trial_beyond_the_budget(pairs):
    found = cross_validation.cross_validate(
        {"random": play_method(BASELINES["random"])}, pairs[:6], 2
    )
    lines = cross_validation.table(found, 2).splitlines()
    assert lines[0].split() == ["method", "experiments", "1", "invalid", "matched"]
    assert len(lines) == 1 + len(found["random"])
