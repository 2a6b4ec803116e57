"""One flag makes the whole job learn from low and mid and score high; no figure is looked at."""

import json
import runpy

import jax
import pyarrow.parquet as pq
import pytest

from autollm_jax.gym.spaces import Dimension, Space
from autollm_jax.gym.tables import write_table
from autollm_jax.job import stages
from autollm_jax.job.job import Job
from autollm_jax.sharding.mesh import MeshShape, make_mesh

RATES, BATCHES = tuple(2.0**n for n in range(-8, -2)), (4, 8, 16, 32)
SPACE = Space(
    (
        Dimension("learning_rate", "log-ordinal", RATES),
        Dimension("batch_size", "log-ordinal", BATCHES),
    )
)
SIZES = {"low": (1e4, 2e4), "mid": (4e4,), "high": (8e4, 1.6e5)}


def experiment(level, size):
    return {
        "context": {},
        "space": SPACE.to_json(),
        "fidelity": {"level": level, "parameters": size, "tokens": size, "flops": 6 * size**2},
        "objective": {"metric": "loss", "goal": "minimize"},
        "default": {"learning_rate": RATES[0], "batch_size": 4},
        "default_origin": "the tests",
    }


def row(name, size, i, j):
    return {
        "experiment": name,
        "config.learning_rate": RATES[i],
        "config.batch_size": BATCHES[j],
        "loss": 3.0 + abs(i - 3) * 0.1 + abs(j - 1) * 0.2,
        "flops": 6 * size**2,
        "seconds": 1.0,
        "seed": 0,
        "status": "ok",
        "run": f"{name}_{i}_{j}",
    }


@pytest.fixture
def job(tmp_path):
    """A job on one small table that has all three levels; nothing is trained."""
    config = runpy.run_path("configs/gym.py")["get_config"]("smoke")
    config.gym.tasks = ("pretraining",)
    config.protocol = "final"
    config.gym.budget = 2
    config.curate.distill_pairs = 16
    config.distill.steps = config.grpo.steps = 0
    config.evaluation.seeds = (0,)
    job = Job(config, tmp_path, make_mesh(MeshShape(), jax.devices()[:1]))
    named = {f"{level}_{s:.0f}": (level, s) for level, sizes in SIZES.items() for s in sizes}
    meta = {
        "format": 1,
        "source": "own",
        "task": "pretraining",
        "experiments": {name: experiment(*where) for name, where in named.items()},
    }
    rows = [
        row(name, size, i, j)
        for name, (_, size) in named.items()
        for i in range(len(RATES))
        for j in range(len(BATCHES))
    ]
    write_table(job.roots[0], meta, rows)
    return job


def test_the_final_protocol_runs_from_curation_to_the_report(job):
    for name in stages.PIPELINE[1:]:
        stages.STAGES[name](job)
    rows = pq.read_table(job.results_path).to_pylist()
    assert {row["experiment"] for row in rows} == {"high_80000", "high_160000"}
    assert {e.fidelity.level for e in job.training} == {"low", "mid"}
    summary = json.loads((job.workdir / "report" / "summary.json").read_text())
    assert {"regret", "invalid_rate", "validity", "claims", "cost"} < set(summary)
    evidence = summary["cost"]["groups"]["own/pretraining"]["evidence"]
    assert evidence == 24 * 6 * (1e4**2 + 2e4**2 + 4e4**2)
