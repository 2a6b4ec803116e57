"""One flag makes the whole job learn from low and mid and score high; no figure is looked at."""

import json
import os
import pathlib
import runpy

import jax
import pyarrow.parquet as pq
import pytest

import autollm_jax
from autollm_jax.gym.spaces import Dimension, Space
from autollm_jax.gym.tables import write_table
from autollm_jax.job import stages
from autollm_jax.job.job import Job
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.sources import SOURCES

BESIDE = pathlib.Path(autollm_jax.__file__).parents[2] / "shared" / "data"
PUBLISHED = pathlib.Path(os.environ.get("AUTOLLM_PUBLISHED_TABLES", BESIDE))

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
    config.evaluation.methods = "agent,panel,random,boosted_trees,gaussian_process"
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


@pytest.fixture
def public_tables(tmp_path):
    """A folder with every public table that lies beside this clone, and its sources' names."""
    root, found = tmp_path / "tables", []
    for name, source in SOURCES.items():
        if (PUBLISHED / name).is_dir():
            for meta, rows in source.read(PUBLISHED / name):
                write_table(root, meta, rows)
            found.append(name)
    if not found:
        pytest.skip("the published tables are not beside this clone")
    return root, found


def test_the_final_protocol_runs_on_our_own_and_all_public_tables(public_tables, tmp_path):
    """Levels of a table differ in choices and in dimensions, and public ones lack level high."""
    root, sources = public_tables
    config = runpy.run_path("configs/gym.py")["get_config"]("smoke")
    config.gym.roots = f"gym_data,{root}"
    config.protocol = "final"
    config.curate.distill_pairs = 160
    config.curate.synthetic = 0.0
    config.distill.steps = config.grpo.steps = 0
    config.evaluation.seeds = (0,)
    config.gym.budget = 2
    config.evaluation.methods = "panel,random"
    job = Job(config, tmp_path / "job", make_mesh(MeshShape(), jax.devices()[:1]))
    for name in stages.PIPELINE[1:-1]:  # a report shows the held-out tables alone, which are ours
        stages.STAGES[name](job)
    learned = {recipe.source for recipe in job.pairs("distill")}
    assert learned == {"stdlib_cpu", *sources}
    levels = {e.fidelity.level for e in job.training if e.source in sources}
    assert levels == {"low", "mid"}
    rows = pq.read_table(job.results_path).to_pylist()
    assert {row["fidelity"] for row in rows} == {"high"}
