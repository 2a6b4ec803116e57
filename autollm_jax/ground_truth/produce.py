"""Trains the runs of a plan, and writes the table from their outcomes."""

import dataclasses
import math
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from jax.sharding import Mesh

from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.ground_truth.ledger import Ledger
from autollm_jax.ground_truth.plan import Cell, Measurement, Plan, Run, Trainer
from autollm_jax.ground_truth.provenance import code_commit, device_kind, package_versions
from autollm_jax.gym.experiments import table_experiments
from autollm_jax.gym.tables import FORMAT, LEVELS, read_table, write_table
from autollm_jax.progress_bar import progress_bar


def produce(
    plan: Plan,
    trainer: Trainer,
    ledger: Ledger,
    mesh: Mesh,
    checkpoints_root: Path,
    *,
    checkpoint_seconds: float,
    share: tuple[int, int] = (0, 1),
    levels: Sequence[str] = LEVELS,
    on_group: Callable[[], object] = lambda: None,
) -> None:
    """Train every run of the plan that the ledger lacks, group by group.

    Of a group that is finished in part, only the other runs are trained.

    Args:
      plan: the runs to train.
      trainer: the plan's trainer.
      ledger: the finished runs; gets the outcomes of the new ones.
      mesh: the runs of a group are split over its `data` axis.
      checkpoints_root: folder of the groups' checkpoints.
      checkpoint_seconds: seconds between two checkpoints of a group.
      share: (i, n) trains only the groups of every n-th program, from program i on. So n processes
        make one table without any coordination; each has a ledger file of its own.
      levels: levels of the experiments whose runs are trained.
      on_group: called after each group that was trained.
    """
    groups = plan.share(*share, levels)
    total = sum(trainer.steps(runs[0]) for runs in groups)
    with progress_bar(total=total, desc=f"{plan.task} runs", unit="step") as bar:
        for runs in groups:
            bar.set_postfix_str(runs[0].group, refresh=False)
            missing = [run for run in runs if ledger.read(run.name) is None]
            if not missing:
                bar.update(trainer.steps(runs[0]))
                continue
            folder = checkpoints_root / _folder(missing)
            checkpoints = Checkpoints(folder, alone=True)
            measured = trainer.train(
                missing,
                mesh,
                checkpoints=checkpoints,
                checkpoint_seconds=checkpoint_seconds,
                on_steps=bar.update,
            )
            pairs = zip(missing, measured, strict=True)
            together = len(missing)
            ledger.record({run.name: _entry(measurement, together) for run, measurement in pairs})
            checkpoints.close()
            shutil.rmtree(folder)
            on_group()


def _folder(runs: Sequence[Run]) -> str:
    """Name the checkpoints of a group; other runs of the same shapes have another name."""
    names = "\n".join(run.name for run in runs)
    return f"{runs[0].name}-{zlib.crc32(names.encode()):08x}"


def _entry(measurement: Measurement, together: int) -> dict:
    return {
        **dataclasses.asdict(measurement),
        "together": together,
        "commit": code_commit(),
        "versions": package_versions(),
        "device": device_kind(),
    }


def missing_runs(plan: Plan, ledger: Ledger) -> list[Run]:
    """Return the runs that the ledger does not have."""
    return [run for runs in plan.groups() for run in runs if ledger.read(run.name) is None]


def finished_part(plan: Plan, ledger: Ledger) -> Plan:
    """Return the part of the plan whose experiments have all of their runs."""
    missing = {run.name for run in missing_runs(plan, ledger)}
    unfinished = {c.experiment for c in plan.cells if not c.infeasible and c.run.name in missing}
    return dataclasses.replace(
        plan,
        experiments={n: e for n, e in plan.experiments.items() if n not in unfinished},
        cells=tuple(cell for cell in plan.cells if cell.experiment not in unfinished),
    )


def table_rows(plan: Plan, ledger: Ledger) -> list[dict]:
    """Make the table's rows from the ledger, in the plan's order.

    An infeasible configuration was not trained: it has one row, whatever its seeds, and no cost.

    Raises:
      KeyError: the ledger lacks a run.
    """
    entries = {c.run.name: ledger.read(c.run.name) for c in plan.cells if not c.infeasible}
    lacking = [name for name, entry in entries.items() if entry is None]
    if lacking:
        raise KeyError(f"the ledger lacks {lacking[0]}")
    metrics = next(iter(entries.values()))["metrics"]
    nothing = {
        "metrics": dict.fromkeys(metrics),
        "status": "infeasible",
        **dict.fromkeys(("flops", "seconds", "together", "commit", "versions", "device")),
    }
    return [
        _row(cell, nothing if cell.infeasible else entries[cell.run.name])
        for cell in plan.cells
        if not (cell.infeasible and cell.run.seed)
    ]


def _row(cell: Cell, entry: Mapping) -> dict:
    config = {}
    for name, value in cell.config.items():
        if isinstance(value, dict):
            config |= {f"config.{name}.{component}": weight for component, weight in value.items()}
        else:
            config[f"config.{name}"] = value
    return {
        "experiment": cell.experiment,
        **config,
        **entry["metrics"],
        **cell.extra,
        "seed": cell.run.seed,
        "run": cell.run.name,
        **{name: entry[name] for name in ("flops", "seconds", "status")},
        "together": entry.get("together"),
        **{name: entry[name] for name in ("commit", "versions", "device")},
    }


def table_meta(plan: Plan, part: Plan, trainer: Trainer, command: str) -> dict:
    """Return the JSON file of a part of a plan: its experiments, units and provenance.

    Where the part is not the whole, `unfinished` names the experiments that it lacks.
    """
    unfinished = [name for name in plan.experiments if name not in part.experiments]
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
            "together": "runs that were trained in one program with it",
            "run": "the run behind the row; rows of several experiments may share one",
        },
        "experiments": dict(part.experiments),
        **({"unfinished": unfinished} if unfinished else {}),
    }


def write_own_table(
    root: str | os.PathLike, meta: dict, rows: list[dict], most_noise: float = math.inf
) -> Path:
    """Write a table, with the noise floor of each experiment; return the table's path.

    Args:
      root: folder of outcome tables.
      meta: the table's JSON file.
      rows: the table's rows.
      most_noise: largest noise floor, in units of regret, of a mid or high experiment. No method
        can show skill on a noisier one: the table leaves it out, and `dropped` has its noise.
    """
    table = read_table(write_table(root, meta, rows))
    kept, dropped = {}, {}
    for experiment in table_experiments(table):
        noise = experiment.outcomes.noise_regret
        if experiment.fidelity.level != "low" and noise > most_noise:
            dropped[experiment.name] = noise
            continue
        # The noise floor is the standard deviation over seeds, pooled over the configurations.
        floor = experiment.outcomes.noise if math.isfinite(experiment.outcomes.noise) else None
        kept[experiment.name] = meta["experiments"][experiment.name] | {"noise_floor": floor}
    meta = meta | {"experiments": kept} | ({"dropped": dropped} if dropped else {})
    is_kept = pc.is_in(table.rows["experiment"], pa.array(list(kept)))
    return write_table(root, meta, table.rows.filter(is_kept))
