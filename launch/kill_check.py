"""Kill a job with SIGKILL at random moments and compare its results with an undisturbed run's.

    python launch/kill_check.py --config=configs/gym.py:smoke --kills=5

Prints when each kill fell and in which stage, and whether `results.parquet` and the metrics of
every step are the same in the end. Exits with 1 if they are not.
"""

import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from absl import flags

from autollm_jax import command_line
from autollm_jax.errors import UserError

# Not `config`: what is checked here is a command line, and its config is for main.py to read.
JOB = flags.DEFINE_string("config", "configs/gym.py:smoke", "The job.")
KILLS = flags.DEFINE_integer("kills", 5, "How many.")
SEED = flags.DEFINE_integer("seed", 0, "Chooses the moments.")
FOLDER = flags.DEFINE_string(
    "folder", None, "Where the two work directories go (default: a new one)."
)

# What a stage leaves as soon as it has begun, or the one before as it ends.
MARKS = {
    "ground_truth": "config.json",
    "simulate": "trajectories",
    "distill": "checkpoints/distill",
    "grpo": "checkpoints/grpo",
    "evaluate": "evaluation",
}
POLL = 0.05  # seconds

MAIN = pathlib.Path(__file__).with_name("main.py")


def command(workdir: pathlib.Path) -> list[str]:
    return [sys.executable, str(MAIN), f"--config={JOB.value}", f"--workdir={workdir}"]


def started(workdir: pathlib.Path, log) -> subprocess.Popen:
    return subprocess.Popen(command(workdir), stdout=log, stderr=subprocess.STDOUT)


def stage_of(workdir: pathlib.Path) -> str:
    """Name the last stage that has begun, by what it leaves."""
    for stage, mark in reversed(MARKS.items()):
        if (workdir / mark).exists():
            return stage
    return next(iter(MARKS))


def watch(process: subprocess.Popen, workdir: pathlib.Path) -> dict[str, float]:
    """Wait for the end and return the seconds that each stage took."""
    seconds = dict.fromkeys(MARKS, 0.0)
    while process.poll() is None:
        time.sleep(POLL)
        seconds[stage_of(workdir)] += POLL
    return seconds


def kill_in(process: subprocess.Popen, workdir: pathlib.Path, stage: str, delay: float) -> str:
    """Kill a process `delay` seconds after a stage has begun, and say where that was."""
    stages, left = list(MARKS), delay
    while process.poll() is None:
        time.sleep(POLL)
        if stages.index(stage_of(workdir)) >= stages.index(stage):
            left -= POLL
        if left <= 0:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return f"killed in {stage_of(workdir)}"
    return f"ended before its kill in {stage}"


def metrics_of(workdir: pathlib.Path) -> list[dict]:
    """Read the metrics of every step, without what depends on the clock."""
    clocks = ("time", "seconds", "per_second", "idle_ratio")
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith(clocks)} for row in rows]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; accepted are flags, see --help")
    folder = pathlib.Path(FOLDER.value or tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    calm, disturbed = folder / "undisturbed", folder / "disturbed"
    with open(folder / "log.txt", "w") as log:
        process = started(calm, log)
        seconds = watch(process, calm)
        if process.returncode:
            raise UserError(f"{folder / 'log.txt'}: the undisturbed run failed; see its end")
        print("undisturbed: " + ", ".join(f"{name} {s:.0f} s" for name, s in seconds.items()))
        rng = random.Random(SEED.value)
        # Stages in turn, so that every one is met; the moment within it is random.
        for number in range(KILLS.value):
            stage = list(MARKS)[number * len(MARKS) // KILLS.value]
            delay = rng.uniform(0, seconds[stage])
            print(
                f"after {delay:.1f} s: {kill_in(started(disturbed, log), disturbed, stage, delay)}"
            )
        if started(disturbed, log).wait():
            raise UserError(f"{folder / 'log.txt'}: the run after the kills failed; see its end")
    results = [(w / "evaluation" / "results.parquet").read_bytes() for w in (calm, disturbed)]
    same_results = results[0] == results[1]
    same_metrics = metrics_of(calm) == metrics_of(disturbed)
    print(f"results.parquet: {'the same bytes' if same_results else 'DIFFERENT'}")
    print(f"metrics of every step: {'the same' if same_metrics else 'DIFFERENT'}")
    if not (same_results and same_metrics):
        sys.exit(1)


if __name__ == "__main__":
    command_line.run(main)
