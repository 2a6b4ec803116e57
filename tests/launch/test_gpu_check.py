"""The check-list's own work: it goes through every part, and says in one file how each ended."""

import os
import pathlib
import shutil
import subprocess

import pytest

import autollm_jax

ROOT = pathlib.Path(autollm_jax.__file__).parents[1]
SCRIPT = ROOT / "launch" / "gpu_check.sh"
# Stands in for Python: names the benchmarks, notes each call, and fails where it is told to.
PYTHON = """#!/bin/sh
case "$*" in
  *client*) echo {platform} ;;
  *BENCHMARKS*) echo first second ;;
  *) echo "called $JAX_PLATFORMS $*" >>"$CALLS"; echo "said $*"
     case "$*" in *"$FAILING"*) exit 3 ;; esac ;;
esac
"""


def check(tmp_path, *arguments, failing="nothing", platform="cuda"):
    python = tmp_path / "python"
    python.write_text(PYTHON.format(platform=platform))
    python.chmod(0o755)
    environment = {"PYTHON": str(python), "CALLS": str(tmp_path / "calls"), "FAILING": failing}
    done = subprocess.run(
        ["bash", SCRIPT, *arguments],
        env=os.environ | environment | {"JAX_PLATFORMS": ""}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    calls = tmp_path / "calls"
    return done, calls.read_text().splitlines() if calls.exists() else []


def test_every_part_runs_and_the_report_says_how_it_ended(tmp_path):
    report = tmp_path / "report.md"
    done, calls = check(tmp_path, f"--out={report}")
    assert done.returncode == 0, done.stderr
    assert [call for call in calls if "pytest" in call and call.startswith("called cuda ")]
    for words in ("benchmark.py first", "benchmark.py second", "launch/main.py --config=configs"):
        assert any(words in call for call in calls)
    text = report.read_text()
    for part in ("tests", "benchmark first", "benchmark second", "main job"):
        assert f"| {part} | 0 |" in text
    assert "said launch/benchmark.py second" in text


@pytest.mark.parametrize("failing", ["pytest", "benchmark.py first", "launch/main.py"])
def test_a_part_that_fails_does_not_stop_the_others(tmp_path, failing):
    report = tmp_path / "report.md"
    done, calls = check(tmp_path, f"--out={report}", failing=failing)
    assert done.returncode == 1
    assert len(calls) == 5 and report.read_text().count("Exit code 3") == 1


def test_what_it_does_not_know_is_one_line(tmp_path):
    for argument, words in (("--fast", "unknown argument --fast"), ("--out=/", "--out=FILE")):
        done, calls = check(tmp_path, argument)
        assert done.returncode == 2 and not calls
        assert words in done.stderr.splitlines()[-1]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
