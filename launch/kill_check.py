"""Stop a job by signals at random moments, and compare its results with an undisturbed run.

    python launch/kill_check.py --config=configs/gym.py:smoke --kills=5
    python launch/kill_check.py --stage=grpo --processes=2 --signals=KILL,TERM --kills=10 \\
        -- --config.grpo.steps=20

The arguments after `--` are further flags of the job. With --stage, the earlier stages run once,
and signals go only to that stage. Each signal goes to one process. After KILL the script ends the
other processes, as a scheduler does. After TERM every process has to save and to exit with 75. A
run that ends before its signal is compared, and a new run starts.

Prints the moment and the stage of each signal. At the end it prints whether the final parameters,
`results.parquet` and the metrics of every step equal those of the undisturbed run. Exits with 1
where they differ.
"""

import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from absl import flags, logging

from autollm_jax import command_line
from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.cluster.coordinator import free_address
from autollm_jax.errors import PREEMPTED_EXIT_CODE, UserError
from autollm_jax.files import read_json_lines

# A plain string, not a config flag: launch/main.py reads the config.
JOB = flags.DEFINE_string("config", "configs/gym.py:smoke", "The job.")
KILLS = flags.DEFINE_integer("kills", 5, "Number of signals.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments.")
FOLDER = command_line.define_path("folder", None, "Of the work directories (default: new).")
STAGE = flags.DEFINE_string("stage", "all", "The stage that gets the signals, or all.")
PROCESSES = flags.DEFINE_integer("processes", 1, "Processes of the job, on this machine.")
SIGNALS = flags.DEFINE_list("signals", ["KILL"], "Signals to send in turn: KILL, TERM.")

# A path in the work directory that exists once a stage has begun, or the one before has ended.
MARKS = {
    "ground_truth": "config.json",
    "simulate": "trajectories",
    "distill": "checkpoints/distill",
    "grpo": "checkpoints/grpo",
    "evaluate": "evaluation",
}
BEFORE = ("ground_truth", "curate", "simulate", "distill")  # the stages before GRPO, in order
TRAINED = ("distill", "grpo")
POLL = 0.05  # seconds
PATIENCE = 60.0  # seconds that processes have to save and exit, like a scheduler's grace period

MAIN = pathlib.Path(__file__).with_name("main.py")


class Run:
    """The processes of a started job."""

    def __init__(self, workdir: pathlib.Path, log, more: list[str], stage: str, processes: int):
        command = [sys.executable, str(MAIN), f"--config={JOB.value}", f"--workdir={workdir}"]
        command += [f"--stage={stage}", *more]
        if processes > 1:
            command += [
                f"--config.distributed.coordinator={free_address()}",
                f"--config.distributed.processes={processes}",
                "--config.distributed.one_host=True",
            ]
        self.workdir, self.processes = workdir, []
        for number in range(processes):
            own = [f"--config.distributed.process_id={number}"] if processes > 1 else []
            self.processes.append(
                subprocess.Popen([*command, *own], stdout=log, stderr=subprocess.STDOUT)
            )

    @property
    def going(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    @property
    def stage(self) -> str:
        """The last stage that has begun, judged by the paths in MARKS."""
        for stage, mark in reversed(MARKS.items()):
            if (self.workdir / mark).exists():
                return stage
        return next(iter(MARKS))

    def wait(self) -> list[int]:
        """Wait for all processes; return their exit codes."""
        return [process.wait() for process in self.processes]

    def stop(self, name: str, which: int) -> str:
        """Send a signal to one process, wait for the end of all, and return a line about it."""
        self.processes[which].send_signal(getattr(signal, f"SIG{name}"))
        if name == "KILL":  # as `srun --wait` or a JobSet does
            self.processes[which].wait()
            for process in self.processes:
                process.kill()
            self.wait()
            return "killed"
        # A connected process passes the signal on; before that, each process needs a signal.
        told = "passed on by it" if self._ended_within(PATIENCE) else "sent to each"
        for process in self.processes:
            process.terminate()
        self._ended_within(PATIENCE)
        for process in self.processes:
            process.kill()
        return f"{told}, exited with " + ", ".join(map(str, self.wait()))

    def _ended_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.going and time.monotonic() < deadline:
            time.sleep(POLL)
        return not self.going


def watch(run: Run) -> dict[str, float]:
    """Wait for the end of a run; return the seconds of each stage."""
    seconds = dict.fromkeys(MARKS, 0.0)
    while run.going:
        time.sleep(POLL)
        seconds[run.stage] += POLL
    return seconds


def after(run: Run, stage: str, delay: float) -> bool:
    """Wait until `delay` seconds after a stage's start; return False where the run ends before."""
    stages, left = list(MARKS), delay
    while run.going:
        if left <= 0:
            return True
        time.sleep(POLL)
        if stages.index(run.stage) >= stages.index(stage):
            left -= POLL
    return False


def metrics_of(workdir: pathlib.Path) -> list[dict]:
    """Read the metrics of every step, without those that depend on the clock."""
    clocks = ("time", "seconds", "per_second", "idle_ratio", "mfu", "per_device", "memory_bytes")
    rows = read_json_lines(workdir / "metrics.jsonl", log=True)
    return [{k: v for k, v in row.items() if not k.endswith(clocks)} for row in rows]


def parameters_of(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Read the final parameters of every training stage that has run."""
    here, found = jax.sharding.SingleDeviceSharding(jax.devices()[0]), {}
    for stage in TRAINED:
        folder = workdir / "checkpoints" / stage
        if not folder.exists():
            continue
        checkpoints = Checkpoints(folder)
        saved = checkpoints.manager.item_metadata(checkpoints.latest())["state"]
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), dict(saved)
        )
        state, _ = checkpoints.restore(shapes)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            found[stage + jax.tree_util.keystr(path)] = np.asarray(leaf)
        checkpoints.close()
    return found


def same(calm: pathlib.Path, disturbed: pathlib.Path) -> bool:
    """Compare two finished runs, print each verdict, and return whether all results are equal."""
    verdicts, pair = {}, (calm, disturbed)
    first, second = map(parameters_of, pair)
    equal = first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name]) for name in first
    )
    verdicts[f"final parameters, {len(first)} arrays"] = equal
    results = [workdir / "evaluation" / "results.parquet" for workdir in pair]
    if results[0].exists():
        verdicts["results.parquet"] = results[0].read_bytes() == results[1].read_bytes()
    verdicts["metrics of every step"] = metrics_of(calm) == metrics_of(disturbed)
    for what, alike in verdicts.items():
        print(f"{what}: {'the same' if alike else 'DIFFERENT'}", flush=True)
    return all(verdicts.values())


def main(argv: list[str]) -> None:
    if STAGE.value not in ("all", *TRAINED):
        raise UserError(f"--stage={STAGE.value}: accepted are all, {', '.join(TRAINED)}")
    if set(SIGNALS.value) - {"KILL", "TERM"}:
        raise UserError(f"--signals={','.join(SIGNALS.value)}: accepted are KILL, TERM")
    folder = pathlib.Path(FOLDER.value or tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    start, calm, disturbed = (folder / n for n in ("start", "undisturbed", "disturbed"))
    whole = STAGE.value == "all"
    with open(folder / "log.txt", "w") as log:

        def started(workdir):
            return Run(workdir, log, argv[1:], STAGE.value, PROCESSES.value)

        def afresh(workdir):
            shutil.rmtree(workdir, ignore_errors=True)
            if start.exists():
                shutil.copytree(start, workdir)

        def finish(run):
            if any(run.wait()):
                raise UserError(f"{folder / 'log.txt'}: a run failed without a signal")

        for stage in () if whole else BEFORE[: BEFORE.index("distill") + (STAGE.value == "grpo")]:
            finish(Run(start, log, argv[1:], stage, 1))
        afresh(calm)
        run = started(calm)
        seconds = watch(run)
        finish(run)
        stages = list(MARKS) if whole else [STAGE.value]
        if not whole:  # count from the process's start: the mark appears with the first checkpoint
            seconds, stages = {next(iter(MARKS)): sum(seconds.values())}, [next(iter(MARKS))]
        names = seconds if whole else (STAGE.value,)
        taken = zip(names, seconds.values(), strict=True)
        print("undisturbed: " + ", ".join(f"{n} {s:.0f} s" for n, s in taken), flush=True)
        updates = sum(row.get("updates", 0) for row in metrics_of(calm))
        print(f"GRPO's updates in it: {updates:.0f}", flush=True)
        rng, landed, alike = random.Random(SEED.value), 0, True
        afresh(disturbed)
        while landed < KILLS.value:
            # The stages take turns, so each gets signals; the moment within a stage is random.
            stage = stages[landed * len(stages) // KILLS.value]
            delay, name = rng.uniform(0, seconds[stage]), SIGNALS.value[landed % len(SIGNALS.value)]
            which = rng.randrange(PROCESSES.value)
            run = started(disturbed)
            in_time = after(run, stage, delay)
            if in_time:
                steps = len(metrics_of(disturbed)) if (disturbed / "metrics.jsonl").exists() else 0
                outcome = run.stop(name, which)
            if not (in_time and any(run.wait())):  # the run may end before the signal
                finish(run)
                print(f"after {delay:.1f} s: ended before its signal; compared, a new run starts")
                alike &= same(calm, disturbed)
                afresh(disturbed)
                continue
            landed += 1
            print(
                f"after {delay:.1f} s: {name} to process {which} in {run.stage}, {steps} rows of "
                f"metrics: {outcome}",
                flush=True,
            )
            if name == "TERM" and set(run.wait()) != {PREEMPTED_EXIT_CODE}:
                alike = False
                print(f"WRONG: every process has to exit with {PREEMPTED_EXIT_CODE}", flush=True)
        finish(started(disturbed))
    if not (same(calm, disturbed) and alike):
        sys.exit(1)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    command_line.run(main)
