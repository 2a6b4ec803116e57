"""What training cost: counted from sizes, and summed from the log."""

import json
import math
import runpy

import pytest

from autollm_jax.job import spending
from autollm_jax.job.job import Job
from autollm_jax.models.transformer import parameter_count
from autollm_jax.sharding.mesh import MeshShape, make_mesh

get_config = runpy.run_path("configs/gym.py")["get_config"]


@pytest.fixture
def job(tmp_path):
    return Job(get_config(), tmp_path, make_mesh(MeshShape()))


def log(job, seconds):
    lines = [json.dumps({"stage": stage, "seconds": s}) + "\n" for stage, s in seconds]
    (job.workdir / "stages.jsonl").write_text("".join(lines))


def test_hours_are_those_of_all_training_stages_each_time_they_ran(job):
    log(job, [("curate", 60), ("simulate", 600), ("distill", 1000), ("distill", 140),
              ("grpo", 1800), ("evaluate", 9999)])  # fmt: skip
    assert spending.logged_hours(job) == 1.0


def test_a_stage_that_was_not_logged_makes_the_hours_unknown(job):
    assert math.isnan(spending.logged_hours(job))
    log(job, [("curate", 60), ("simulate", 600), ("distill", 1000)])
    assert math.isnan(spending.logged_hours(job))


def test_half_a_last_line_of_the_log_is_passed_over(job):
    log(job, [("curate", 60), ("simulate", 600), ("distill", 1000), ("grpo", 1940)])
    path = job.workdir / "stages.jsonl"
    path.write_text(path.read_text() + '{"stage": "gr')
    assert spending.logged_hours(job) == 1.0
    with spending.timed(job, "grpo"):
        pass
    assert path.read_text().count("\n") == 5 and '"gr{' not in path.read_text()


def test_a_stage_that_fails_is_not_logged(job):
    with pytest.raises(RuntimeError), spending.timed(job, "distill"):
        raise RuntimeError
    assert not list(job.workdir.iterdir())


def test_flops_are_six_a_parameter_and_token_and_attention(job):
    job.config.grpo.steps = 0
    length = job.config.distill.row_length
    tokens = job.config.distill.steps * job.config.distill.batch_rows * length
    parameters = 6.0 * parameter_count(job.model) * tokens
    attention = 12 * 4 * 128 * length * tokens
    assert spending.training_flops(job) == pytest.approx(parameters + attention)


def test_rollouts_count_sampling_the_reference_and_the_update(job):
    job.config.distill.steps = 0
    rows = job.config.grpo.steps * job.config.grpo.groups * job.config.grpo.group_size
    with_reference = spending.training_flops(job)
    job.config.grpo.kl_coefficient = 0.0
    without = spending.training_flops(job)
    one = spending.spending(job).playing.flops  # an episode read and written once
    assert without == pytest.approx(4 * rows * one)
    assert with_reference == pytest.approx(5 * rows * one)


def test_without_evidence_none_is_paid(job):
    job.config.gym.evidence = False
    assert spending.spending(job).evidence == ()
