"""launch/slurm.sh under a real Slurm; `launch/install_slurm.sh` brings one to this machine."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from tests.processes import SMALL_JOB

REQUEUED_SECONDS = 60


def slurm_answers():
    if shutil.which("sbatch") is None:
        return False
    states = subprocess.run(["sinfo", "--noheader", "--format=%t"], capture_output=True, text=True)
    return {"idle", "mix", "alloc"} & set(states.stdout.split())


pytestmark = pytest.mark.skipif(not slurm_answers(), reason="Slurm is not running here")


def submit(folder, config, *arguments, options=()):
    """Queue launch/slurm.sh over two devices a task; return the job's number."""
    environment = {**os.environ, "PYTHON": sys.executable}
    environment.pop("XLA_FLAGS", None)  # tasks split their CPU as the config says
    queued = subprocess.run(
        [
            "sbatch", "--parsable", f"--output={folder}/log", "--overcommit", *options,
            "launch/slurm.sh", f"--config={config}", f"--workdir={folder}/workdir",
            "--config.mesh.cpu_devices=2", *arguments,
        ],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert queued.returncode == 0, queued.stderr
    return queued.stdout.strip().split(";")[0]


def show(job):
    """Return a job's fields."""
    shown = subprocess.run(
        ["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True
    )
    return dict(field.split("=", 1) for field in shown.stdout.split() if "=" in field)


def ended(folder):
    return (folder / "log").read_text()[-3000:]


def test_two_tasks_do_the_main_job(tmp_path):
    options = ("--ntasks=2", "--wait")
    job = submit(tmp_path, "configs/gym.py", *SMALL_JOB, options=options)
    assert show(job)["ExitCode"] == "0:0", ended(tmp_path)
    summary = json.loads((tmp_path / "workdir" / "report" / "summary.json").read_text())
    assert set(summary["regret"]) == {"agent", "random"}
    config = json.loads((tmp_path / "workdir" / "config.json").read_text())
    assert config["distributed"]["coordinator"].endswith(str(50000 + int(job) % 10000))


def test_each_task_of_an_array_takes_its_share(tmp_path):
    options = ("--ntasks=1", "--array=3-7:2", f"--output={tmp_path}/log.%a", "--wait")
    submit(tmp_path, "configs/pretraining.py", "--stage=ground_truth", options=options)
    # The committed table is complete: each says so, and its work directory is theirs in common.
    for task in (3, 5, 7):
        assert "is complete" in (tmp_path / f"log.{task}").read_text()
    config = json.loads((tmp_path / "workdir" / "config.json").read_text())
    assert config["ground_truth"]["share"] in {"0/3", "1/3", "2/3"}


def test_a_stopped_job_is_queued_again(tmp_path):
    more = (*SMALL_JOB, "--config.distill.steps=100000")
    job = submit(tmp_path, "configs/gym.py", *more, options=("--ntasks=2",))
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / "workdir" / "checkpoints" / "distill" / "2").exists():
            assert time.monotonic() < deadline, ended(tmp_path)
            time.sleep(0.5)
        subprocess.run(["scancel", "--signal=TERM", job], check=True)  # as at the time limit
        deadline = time.monotonic() + REQUEUED_SECONDS
        while show(job).get("Restarts") != "1":
            assert time.monotonic() < deadline, ended(tmp_path)
            time.sleep(0.5)
        assert "preempted: the same command goes on from here" in ended(tmp_path)
    finally:
        subprocess.run(["scancel", job], check=False)
