"""The stages of a job, in order; each resumes where the work directory stands.

ground_truth  train the grids of our own outcome tables
verify        (on demand) train random rows of them again and compare
"""

import dataclasses
import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from autollm_jax import workdir as work_directory
from autollm_jax.errors import UserError
from autollm_jax.ground_truth import pretraining
from autollm_jax.ground_truth.ledger import Ledger
from autollm_jax.ground_truth.pretraining import GridExperiment, Plan
from autollm_jax.ground_truth.verify import incomparable
from autollm_jax.ground_truth.verify import verify as verify_rows
from autollm_jax.gym.tables import LEVELS, read_table, table_paths, write_table
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Job:
    """What every stage gets: the config, the work directory and the mesh."""

    config: ConfigDict
    workdir: Path
    mesh: jax.sharding.Mesh

    @property
    def cache(self) -> Path:
        """Vocabularies and token streams."""
        return self.workdir / "cache"


def run(config: ConfigDict, workdir: str, stage: str) -> None:
    """Run one stage, or all of them in order.

    Raises:
      UserError: for whatever the user can mend.
    """
    scoring = stage in ("evaluate", "report", "verify")
    split_cpu(config.mesh.cpu_devices)
    shape = MeshShape(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    job = Job(config, Path(workdir), make_mesh(shape))
    work_directory.claim(workdir, config.to_dict(), scoring)
    for name in PIPELINE if stage == "all" else (stage,):
        STAGES[name](job)


def split_cpu(devices: int) -> None:
    """Show the CPU as several devices, unless XLA_FLAGS does; accelerators are unaffected."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", devices)


def plan_of(config: ConfigDict) -> Plan:
    """Read the ground-truth plan out of the config."""
    g = config.ground_truth
    experiments = tuple(
        GridExperiment(
            level,
            width,
            g[level].layers,
            tokens,
            tuple(g[level].learning_rates),
            tuple(g[level].batch_sizes),
            tuple(g[level].seeds),
        )
        for level in LEVELS
        for width in g[level].widths
        for tokens in g[level].tokens
    )
    return Plan(
        source=g.source,
        corpus=g.corpus,
        vocab_size=g.vocab_size,
        sequence_length=g.sequence_length,
        head_dim=g.head_dim,
        dtype=g.dtype,
        validation_rows=g.validation_rows,
        optimizer=OptimizerConfig(**g.optimizer),
        experiments=experiments,
    )


def ground_truth(job: Job) -> None:
    """Train what the table lacks, then write it; a table made by this config is left alone."""
    config, plan = job.config.ground_truth, plan_of(job.config)
    path, _ = table_paths(config.root, plan.source, pretraining.TASK)
    if path.exists():
        table = read_table(path)
        if table.meta.get("plan_digest") == plan.digest():
            print(f"ground_truth: {path} is complete, {table.rows.num_rows} rows")
            return
        raise UserError(
            f"{path}: made by another config.ground_truth; give --config.ground_truth.root=DIR "
            "or --config.ground_truth.source=NAME for a new table, or remove this one"
        )
    materials = pretraining.load_materials(plan, job.cache)
    ledger = Ledger(job.workdir / "ground_truth" / plan.digest()[:12])
    pretraining.produce(
        plan, materials, ledger, job.mesh, checkpoint_seconds=config.checkpoint_seconds
    )
    command = "python launch/main.py --config=configs/gym.py --stage=ground_truth"
    meta = pretraining.table_meta(plan, materials, command)
    written = write_table(config.root, meta, pretraining.table_rows(plan, ledger))
    print(f"ground_truth: wrote {written}")


def verify(job: Job) -> None:
    """Train random rows of the own table again and print each deviation."""
    config, plan = job.config.ground_truth, plan_of(job.config)
    table = read_table(table_paths(config.root, plan.source, pretraining.TASK)[0])
    materials = pretraining.load_materials(plan, job.cache)
    difference = incomparable(table, materials)
    if difference:
        print(f"verify: losses cannot be compared on this machine: {difference}")
        return
    rows, seed = job.config.verify.rows, job.config.seed
    deviations = verify_rows(table, plan, materials, job.mesh, rows=rows, seed=seed)
    for deviation in deviations:
        print(deviation)
    largest = max(abs(d.repeated - d.recorded) for d in deviations)
    print(f"verify: {len(deviations)} rows trained again, largest deviation {largest:.1e}")


# `all` runs these; the other stages run when they are named.
PIPELINE = ("ground_truth",)
STAGES = {"ground_truth": ground_truth, "verify": verify}
