"""The stages that score the agent: evaluation, cross-validation, report, pooling.

Evaluation writes `evaluated.json` beside its results: the fields and tables that the results depend
on, and a hash of the results. The report raises an error where any of them has changed.
"""

import functools
import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from autollm_jax.agent import interventions
from autollm_jax.agent.environment_turns import Start
from autollm_jax.agent.player import policy_player
from autollm_jax.agent.rollout import Policy
from autollm_jax.agent.scorer import Scorer
from autollm_jax.baselines import BASELINES, META_LEARNED
from autollm_jax.baselines.learned import Learned
from autollm_jax.cluster import distributed
from autollm_jax.errors import UserError
from autollm_jax.evaluation.runner import (
    Player,
    Terms,
    evaluate,
    learn_beside,
    learn_side_by_side,
    play_method,
    table_hashes,
)
from autollm_jax.evaluation.trainings import pool_trainings
from autollm_jax.files import read_json, read_json_lines, write_json_atomic
from autollm_jax.forecasts.left_out import left_out_predictions
from autollm_jax.ground_truth.provenance import code_commit, package_versions
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.splits import evidence_for
from autollm_jax.gym.stress import distort
from autollm_jax.job import cross_validation, spending
from autollm_jax.job.fields import flatten, split_names
from autollm_jax.job.job import Job
from autollm_jax.peers import PEERS, load
from autollm_jax.sharding.rules import even_rows

RECORD, INTERVENTIONS = "evaluated.json", "interventions.json"
# The fields that the games depend on. Tables are compared by hash, since their folder may move.
# Each stress test has a results folder of its own, so its fields are not listed.
GAME_FIELDS = ("gym.tasks", "gym.evidence", "gym.budget", "gym.matching", "protocol")


def evaluate_methods(job: Job) -> None:
    """Score the agent and the baselines on the held-out experiments."""
    config, tables = job.config, table_hashes(job.roots)
    players = _players(job)
    learners = list(_learners(job).values())
    distributed.on_main(lambda: learn_side_by_side(learners, config.evaluation.processes))
    evaluate(
        players,
        job.split,
        Terms(
            config.gym.budget,
            tuple(config.evaluation.seeds),
            matching=config.gym.matching,
            with_evidence=config.gym.evidence,
            stress=job.stress,
        ),
        job.results_path,
        tables=tables,
    )
    distributed.on_main(lambda: write_record(job, tables))


def learn_baselines_beside(job: Job) -> list[BaseProcess]:
    """Begin to learn the baselines that learn, on cores that the training of the agent leaves.

    Returns:
      The processes, for `wait_for`. None with `config.evaluation.processes=1`.
    """
    return learn_beside(_learners(job).values()) if job.config.evaluation.processes > 1 else []


def wait_for(learning: Sequence[BaseProcess]) -> None:
    """Wait for the processes of `learn_baselines_beside`."""
    if any(process.is_alive() for process in learning):
        print("evaluate: waits for the baselines that are still learning")
    for process in learning:
        process.join()


def write_record(job: Job, tables: dict[str, str]) -> None:
    """Write the fields, tables and versions that `job.results_path` was evaluated with.

    Args:
      job: the evaluated job.
      tables: `table_hashes` of the job's roots.
    """
    record = {
        "fields": _game_fields(job),
        "roots": job.config.gym.roots,
        "tables": tables,
        "results": _sha256(job.results_path),
        "code": code_commit(),
        "versions": package_versions(),
    }
    write_json_atomic(job.results_path.with_name(RECORD), record)


def read_record(job: Job, results: Path) -> dict:
    """Read the record of an evaluation, and check that its fields and tables equal the job's.

    Args:
      job: the job that reads the results.
      results: path of a `results.parquet`.

    Raises:
      UserError: the record is missing, or a field or table differs; the message names the first.
    """
    path, again = results.with_name(RECORD), "run --stage=evaluate again"
    if not path.exists() or not results.exists():
        raise UserError(f"{path if results.exists() else results}: missing; {again}")
    record = read_json(path)
    if record["results"] != _sha256(results):
        raise UserError(f"{results}: not the results that {RECORD} describes; {again}")
    for name, now in _game_fields(job).items():
        then = record["fields"].get(name)
        if then != now:
            raise UserError(
                f"{results}: evaluated with config.{name}={_text(then)}, and the report is asked "
                f"for {_text(now)}; give --config.{name}={_text(then)}, or {again}"
            )
    tables = table_hashes(job.roots)
    for name in sorted(tables.keys() | record["tables"].keys()):
        if tables.get(name) != record["tables"].get(name):
            raise UserError(
                f"{results}: evaluated with config.gym.roots={record['roots']}, whose {name} is "
                f"not that of {job.config.gym.roots}; give those tables, or {again}"
            )
    return record


def _game_fields(job: Job) -> dict:
    values = dict(flatten(job.config.to_dict()))
    found = {name: values[name] for name in GAME_FIELDS}
    return found | {"gym.tasks": sorted(job.config.gym.tasks)}


def _text(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _players(job: Job) -> dict[str, Player]:
    """Make a player for each method in `config.evaluation.methods`.

    "" means every method but the peers, whose packages are not installed by default.
    """
    config, settings = job.config, job.config.evaluation
    games = max(len(job.split.held_out) * len(settings.seeds), 1)

    first = functools.cache(job.first_parameters)

    @functools.cache
    def trained():
        return job.parameters("grpo" if config.grpo.steps else "distill", first)

    def policy(params, tokenizer=None):
        return policy_player(
            job.model,
            params,
            tokenizer or job.tokenizer,
            job.play(settings.temperature),
            rows=even_rows(min(games, settings.games), job.player_mesh),
            mesh=job.player_mesh,
        )

    def distilled():
        return policy(job.parameters("distill", first))

    def untrained():
        tokenizer = job.tokenizer_with_examples(settings.shots)
        return policy(first(), tokenizer)

    makers = {
        "agent": lambda: policy(trained()),
        **({"distilled": distilled} if config.grpo.steps else {}),
        **({"zero_shot": untrained} if job.weights else {}),
        **{
            name: functools.partial(play_method, cls, job.stress.failing, settings.processes)
            for name, cls in BASELINES.items()
        },
        **{
            name: functools.partial(play_method, learned, job.stress.failing)
            for name, learned in _learners(job).items()
        },
    }
    names = split_names(settings.methods) or tuple(makers)
    makers |= {name: lambda name=name: play_method(load(name)) for name in PEERS}
    return {name: makers[name]() for name in names}


def _learners(job: Job) -> dict[str, Learned]:
    """Make the baselines of `config.evaluation.methods` that learn, by name."""
    methods = {"scorer": Scorer, **META_LEARNED}
    names = split_names(job.config.evaluation.methods) or tuple(methods)

    def learned(name):
        path, share = job.workdir / "baselines" / f"{name}.npz", job.config.evaluation.meta_learning
        return Learned(methods[name], job.training, job.config.seed, path, share)

    return {name: learned(name) for name in methods if name in names}


def cross_validate(job: Job) -> None:
    """Compare the methods on changed copies of the training experiments, and print a table."""
    settings, budget = job.config.cross_validate, job.config.gym.budget
    pairs = cross_validation.pairs_of(job.split.training, settings.pairs, settings.seed)
    found = cross_validation.cross_validate(_players(job), pairs, budget)
    print(cross_validation.table(found, budget))


def intervene(job: Job) -> None:
    """Exchange thoughts of the agent on the held-out experiments; write and print what changed."""
    split, gym = distort(job.split, job.stress), job.config.gym
    starts = [
        Start(Episode(target, evidence_for(target, split.training), gym.budget))
        for target in split.held_out
    ]
    stage = "grpo" if job.config.grpo.steps else "distill"
    policy = Policy(job.model, job.parameters(stage), job.tokenizer)
    found = interventions.intervene(policy, job.play(0.0), starts)
    write_json_atomic(job.results_path.with_name(INTERVENTIONS), found)
    for kind, cell in found.items():
        print(f"{kind:8} {cell['n']:5} turns, another letter in {cell['changed']:6.1%}", end="")
        asked = not math.isnan(cell["followed"])
        print(f", the letter asked for in {cell['followed']:6.1%}" if asked else "")


def report(job: Job) -> None:
    """Write report/summary.json and report/index.html, and print the headline.

    Raises:
      UserError: the results are missing, or were evaluated with other fields or tables.
    """
    # Other stages and refusals do without the second that importing matplotlib takes.
    from autollm_jax.report.page import write_report

    record = read_record(job, job.results_path)
    stressed = {} if job.stress.label else job.stress_results()
    for path in stressed.values():
        read_record(job, path)
    summary = write_report(
        job.results_path,
        distort(job.split, job.stress).held_out,
        job.report_folder,
        stress_paths=stressed,
        spending=None if job.stress.label else spending.spending(job),
        predict=None if job.stress.label else left_out_predictions,
        metrics=_metrics(job),
        interventions=_interventions(job),
        provenance={
            "config": job.config.to_dict(),
            "tables (SHA-256)": record["tables"],
            "code": record["code"],
            "versions": record["versions"],
        },
    )
    shown = list(next(iter(summary["regret"].values()))["all"])
    print(f"{'mean regret after':22}" + "".join(f"{k + ' trials':>12}" for k in shown))
    for method, tasks in summary["regret"].items():
        cells = "".join(f"{tasks['all'][k]['mean']:>12.3f}" for k in shown)
        print(f"{method:22}{cells}")
    print(f"report: {job.report_folder / 'index.html'}")


def _metrics(job: Job) -> list[dict]:
    path = job.workdir / "metrics.jsonl"
    return read_json_lines(path, json.loads, remedy="move it away") if path.exists() else []


def _interventions(job: Job) -> dict | None:
    path = job.results_path.with_name(INTERVENTIONS)
    return read_json(path) if path.exists() else None


def pool(job: Job) -> None:
    """Pool the evaluations of several trainings, and write one report.

    Raises:
      UserError: the config names no work directories, or their evaluations differ.
    """
    folder = job.results_path.parent.relative_to(job.workdir)
    workdirs = [Path(name) for name in split_names(job.config.pool.workdirs)]
    records = [read_record(job, path / folder / job.results_path.name) for path in workdirs]
    pool_trainings([path / folder for path in workdirs], job.results_path.parent)
    write_record(job, records[0]["tables"])
    # The report shows the cost of one training: that of the first work directory.
    for name in ("stages.jsonl", "metrics.jsonl"):
        if (workdirs[0] / name).exists():
            shutil.copyfile(workdirs[0] / name, job.workdir / name)
    report(job)
