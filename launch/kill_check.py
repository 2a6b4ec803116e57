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

MAIN = pathlib.Path(__file__).with_name("main.py")


def command(workdir: pathlib.Path) -> list[str]:
    return [sys.executable, str(MAIN), f"--config={JOB.value}", f"--workdir={workdir}"]


def started(workdir: pathlib.Path, log) -> subprocess.Popen:
    return subprocess.Popen(command(workdir), stdout=log, stderr=subprocess.STDOUT)


def where(workdir: pathlib.Path) -> str:
    """Name the last thing that the job had begun."""
    begun = [p.name for p in workdir.iterdir()] if workdir.exists() else []
    if "evaluation" in begun:
        return "evaluate or report"
    checkpoints = workdir / "checkpoints"
    if checkpoints.exists():
        return "grpo" if (checkpoints / "grpo").exists() else "distill"
    return "curate or simulate" if "trajectories" in begun else "ground_truth or before"


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
        began = time.monotonic()
        if started(calm, log).wait():
            raise UserError(f"{folder / 'log.txt'}: the undisturbed run failed; see its end")
        duration = time.monotonic() - began
        print(f"undisturbed: {duration:.0f} s")
        rng = random.Random(SEED.value)
        # Between two kills a rerun gets its share of the whole, and time to start Python again:
        # half of what a rerun takes that finds everything done.
        began = time.monotonic()
        started(calm, log).wait()
        start_up = 0.5 * (time.monotonic() - began)
        moments = sorted(rng.uniform(0, duration) for _ in range(KILLS.value))
        for last, moment in zip([0.0, *moments], moments, strict=False):
            process = started(disturbed, log)
            try:
                process.wait(moment - last + start_up)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                print(f"killed at {moment:.0f} s of {duration:.0f}: {where(disturbed)}")
                continue
            print(f"ended before its kill at {moment:.0f} s")
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
