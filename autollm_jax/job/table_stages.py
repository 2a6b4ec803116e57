"""The stages of the project's own tables: train the runs, verify rows."""

from pathlib import Path

from autollm_jax.errors import UserError
from autollm_jax.ground_truth.ledger import Ledger
from autollm_jax.ground_truth.plan import Plan
from autollm_jax.ground_truth.produce import (
    finished_part,
    missing_runs,
    produce,
    table_meta,
    table_rows,
    write_own_table,
)
from autollm_jax.ground_truth.tasks import make_plan
from autollm_jax.ground_truth.verify import incomparable
from autollm_jax.ground_truth.verify import verify as verify_rows
from autollm_jax.gym.tables import read_table, table_paths
from autollm_jax.job.job import Job


def ground_truth(job: Job) -> None:
    """Train the runs that the own tables lack, and write the tables.

    A complete table of this config stays as it is. Until then the table holds the experiments whose
    runs are all done, and the ledger beside it all finished runs.

    Raises:
      UserError: a table was made by another config.
    """
    config = job.config.ground_truth.to_dict()
    for task in job.config.gym.tasks:
        plan = make_plan(config, task)
        path, _ = table_paths(job.tables_root, plan.source, task)
        if path.exists():
            meta = read_table(path).meta
            complete = not meta.get("unfinished")
            if complete and meta.get("plan_digest") == plan.digest():
                dropped = len(meta.get("dropped", ()))
                print(
                    f"ground_truth: {path} is complete, {len(meta['experiments'])} experiments"
                    + (f" and {dropped} too noisy ones left out" if dropped else "")
                )
                continue
            if complete:
                raise UserError(
                    f"{path}: made by another config.ground_truth.{task}; give "
                    "--config.ground_truth.root=DIR or --config.ground_truth.source=NAME for a new "
                    "table, or move this one away"
                )
        _make_table(job, plan, path)


def _make_table(job: Job, plan: Plan, path: Path) -> None:
    """Train what the plan's table lacks; write it whenever another experiment is finished."""
    config = job.config.ground_truth
    trainer, share = plan.make_trainer(plan.setup, job.cache), share_of(config.share)
    setup = plan.setup_digest()[:12]
    command = f"python launch/main.py --config=configs/{plan.task}.py --stage=ground_truth"
    written: set[str] = set()

    def write_finished() -> Ledger:
        ledger = Ledger(path, setup, share)  # other shares add to theirs
        part = finished_part(plan, ledger)
        if part.experiments.keys() - written:
            written.update(part.experiments)
            meta = table_meta(plan, part, trainer, command)
            rows = table_rows(part, ledger)
            write_own_table(job.tables_root, meta, rows, config.most_noise)
        return ledger

    ledger = Ledger(path, setup, share)
    wanted = [run for runs in plan.share(*share, config.levels) for run in runs]
    wanted = [run for run in wanted if ledger.read(run.name) is None]
    flops = sum(map(plan.setup.flops, wanted))
    print(f"ground_truth: {plan.task}: {len(wanted)} runs to train here, {flops:.1e} FLOPs")
    produce(
        plan,
        trainer,
        ledger,
        job.mesh,
        job.workdir / "ground_truth" / setup,
        checkpoint_seconds=config.checkpoint_seconds,
        share=share,
        levels=config.levels,
        on_group=write_finished,
    )
    ledger = write_finished()
    missing = missing_runs(plan, ledger)
    if missing:
        print(f"ground_truth: {plan.task}: {len(missing)} runs are left to other shares or levels")
        return
    ledger.remove()
    print(f"ground_truth: wrote {path}")


def share_of(text: str) -> tuple[int, int]:
    """Return (i, n) of a share "i/n"."""
    index, count = text.split("/")
    return int(index), int(count)


def verify(job: Job) -> None:
    """Train random rows of the own tables again, and print each deviation.

    Raises:
      UserError: a deviation exceeds the plan's tolerance.
    """
    config, failures = job.config.ground_truth.to_dict(), []
    for task in job.config.gym.tasks:
        plan = make_plan(config, task)
        table = read_table(table_paths(job.tables_root, plan.source, task)[0])
        trainer = plan.make_trainer(plan.setup, job.cache)
        difference = incomparable(table, trainer)
        if difference:
            print(f"verify: {task}: cannot be compared on this machine: {difference}")
            continue
        rows, seed = job.config.verify.rows, job.config.seed
        deviations = verify_rows(table, plan, trainer, job.mesh, rows=rows, seed=seed)
        for deviation in deviations:
            print(deviation)
        largest = max(deviation.size for deviation in deviations)
        print(
            f"verify: {task}: {len(deviations)} rows trained again, largest deviation "
            f"{largest:.1e}, tolerance {plan.tolerance:.1e}"
        )
        if largest > plan.tolerance:
            failures.append(task)
    if failures:
        raise UserError(
            f"verify: rows of {', '.join(failures)} came out differently; the lines above name them"
        )
