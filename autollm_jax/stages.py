"""The stages of a job, in order; each resumes where the work directory stands.

ground_truth  train what our own outcome tables are made of
curate        choose pairs of a target and cheaper evidence to learn from
simulate      play the researcher on them
distill       train the policy on his turns
grpo          train it on by reinforcement learning
evaluate      play it and every baseline on the held-out experiments
report        summarise, draw, and print the headline
verify        (on demand) train random rows of them again and compare
cross_validate  (on demand) compare methods on changed copies of the training experiments
pool          (on demand) pool the evaluations of several trainings into one report
plan          (on demand) compile every step for the mesh from shapes alone: memory and FLOPs
"""

import contextlib
import dataclasses
import functools
import os
import shutil
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from autollm_jax import cross_validation, distributed, planning, preemption, spending
from autollm_jax import workdir as work_directory
from autollm_jax.agent import curation, prompts
from autollm_jax.agent.curation import CurationConfig
from autollm_jax.agent.distillation import (
    distill,
    encode_conversation,
    interchangeable,
    pack,
    relabel,
)
from autollm_jax.agent.rollout import make_rollout, policy_player
from autollm_jax.agent.simulation import Researcher, SimulationConfig, simulate_all
from autollm_jax.agent.surfaces import left_out_means
from autollm_jax.baselines import BASELINES, META_LEARNED
from autollm_jax.baselines.learned import Learned
from autollm_jax.data.tokenizer import train_tokenizer
from autollm_jax.errors import UserError
from autollm_jax.evaluation.report import write_report
from autollm_jax.evaluation.runner import Player, evaluate, play_method, table_hashes
from autollm_jax.evaluation.trainings import pool_trainings
from autollm_jax.files import write_atomic
from autollm_jax.ground_truth.ledger import Ledger
from autollm_jax.ground_truth.produce import (
    missing_runs,
    produce,
    table_meta,
    table_rows,
    write_own_table,
)
from autollm_jax.ground_truth.provenance import code_commit, package_versions
from autollm_jax.ground_truth.tasks import make_plan
from autollm_jax.ground_truth.verify import incomparable
from autollm_jax.ground_truth.verify import verify as verify_rows
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.stress import distort
from autollm_jax.gym.tables import read_table, table_paths
from autollm_jax.job import Job
from autollm_jax.rl.loop import GRPOLoopConfig, train_grpo
from autollm_jax.sharding.rules import even_rows
from autollm_jax.training.loop import LoopConfig, Site

MOST_CUT = 0.1  # of the episodes, that may lose their end in distillation


def run(config: ConfigDict, workdir: str, stage: str) -> None:
    """Run one stage, or all of them in order.

    Of several processes all call this; those beside process 0 are silent.

    Raises:
      UserError: for whatever the user can mend.
      Preempted: the job was asked to stop; the same call goes on.
    """
    if stage == "plan":  # reads nothing of a job, and leaves a work directory to whom it belongs
        planning.plan(Job.start(planning.on_fake_devices(config), workdir))
        return
    scoring = stage in ("evaluate", "report", "verify", "cross_validate")
    with preemption.in_good_order(), open(os.devnull, "w") as nowhere:
        job = Job.start(config, workdir)
        job.check_weights()
        claim = functools.partial(work_directory.claim, workdir, config.to_dict(), scoring)
        distributed.on_main(claim)
        main = distributed.is_main()
        with contextlib.nullcontext() if main else contextlib.redirect_stdout(nowhere):
            for name in PIPELINE if stage == "all" else (stage,):
                with spending.timed(job, name):
                    run_stage(job, name)


def run_stage(job: Job, name: str) -> None:
    """Run a stage in all processes, or in process 0 while the others wait."""
    if name in TOGETHER:
        STAGES[name](job)
    else:
        distributed.on_main(lambda: STAGES[name](job.alone))


def ground_truth(job: Job) -> None:
    """Train what the own tables lack, then write them; one made by this config is left alone.

    A process that trains a share of the runs leaves the table to the one that finds them all done.
    """
    config = job.config.ground_truth.to_dict()
    for task in job.config.gym.tasks:
        plan = make_plan(config, task)
        path, _ = table_paths(job.tables_root, plan.source, task)
        if path.exists():
            table = read_table(path)
            if table.meta.get("plan_digest") == plan.digest():
                print(f"ground_truth: {path} is complete, {table.rows.num_rows} rows")
                continue
            raise UserError(
                f"{path}: made by another config.ground_truth; give "
                "--config.ground_truth.root=DIR or --config.ground_truth.source=NAME for a new "
                "table, or remove this one"
            )
        trainer = plan.make_trainer(plan.setup, job.cache)
        ledger = Ledger(job.workdir / "ground_truth" / plan.setup_digest()[:12])
        seconds, share = config["checkpoint_seconds"], _share(config["share"])
        produce(plan, trainer, ledger, job.mesh, checkpoint_seconds=seconds, share=share)
        missing = missing_runs(plan, ledger)
        if missing:
            print(f"ground_truth: {task}: {len(missing)} runs are left to the other shares")
            continue
        command = f"python launch/main.py --config=configs/{task}.py --stage=ground_truth"
        meta = table_meta(plan, trainer, command)
        written = write_own_table(job.tables_root, meta, table_rows(plan, ledger))
        print(f"ground_truth: wrote {written}")


def _share(text: str) -> tuple[int, int]:
    """Read "i/n"."""
    parts = text.split("/")
    if len(parts) == 2 and all(part.isdecimal() for part in parts):
        index, count = map(int, parts)
        if index < count:
            return index, count
    raise UserError(f"config.ground_truth.share={text!r}: accepted is i/n with 0 <= i < n")


def verify(job: Job) -> None:
    """Train random rows of the own tables again and print each deviation.

    Raises:
      UserError: a row came out differently.
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
        raise UserError(f"verify: rows of {', '.join(failures)} came out differently (see above)")


def curate(job: Job) -> None:
    """Write which pairs distillation and GRPO learn from."""
    config, training = job.config, job.training
    steps = config.grpo.steps * config.grpo.groups
    # A family is costly to make, and its pairs are alike: many for distillation, which sees them in
    # random order, few for GRPO, whose steps take neighbours.
    for name, pairs, per_family, synthetic, seed in (
        ("distill", config.curate.distill_pairs, 16, config.curate.synthetic, 2 * config.seed),
        ("grpo", steps, 2, config.grpo.synthetic, 2 * config.seed + 1),
    ):
        path = job.pairs_path(name)
        if path.exists():
            continue
        settings = CurationConfig(
            seed=seed,
            pairs=pairs,
            synthetic=synthetic,
            unchanged=config.curate.unchanged,
            invented_names=config.curate.invented_names,
            pairs_per_family=per_family,
            **({} if config.gym.evidence else {"no_evidence": 1.0}),
        )
        lines = [recipe.to_json() + "\n" for recipe in curation.plan(training, settings)]
        write_atomic(path, "".join(lines))
        print(f"curate: wrote {len(lines)} pairs to {path}")


def simulate(job: Job) -> None:
    """Play the researcher on every pair, and train the policy's vocabulary on his episodes."""
    config = job.config.simulate
    if not job.trajectories_path.exists():
        settings = SimulationConfig(
            budget=job.config.gym.budget,
            perturbed=config.perturbed,
            reasoning=config.reasoning,
            matching=job.config.gym.matching,
        )
        recipes = job.pairs("distill")
        played = simulate_all(job.training, recipes, settings, config.processes)
        bar = tqdm(played, "simulate", len(recipes), unit="episode", dynamic_ncols=True)
        write_atomic(job.trajectories_path, "".join(t.to_json() + "\n" for t in bar))
    if not job.weights and not job.tokenizer_path.exists():
        texts = [trajectory.text for trajectory in job.trajectories()]
        train_tokenizer(
            texts,
            job.config.policy.vocab_size,
            job.tokenizer_path,
            user_defined_symbols=prompts.SYMBOLS,
            split_digits=job.config.policy.split_digits,
        )


def distill_policy(job: Job) -> None:
    """Supervised fine-tuning on the researcher's turns."""
    config, checkpoints = job.config.distill, job.checkpoints("distill")
    if config.steps == 0 or checkpoints.latest() == config.steps:
        print(f"distill: done, {config.steps} steps")
        return
    tokenizer = job.tokenizer
    conversations = [
        encode_conversation(tokenizer, trajectory.turns)
        for trajectory in tqdm(job.trajectories(), "encode", disable=not distributed.is_main())
    ]
    lengths = [len(tokens) for tokens, _ in conversations]
    print(
        f"distill: {len(lengths)} episodes of {np.median(lengths):.0f} tokens in the median, "
        f"{max(lengths, default=0)} at most"
    )
    cut = sum(length > config.row_length for length in lengths)
    if cut > MOST_CUT * len(lengths):
        raise UserError(
            f"distill: {cut} of {len(lengths)} episodes are longer than "
            f"config.distill.row_length={config.row_length}; raise it and config.policy.context"
        )
    if config.relabelled:
        sets = interchangeable(tokenizer, [tokens for tokens, _ in conversations])
        conversations = relabel(conversations, sets, config.relabelled, job.config.seed)
    distill(
        dataclasses.replace(job.model, dtype=config.dtype),
        LoopConfig(config.steps, config.microbatches, save_every=config.save_every),
        config.batch_rows,
        job.optimizer(config),
        pack(conversations, config.row_length, tokenizer.pad_id),
        Site(job.mesh, checkpoints, job.workdir),
        jax.random.key(job.config.seed),
        params=job.first_parameters() if job.weights else None,
    )


def grpo(job: Job) -> None:
    """Multi-turn GRPO on the training pairs, from the distilled policy."""
    config, checkpoints = job.config.grpo, job.checkpoints("grpo")
    if config.steps == 0 or checkpoints.latest() == config.steps:
        print(f"grpo: done, {config.steps} steps")
        return
    recipes, training, gym = job.pairs("grpo"), job.training, job.config.gym
    terms = {"matching": gym.matching, "invalid_penalty": gym.invalid_penalty}

    def prompts_of_step(step):
        for recipe in recipes[step * config.groups : (step + 1) * config.groups]:
            pair = curation.build(recipe, training)
            yield functools.partial(Episode, pair.target, pair.evidence, gym.budget, **terms)

    train_grpo(
        job.model,
        job.grpo_hyperparameters(),
        GRPOLoopConfig(
            config.steps,
            config.group_size,
            config.minibatch_rows,
            epochs=config.epochs,
            microbatches=config.microbatches,
            save_every=config.save_every,
        ),
        job.optimizer(config),
        make_rollout(
            job.model,
            job.tokenizer,
            job.play(config.temperature),
            prompts_of_step,
            config.group_size,
            job.mesh,
        ),
        job.parameters("distill"),
        Site(job.mesh, checkpoints, job.workdir),
        jax.random.key(job.config.seed + 1),
    )


def evaluate_methods(job: Job) -> None:
    """Score the agent and the baselines on the held-out experiments."""
    config = job.config
    evaluate(
        _players(job),
        job.split,
        None,
        config.gym.budget,
        tuple(config.evaluation.seeds),
        job.results_path,
        tables=table_hashes(job.roots),
        matching=config.gym.matching,
        with_evidence=config.gym.evidence,
        stress=job.stress,
    )


def _players(job: Job) -> dict[str, Player]:
    """Make a player of each method that the config names.

    Raises:
      UserError: there is no such method.
    """
    config, settings = job.config, job.config.evaluation
    games = max(len(job.split.held_out) * len(settings.seeds), 1)

    first = functools.cache(job.first_parameters)

    @functools.cache
    def trained():
        return job.parameters("grpo" if config.grpo.steps else "distill", first)

    def policy(params, advisor, tokenizer=None):
        return policy_player(
            job.model,
            params,
            tokenizer or job.tokenizer,
            job.play(settings.temperature, constrained=settings.constrained, advisor=advisor),
            rows=even_rows(min(games, settings.games), job.mesh),
            mesh=job.mesh,
        )

    def learned(name):
        path = job.workdir / "baselines" / f"{name}.npz"
        method, share = META_LEARNED[name], settings.meta_learning
        return play_method(Learned(method, job.training, config.seed, path, share))

    def untrained():
        tokenizer = job.tokenizer_with_examples(settings.shots)
        return policy(first(), settings.advisor, tokenizer)

    makers = {
        "agent": lambda: policy(trained(), settings.advisor),
        "researcher": lambda: Researcher(settings.advisor),
        "hybrid": lambda: policy(trained(), "gaussian_process"),  # it proposes, the agent decides
        **({"zero_shot": untrained} if job.weights else {}),
        **{name: functools.partial(play_method, cls) for name, cls in BASELINES.items()},
        **{name: functools.partial(learned, name) for name in META_LEARNED},
    }
    names = settings.methods.split(",") if settings.methods else list(makers)
    unknown = [name for name in names if name not in makers]
    if unknown:
        raise UserError(
            f"config.evaluation.methods names {unknown[0]!r}; accepted are {', '.join(makers)}"
        )
    return {name: makers[name]() for name in names}


def cross_validate(job: Job) -> None:
    """Compare the methods on changed copies of the training experiments, and print a table."""
    settings, budget = job.config.cross_validate, job.config.gym.budget
    pairs = cross_validation.pairs_of(job.split.training, settings.pairs, settings.seed)
    found = cross_validation.cross_validate(_players(job), pairs, budget)
    print(cross_validation.table(found, budget))


def report(job: Job) -> None:
    """Write report/summary.json and report/index.html, and print the headline."""
    summary = write_report(
        job.results_path,
        distort(job.split, job.stress).held_out,
        job.results_path.parent / "transcripts.jsonl",
        job.report_folder,
        stress_paths={} if job.stress.label else job.stress_results(),
        spending=None if job.stress.label else spending.spending(job),
        predict=None if job.stress.label else left_out_means,
        provenance={
            "config": job.config.to_dict(),
            "tables (SHA-256)": table_hashes(job.roots),
            "code": code_commit(),
            "versions": package_versions(),
        },
    )
    shown = list(next(iter(summary["regret"].values()))["all"])
    print(f"{'mean regret after':22}" + "".join(f"{k + ' trials':>12}" for k in shown))
    for method, tasks in summary["regret"].items():
        cells = "".join(f"{tasks['all'][k]['mean']:>12.3f}" for k in shown)
        print(f"{method:22}{cells}")
    print(f"report: {job.report_folder / 'index.html'}")


def pool(job: Job) -> None:
    """Pool the evaluations of several trainings, and write the report of all of them."""
    names = [name for name in job.config.pool.workdirs.split(",") if name]
    folder = job.results_path.parent.relative_to(job.workdir)
    pool_trainings([Path(name) / folder for name in names], job.results_path.parent)
    # What one training cost: the first's.
    for name in ("stages.jsonl", "metrics.jsonl"):
        if (Path(names[0]) / name).exists():
            shutil.copyfile(Path(names[0]) / name, job.workdir / name)
    report(job)


# These compute on the devices of all processes; of the others process 0 takes care alone.
TOGETHER = ("distill", "grpo", "evaluate", "cross_validate")
# `all` runs these; the others run when they are named.
PIPELINE = ("ground_truth", "curate", "simulate", "distill", "grpo", "evaluate", "report")
STAGES = {
    "ground_truth": ground_truth,
    "curate": curate,
    "simulate": simulate,
    "distill": distill_policy,
    "grpo": grpo,
    "evaluate": evaluate_methods,
    "report": report,
    "verify": verify,
    "cross_validate": cross_validate,
    "pool": pool,
    "plan": planning.plan,
}
