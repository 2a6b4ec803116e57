"""Trains the runs of a plan, and writes the table from their outcomes."""

import dataclasses
import math
import shutil
from pathlib import Path

from jax.sharding import Mesh
from tqdm import tqdm

from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.errors import UserError
from autollm_jax.ground_truth.ledger import Ledger
from autollm_jax.ground_truth.plan import Cell, Measurement, Plan, Run, Trainer
from autollm_jax.ground_truth.provenance import code_commit, device_kind, package_versions
from autollm_jax.gym.experiments import table_experiments
from autollm_jax.gym.tables import FORMAT, read_table, write_table


def produce(
    plan: Plan,
    trainer: Trainer,
    ledger: Ledger,
    mesh: Mesh,
    *,
    checkpoint_seconds: float,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Train every run of the plan that the ledger lacks, group by group.

    Args:
      plan: the runs to train.
      trainer: the plan's trainer.
      ledger: the finished runs; gets the outcomes of the new ones.
      mesh: the runs of a group are split over its `data` axis.
      checkpoint_seconds: seconds between two checkpoints of a group.
      share: (i, n) trains only the groups of every n-th program, from program i on. So n processes
        make one table without any coordination, in one ledger folder or in n folders that are
        copied together later.
    """
    groups = plan.share(*share)
    total = sum(trainer.steps(runs[0]) for runs in groups)
    with tqdm(total=total, desc=f"{plan.task} runs", unit="step", dynamic_ncols=True) as bar:
        for runs in groups:
            bar.set_postfix_str(runs[0].group, refresh=False)
            if all(ledger.read(run.name) is not None for run in runs):
                bar.update(trainer.steps(runs[0]))
                continue
            folder = ledger.folder / "checkpoints" / runs[0].name
            checkpoints = Checkpoints(folder, alone=True)
            measured = trainer.train(
                runs,
                mesh,
                checkpoints=checkpoints,
                checkpoint_seconds=checkpoint_seconds,
                on_steps=bar.update,
            )
            for run, measurement in zip(runs, measured, strict=True):
                ledger.record(run.name, _entry(measurement))
            checkpoints.close()
            shutil.rmtree(folder)


def _entry(measurement: Measurement) -> dict:
    return {
        **dataclasses.asdict(measurement),
        "commit": code_commit(),
        "versions": package_versions(),
        "device": device_kind(),
    }


def missing_runs(plan: Plan, ledger: Ledger) -> list[Run]:
    """Return the runs that the ledger does not have."""
    return [run for runs in plan.groups() for run in runs if ledger.read(run.name) is None]


def table_rows(plan: Plan, ledger: Ledger) -> list[dict]:
    """Make the table's rows from the ledger, in the plan's order.

    Raises:
      UserError: the ledger lacks a run.
    """
    return [_row(cell, ledger) for cell in plan.cells]


def _row(cell: Cell, ledger: Ledger) -> dict:
    entry = ledger.read(cell.run.name)
    if entry is None:
        raise UserError(
            f"{ledger.path(cell.run.name)}: this run has not been trained; run "
            "--stage=ground_truth again"
        )
    config = {}
    for name, value in cell.config.items():
        if isinstance(value, dict):
            config |= {f"config.{name}.{component}": weight for component, weight in value.items()}
        else:
            config[f"config.{name}"] = value
    nothing = dict.fromkeys(entry["metrics"])
    return {
        "experiment": cell.experiment,
        **config,
        **(nothing if cell.infeasible else entry["metrics"]),
        **cell.extra,
        "flops": entry["flops"],
        "seconds": entry["seconds"],
        "seed": cell.run.seed,
        "status": "infeasible" if cell.infeasible else entry["status"],
        "run": cell.run.name,
        "commit": entry["commit"],
        "versions": entry["versions"],
        "device": entry["device"],
    }


def table_meta(plan: Plan, trainer: Trainer, command: str) -> dict:
    """Return the table's JSON file: its experiments, units and provenance."""
    return {
        "format": FORMAT,
        "source": plan.source,
        "task": plan.task,
        "licence": "the same as this project's",
        "upstream": {"address": "this project's own runs", "commit": code_commit(), "files": {}},
        "command": command,
        "plan": dataclasses.asdict(plan.setup),
        "plan_digest": plan.digest(),
        "provenance": trainer.provenance(),
        "units": {
            **plan.units,
            "flops": "training FLOPs of the run",
            "seconds": "wall-clock seconds of the run's group divided by its runs",
            "run": "the run behind the row; rows of several experiments may share one",
        },
        "experiments": dict(plan.experiments),
    }


def write_own_table(root, meta: dict, rows: list[dict]) -> Path:
    """Write a table, with the noise floor of each experiment; return the table's path."""
    table = read_table(write_table(root, meta, rows))
    experiments = dict(meta["experiments"])
    for experiment in table_experiments(table):
        # The noise floor is the standard deviation over seeds, pooled over the configurations.
        floor = experiment.outcomes.noise if math.isfinite(experiment.outcomes.noise) else None
        experiments[experiment.name] = experiments[experiment.name] | {"noise_floor": floor}
    return write_table(root, meta | {"experiments": experiments}, table.rows)
