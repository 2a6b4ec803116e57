"""Runs out of memory: unknown before a run (no limit), then evidence and trials like any other."""

import json
import math

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from autollm_jax.baselines import BASELINES, Problem
from autollm_jax.evaluation.cost import expected_trials
from autollm_jax.forecasts.advisers import FORECASTS
from autollm_jax.forecasts.surface import SurfaceTransfer
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.experiments import Fidelity, make_experiment
from autollm_jax.gym.gymnasium_env import ConfigureEnv
from autollm_jax.gym.runs import flops_of_runs
from autollm_jax.gym.spaces import Dimension, Space
from autollm_jax.gym.splits import Split
from autollm_jax.gym.stress import KINDS, Stress, distort
from autollm_jax.report.landscape import lay_out
from autollm_jax.text.claims import audit, think
from autollm_jax.text.prompts import describe, feedback
from tests.families import decided

WIDTHS, BATCHES = (32, 64, 128, 256), (16, 32, 64, 128)
MOST = 64 * 128
MAKERS = {**FORECASTS, "surface_transfer": SurfaceTransfer}


def memory(name, level, size, rates=4):
    """Make an experiment in which larger is better until width x batch no longer fits."""
    space = Space(
        (
            Dimension("width", "log-ordinal", WIDTHS),
            Dimension("batch_size", "log-ordinal", BATCHES),
            Dimension("rate", "log-continuous", bounds=(1e-4, 1e-1)),
        )
    )
    random = np.random.default_rng(int(size) % 1000)
    cells = [
        {"width": w, "batch_size": b, "rate": float(10 ** random.uniform(-4, -1))}
        for w in WIDTHS for b in BATCHES for _ in range(rates)
    ]  # fmt: skip
    full = [c["width"] * c["batch_size"] > MOST for c in cells]
    loss = [
        3 - 0.1 * math.log2(c["width"] * c["batch_size"]) + 0.1 * (math.log10(c["rate"]) + 3) ** 2
        for c in cells
    ]
    return make_experiment(
        source="test", task="pretraining", name=name, space=space,
        fidelity=Fidelity(level, size, 1e9, 6e9 * size), configurations=cells,
        outcomes=[math.nan if f else y for f, y in zip(full, loss, strict=True)],
        status=["infeasible" if f else "ok" for f in full],
        default=cells[0], default_origin="the tests",
    )  # fmt: skip


@pytest.fixture(scope="module")
def evidence():
    return memory("a", "low", 1e6), memory("b", "low", 2e6)


@pytest.fixture(scope="module")
def target():
    return memory("c", "mid", 4e6)


def full_rows(experiment):
    return np.flatnonzero(experiment.outcomes.status_R == "infeasible")


@pytest.mark.parametrize("method", BASELINES)
def test_every_method_plays_and_none_knows_beforehand(method, evidence):
    target = memory("c", "mid", 4e6, rates=1)
    assert len(full_rows(target)) == 3 and target.setting.feasible_R.all()
    for known, budget in ((evidence, 16), ((), 4)):
        episode = Episode(target, known, budget)
        player = BASELINES[method](Problem(target.setting, known, budget), 0)
        while not episode.done:
            player.tell(episode.exec_config(player.ask()))
        assert len({trial.row for trial in episode.trials}) == budget
        failed = sum(trial.status == "infeasible" for trial in episode.trials)
        assert budget == 4 or failed == 3


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "scaling_law"])
def test_a_forecast_learns_from_the_evidence_what_does_not_fit(name, evidence, target):
    made = MAKERS[name](target.setting, evidence)
    mean_R = made.predict().mean_R
    near_R = np.isin([c["width"] * c["batch_size"] for c in target.configurations], [MOST])
    rate_R = np.array([abs(math.log10(c["rate"]) + 3) < 0.7 for c in target.configurations])
    full_R = target.outcomes.status_R == "infeasible"
    # Larger is better up to the edge, so only what failed tells that beyond it is worse.
    assert mean_R[full_R & rate_R].mean() > mean_R[near_R & rate_R].mean()


@pytest.mark.parametrize("name", MAKERS)
def test_a_forecast_takes_a_trial_out_of_memory(name, evidence, target):
    row = int(full_rows(target)[0])
    for known in (evidence, ()):
        made = MAKERS[name](target.setting, known)
        episode = Episode(target, known, 3)
        assert episode.exec_config(target.configurations[row]).status == "infeasible"
        assert np.isfinite(made.predict(episode.trials).mean_R).all()
        expected_R = made.expected_regrets(episode.trials)
        assert np.isinf(expected_R).nonzero()[0].tolist() == [row]


def test_texts_say_that_a_trial_was_infeasible(evidence, target):
    episode = Episode(target, evidence, 2)
    assert "infeasible" not in describe(decided(episode), full=True)
    trial = episode.exec_config(target.configurations[full_rows(target)[0]])
    decision = decided(episode)
    said = feedback(trial, decision, episode.tell(), full=True)
    assert said.startswith("trial 1 is infeasible; width") and "gives no loss, 1 left" in said
    found = audit(think(decision, 0), decision)
    assert found.true == found.n == 3 and "latest is infeasible" in think(decision, 0)


def test_the_gymnasium_interface_observes_it(evidence, target):
    env = ConfigureEnv(target, evidence, budget=2)
    check_env(env, skip_render_check=True)
    env.reset()
    row = int(full_rows(target)[0])
    observation, reward, _, _, info = env.step(target.units_RD[row].astype(np.float32))
    assert info["trial"].status == "infeasible" and reward == 0.0
    assert (observation["outcomes"][0], observation["succeeded"][0]) == (0.0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_stressed_evidence_keeps_its_failed_runs(kind, evidence, target):
    stressed = distort(Split(evidence, (target,)), Stress(kind))
    for experiment in stressed.training:
        assert len(full_rows(experiment)) > 0 and experiment.outcomes.ok_R.any()


def test_report_and_costs_take_it(evidence, target):
    assert lay_out(target) is not None
    # Whoever draws at random draws such rows too.
    good = int((target.outcomes.regrets_R <= 0.1).sum())
    assert expected_trials(target, 0, 0.1) == pytest.approx(65 / (good + 1))
    json.dumps(Episode(target, evidence, 1).score_rows())
    # It ran out of memory at its start.
    rows = range(64)
    assert flops_of_runs([(target, rows)]) == pytest.approx(52 * target.fidelity.flops)
