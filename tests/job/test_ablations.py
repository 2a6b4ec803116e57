"""Ablations and stress are flags of the config: each changes what it names."""

import json
import runpy

import jax
import numpy as np
import pytest

from autollm_jax.errors import UserError
from autollm_jax.evaluation.runner import Terms, evaluate
from autollm_jax.job import stages, training_stages
from autollm_jax.job.job import Job
from autollm_jax.models.transformer import parameter_count
from autollm_jax.sharding.mesh import MeshShape, make_mesh

get_config = runpy.run_path("configs/gym.py")["get_config"]


@pytest.fixture
def make(tmp_path):
    """Make a small job on the committed tables, some fields changed."""

    def job(**changes):
        config = get_config("smoke")
        config.gym.roots = "gym_data"
        config.curate.distill_pairs = 8
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        return Job(config, tmp_path, make_mesh(MeshShape()))

    return job


def test_without_evidence_no_pair_has_any(make):
    for evidence in (True, False):
        job = make(gym__evidence=evidence)
        training_stages.curate(job)
        pairs = job.pairs("distill") + job.pairs("grpo")
        assert any(pair.evidence for pair in pairs) == evidence
        for name in ("distill", "grpo"):
            job.pairs_path(name).unlink()


def test_a_task_left_out_of_training_is_still_evaluated(make):
    job = make(gym__trained_tasks="grpo,pretraining", curate__synthetic=0.0)
    training_stages.curate(job)
    assert {pair.task for pair in job.pairs("distill")} <= {"grpo", "pretraining"}
    assert {e.task for e in job.split.held_out} == set(job.config.gym.tasks)


def test_a_source_left_out_of_training_is_still_evaluated(make):
    job = make(gym__trained_sources="stdlib_cpu")
    assert {e.source for e in job.training} == {"stdlib_cpu"}
    job = make(gym__trained_sources="elsewhere")
    assert {e.source for e in job.split.held_out} == {"stdlib_cpu"}
    with pytest.raises(UserError, match="trained_sources=elsewhere: no training experiment"):
        _ = job.training


def test_a_trained_task_that_there_is_not_is_refused(make):
    with pytest.raises(UserError, match="gym.trained_tasks=poetry.*architecture"):
        _ = make(gym__trained_tasks="poetry").training


def test_without_distillation_grpo_starts_from_random_parameters(make):
    job = make(distill__steps=0)
    training_stages.distill_policy(job)
    assert job.checkpoints("distill").latest() is None
    one, again = job.parameters("distill"), job.parameters("distill")
    other = make(distill__steps=0, seed=1).parameters("distill")
    leaves = [np.asarray(jax.tree.leaves(params)[0]) for params in (one, again, other)]
    assert (leaves[0] == leaves[1]).all() and (leaves[0] != leaves[2]).any()


def test_the_policys_size_is_scaled(make):
    sizes = [parameter_count(make(policy__scale=scale).model) for scale in (0.25, 1.0, 4.0)]
    assert sizes[0] < sizes[1] / 2 and sizes[2] > 2 * sizes[1]


@pytest.mark.parametrize("matching", [True, False])
def test_matching_is_the_same_in_grpos_episodes(make, monkeypatch, matching):
    job, made = make(gym__matching=matching, distill__steps=0), []

    def keep(model, tokenizer, config, starts_of_round, *rest):
        made.extend(start().episode for start in starts_of_round(0))

    monkeypatch.setattr(training_stages, "make_rollout", keep)
    monkeypatch.setattr(training_stages, "train_grpo", lambda *arguments: None)
    monkeypatch.setattr(Job, "tokenizer", lambda self: None)
    training_stages.curate(job)
    training_stages.grpo(job)
    assert made and all(episode.matching == matching for episode in made)


def test_episodes_that_do_not_fit_are_a_users_error_that_names_the_fields(make):
    job = make(gym__budget=10, distill__row_length=256)
    training_stages.curate(job)
    training_stages.simulate(job)
    with pytest.raises(UserError, match="config.distill.row_length=256.*config.policy.context"):
        training_stages.distill_policy(job)


def test_without_reasoning_the_policy_learns_turns_without_a_think_part(make):
    job = make(simulate__reasoning=False)
    training_stages.curate(job)
    training_stages.simulate(job)
    said = [t.text for kept in job.trajectories() for t in kept.turns if t.role == "agent"]
    assert said and all(text.startswith("<exec>") for text in said)


def test_results_under_stress_are_apart_from_the_plain_ones(make):
    plain = make()
    thin = make(stress__kind="thin", stress__keep=0.1)
    players = {"first": _first_cell}
    for job in (plain, thin):
        terms = Terms(1, (0,), tasks=("grpo",), stress=job.stress)
        evaluate(players, job.split, terms, job.results_path, tables={}, progress=False)
    assert plain.results_path.exists() and plain.results_path != thin.results_path
    assert plain.stress_results() == {"thin_0.1": thin.results_path}
    assert thin.report_folder.parent == plain.report_folder


def _first_cell(games):
    for game in games:
        game.episode.exec_config(game.episode.setting.configurations[0])


def test_stages_log_how_long_training_took(make):
    job = make()
    stages.run(job.config, str(job.workdir), "curate")
    lines = [json.loads(line) for line in (job.workdir / "stages.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["curate"] and lines[0]["seconds"] > 0
