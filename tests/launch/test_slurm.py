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


def submit(folder, config, *arguments, options=(), **environment):
    """Queue launch/slurm.sh over two devices a task; return the job's number."""
    # Tasks split their CPU as the config says.
    kept = {name: os.environ[name] for name in os.environ.keys() - {"XLA_FLAGS", "SHARES"}}
    environment = {**kept, "PYTHON": sys.executable, **environment}
    queued = subprocess.run(
        [
            "sbatch", "--parsable", f"--output={folder}/log", "--overcommit", *options,
            "launch/slurm.sh", f"--config={config}", f"--workdir={folder}/workdir",
            "--config.mesh.cpu_devices=2", *arguments,
        ],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert queued.stdout, queued.stderr  # with --wait the code is the job's
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
    assert config["distributed"]["coordinator"].endswith(str(61440 + int(job) % 4096))


def run_array(folder, array, **environment):
    """Run an array over shares of a complete table; return the share that each task was given."""
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > "{folder}/flags.$SLURM_ARRAY_TASK_ID"\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    options = ("--ntasks=1", f"--array={array}", f"--output={folder}/log.%a", "--wait")
    environment |= {"PYTHON": str(python)}
    submit(folder, "configs/pretraining.py", "--stage=ground_truth", options=options, **environment)
    field = "--config.ground_truth.share="
    return {
        int(path.suffix[1:]): line.removeprefix(field)
        for path in folder.glob("flags.*")
        for line in path.read_text().splitlines()
        if line.startswith(field)
    }


@pytest.mark.parametrize(
    "array, environment, shares",
    [
        ("0-2", {}, {0: "0/3", 1: "1/3", 2: "2/3"}),
        ("3,7", {"SHARES": "32"}, {3: "3/32", 7: "7/32"}),
        ("0", {"SHARES": "32"}, {0: "0/32"}),
    ],
    ids=["all", "some", "one"],
)
def test_each_task_of_an_array_takes_its_share(array, environment, shares, tmp_path):
    assert run_array(tmp_path, array, **environment) == shares
    for task in shares:
        assert "is complete" in (tmp_path / f"log.{task}").read_text()


@pytest.mark.parametrize("array", ["7", "0", "1-2", "0-2:2"])
def test_an_array_that_may_be_a_part_has_to_say_of_what(array, tmp_path):
    assert run_array(tmp_path, array) == {}
    for log in tmp_path.glob("log.*"):
        assert "SHARES=32 sbatch" in log.read_text()


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
