"""What a job leaves to be looked at: rates of its steps, and traces of some of them."""

import json

import pytest

from tests import scripts
from tests.processes import SMALL_JOB

RATES = ("mfu", "tokens_per_second_per_device", "peak_memory_bytes", "compile_seconds")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A small job, all of it, with a trace of its first step of distillation and of GRPO."""
    folder = tmp_path_factory.mktemp("job")
    done = scripts.run(
        "launch/main.py", "--config=configs/gym.py", f"--workdir={folder}", *SMALL_JOB,
        "--config.evaluation.methods=random", "--config.profile.steps=0:1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("stage", ["distill", "grpo"])
def test_the_steps_that_the_config_names_are_traced(workdir, stage):
    (trace,) = (workdir / "profile" / stage).rglob("*.xplane.pb")
    assert trace.stat().st_size > 10_000


def test_metrics_say_how_well_the_devices_are_used(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    steps = [row for row in rows if "loss" in row or "rollout_seconds" in row]
    assert {row["stage"] for row in steps} == {"distill", "grpo"}
    for row in steps:
        # A step of GRPO whose groups are all of equal returns makes no update.
        names = RATES if row.get("updates", 1) else set(RATES) - {"mfu"}
        assert all(row[name] > 0 for name in names), row
