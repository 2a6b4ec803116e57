"""What every baseline must do, whatever its idea."""

import json

import numpy as np
import pytest

from autollm_jax.baselines import BASELINES, Problem
from autollm_jax.forecasts.gathering import gather
from autollm_jax.gym.environment import Episode

from .conftest import bowl, limited, mixed

METHODS = sorted(BASELINES)


def play(method, target, evidence, seed=0, budget=5):
    """Play an episode; return it."""
    episode = Episode(target, evidence, budget)
    player = BASELINES[method](Problem(target.setting, evidence, budget), seed)
    while not episode.done:
        player.tell(episode.exec_config(player.ask()))
    return episode


@pytest.mark.parametrize("method", METHODS)
def test_proposes_measured_cells_only(method, target, evidence):
    assert not any(t.matched or not t.valid for t in play(method, target, evidence).trials)


@pytest.mark.parametrize("method", METHODS)
def test_never_repeats_a_cell(method, target, evidence):
    trials = play(method, target, evidence, budget=12).trials
    assert len({json.dumps(t.config) for t in trials}) == 12


@pytest.mark.parametrize("method", METHODS)
def test_is_deterministic_in_its_seed(method, target, evidence):
    first, second = (play(method, target, evidence, seed=3).trials for _ in range(2))
    assert [t.config for t in first] == [t.config for t in second]


@pytest.mark.parametrize("method", METHODS)
def test_plays_on_without_evidence(method, target):
    assert len(play(method, target, ()).trials) == 5


@pytest.mark.parametrize("method", METHODS)
def test_plays_every_kind_of_dimension(method):
    target = mixed("mid", 1e7, layers=(12, 16, 24))
    episode = play(method, target, (mixed("low", 1e6), mixed("low", 2e6, layers=(4, 6, 8))))
    assert len({json.dumps(t.config) for t in episode.trials}) == 5


@pytest.mark.parametrize("method", METHODS)
def test_plays_on_once_every_cell_was_tried(method, evidence):
    cells = [{"learning_rate": 2.0**-8, "batch_size": b} for b in (128, 256)]
    tiny = bowl(
        4e8,
        4e9,
        name="tiny",
        configurations=cells,
        outcomes=[1.0, 2.0],
        status=["ok", "diverged"],
        default=cells[0],
    )
    assert len(play(method, tiny, evidence).trials) == 5


@pytest.mark.parametrize("method", sorted({*METHODS} - {"random", "default"}))
def test_evidence_beats_chance(method, target, evidence):
    def regret(name, seeds):
        return np.mean([play(name, target, evidence, s, 2).best_regret() for s in range(seeds)])

    assert regret(method, 4) < 0.8 * regret("random", 20)


@pytest.mark.parametrize("method", ["scaling_law", "gaussian_process", "nearest_experiment"])
def test_maximisation_is_minimisation_mirrored(method, evidence, target):
    mirrored_evidence = tuple(
        bowl(e.fidelity.parameters, e.fidelity.tokens, minimize=False) for e in evidence
    )
    straight_evidence = tuple(bowl(e.fidelity.parameters, e.fidelity.tokens) for e in evidence)
    mirrored = bowl(4e8, 16e9, level="mid", minimize=False)
    a = play(method, target, straight_evidence)
    b = play(method, mirrored, mirrored_evidence)
    assert [t.config for t in a.trials] == [t.config for t in b.trials]


@pytest.mark.parametrize("method", METHODS)
def test_configurations_are_plain_json(method, problem):
    config = BASELINES[method](problem, 0).ask()
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize("method", METHODS)
def test_only_feasible_cells_are_tried_and_then_again(method):
    target = limited("mid", 1e7)
    assert 0 < target.feasible_R.sum() < 0.5 * len(target.configurations)
    trials = play(method, target, (limited(),), budget=8).trials
    assert {t.status for t in trials} == {"ok"} and len({json.dumps(t.config) for t in trials}) == 8


def test_the_sizes_of_cells_are_evidence_where_all_are_known():
    target = limited("mid", 1e7)
    rows = gather(target.setting, (limited(),), 40)
    assert rows.sizes_NS.shape == (len(rows), 1)
    assert gather(target.setting, (mixed(),), 40).sizes_NS.shape[1] == 0


def test_what_a_limit_excludes_is_no_evidence():
    cheap = limited()
    rows = gather(limited("mid", 1e7).setting, (cheap,), 1000)
    assert len(rows) == cheap.feasible_R.sum()
