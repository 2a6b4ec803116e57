"""The check-list's own work: it goes through every part, and says in one file how each ended."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

import autollm_jax

ROOT = pathlib.Path(autollm_jax.__file__).parents[1]
SCRIPT = ROOT / "launch" / "gpu_check.sh"
# Stands in for Python: notes each call, and fails where it is told to.
PYTHON = """#!/bin/sh
case "$*" in
  *client*) echo {platform} ;;
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
    benchmarks = [f"train_step --size={size}" for size in ("50m", "350m", "1b")]
    benchmarks += ["sampling --dtype=bfloat16 --repeats=3", "grpo_step --size=1b --repeats=3"]
    for words in (*benchmarks, "launch/main.py --config=configs"):
        assert any(words in call for call in calls)
    text = report.read_text()
    for part in ("tests", *(f"benchmark {words}" for words in benchmarks), "main job"):
        assert f"| {part} | 0 |" in text
    assert "said launch/benchmark.py grpo_step" in text


def test_its_benchmarks_are_known_to_the_script_that_runs_them():
    """The names and flags, as launch/benchmark.py defines them."""
    names = re.search(r"BENCHMARKS=\((.*?)\)", SCRIPT.read_text(), re.DOTALL)[1]
    source = (ROOT / "launch" / "benchmark.py").read_text()
    for words in re.findall(r'"(.*?)"', names):
        name, *given = words.split()
        assert f'"{name}":' in source
        assert all(f'"{flag[2:].split("=")[0]}"' in source for flag in given)


def test_the_parts_times_are_twelve_minutes():
    most = dict(re.findall(r"\[(\w+)\]=(\d+)", SCRIPT.read_text()))
    most = {name: int(seconds) for name, seconds in most.items()}
    assert sum(most.values()) + 2 * most["train_step"] == 12 * 60


@pytest.mark.parametrize(
    "failing", ["pytest", "benchmark.py train_step --size=1b", "launch/main.py"]
)
def test_a_part_that_fails_does_not_stop_the_others(tmp_path, failing):
    report = tmp_path / "report.md"
    done, calls = check(tmp_path, f"--out={report}", failing=failing)
    assert done.returncode == 1
    assert len(calls) == 8 and report.read_text().count("Exit code 3") == 1


def test_what_it_does_not_know_is_one_line(tmp_path):
    for argument, words in (("--fast", "unknown argument --fast"), ("--out=/", "--out=FILE")):
        done, calls = check(tmp_path, argument)
        assert done.returncode == 2 and not calls
        assert words in done.stderr.splitlines()[-1]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
