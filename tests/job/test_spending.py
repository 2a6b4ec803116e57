"""The FLOPs of training, and the log of stages."""

import json
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


def test_every_stage_is_logged_with_its_time_and_memory(job):
    for stage in ("curate", "report", "curate"):
        with spending.timed(job, stage):
            pass
    lines = [json.loads(line) for line in (job.workdir / "stages.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["curate", "report", "curate"]
    assert all(0 <= line["seconds"] < 60 and 0.05 < line["peak_gib"] < 64 for line in lines)


def test_half_a_last_line_of_the_log_is_closed_before_the_next(job):
    path = job.workdir / "stages.jsonl"
    path.write_text('{"stage": "gr')
    with spending.timed(job, "grpo"):
        pass
    assert json.loads(path.read_text().splitlines()[-1])["stage"] == "grpo"


def test_a_stage_that_fails_is_not_logged(job):
    with pytest.raises(RuntimeError), spending.timed(job, "distill"):
        raise RuntimeError
    assert not list(job.workdir.iterdir())


def test_flops_are_six_a_parameter_and_token_and_attention(job):
    job.config.grpo.steps = 0
    length = job.config.distill.row_length
    tokens = job.config.distill.steps * job.config.distill.batch_rows * length
    parameters = 6.0 * parameter_count(job.model) * tokens
    attention = 12 * job.model.layers * 64 * length * tokens
    assert spending.training_flops(job) == pytest.approx(parameters + attention)


def test_rollouts_count_sampling_the_reference_and_the_update(job):
    job.config.distill.steps, job.config.grpo.epochs = 0, 1
    rows = job.config.grpo.steps * job.config.grpo.groups * job.config.grpo.group_size
    with_reference = spending.training_flops(job)
    job.config.grpo.kl_coefficient = 0.0
    enumerated = spending.training_flops(job)  # whose decisions are held to the reference still
    job.config.grpo.members = "sampled"
    without = spending.training_flops(job)
    job.config.grpo.importance_cap = 2.0
    with_weights = spending.training_flops(job)
    one = spending.spending(job).playing  # an episode read and written once
    assert without == pytest.approx(4 * rows * one)
    assert with_reference == enumerated == with_weights == pytest.approx(5 * rows * one)


def test_without_evidence_none_is_paid(job):
    job.config.gym.evidence = False
    assert spending.spending(job).evidence == ()
