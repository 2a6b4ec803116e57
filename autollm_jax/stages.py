"""The stages of a job, in order; each resumes where the work directory stands.

ground_truth  train the grids of our own outcome tables
verify        (on demand) train random rows of them again and compare
"""

import dataclasses
import functools

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from autollm_jax import workdir as work_directory
from autollm_jax.agent import curation, prompts
from autollm_jax.agent.curation import CurationConfig
from autollm_jax.agent.distillation import distill, encode_conversation, pack
from autollm_jax.agent.rollout import make_rollout, policy_player
from autollm_jax.agent.simulation import Researcher, SimulationConfig, simulate_all
from autollm_jax.baselines import BASELINES
from autollm_jax.data.tokenizer import train_tokenizer
from autollm_jax.errors import UserError
from autollm_jax.evaluation.report import write_report
from autollm_jax.evaluation.runner import evaluate, play_method, table_hashes
from autollm_jax.files import write_atomic
from autollm_jax.ground_truth import pretraining
from autollm_jax.ground_truth.ledger import Ledger
from autollm_jax.ground_truth.pretraining import GridExperiment, Plan
from autollm_jax.ground_truth.provenance import code_commit
from autollm_jax.ground_truth.verify import incomparable
from autollm_jax.ground_truth.verify import verify as verify_rows
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.tables import LEVELS, read_table, table_paths, write_table
from autollm_jax.job import Job
from autollm_jax.rl.loop import GRPOLoopConfig, train_grpo
from autollm_jax.training.loop import LoopConfig
from autollm_jax.training.optimizer import OptimizerConfig


def run(config: ConfigDict, workdir: str, stage: str) -> None:
    """Run one stage, or all of them in order.

    Raises:
      UserError: for whatever the user can mend.
    """
    scoring = stage in ("evaluate", "report", "verify")
    job = Job.start(config, workdir)
    work_directory.claim(workdir, config.to_dict(), scoring)
    for name in PIPELINE if stage == "all" else (stage,):
        STAGES[name](job)


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
    path, _ = table_paths(job.tables_root, plan.source, pretraining.TASK)
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
    written = write_table(job.tables_root, meta, pretraining.table_rows(plan, ledger))
    print(f"ground_truth: wrote {written}")


def verify(job: Job) -> None:
    """Train random rows of the own table again and print each deviation."""
    plan = plan_of(job.config)
    table = read_table(table_paths(job.tables_root, plan.source, pretraining.TASK)[0])
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


def curate(job: Job) -> None:
    """Write which pairs distillation and GRPO learn from."""
    config, training = job.config, job.split.training
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
            pairs_per_family=per_family,
        )
        lines = [recipe.to_json() + "\n" for recipe in curation.plan(training, settings)]
        write_atomic(path, "".join(lines))
        print(f"curate: wrote {len(lines)} pairs to {path}")


def simulate(job: Job) -> None:
    """Play the researcher on every pair, and train the policy's vocabulary on his episodes."""
    config = job.config.simulate
    if not job.trajectories_path.exists():
        settings = SimulationConfig(budget=job.config.gym.budget, perturbed=config.perturbed)
        recipes = job.pairs("distill")
        played = simulate_all(job.split.training, recipes, settings, config.processes)
        bar = tqdm(played, "simulate", len(recipes), unit="episode", dynamic_ncols=True)
        write_atomic(job.trajectories_path, "".join(t.to_json() + "\n" for t in bar))
    if not job.tokenizer_path.exists():
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
    if checkpoints.latest() == config.steps:
        print(f"distill: done, {config.steps} steps")
        return
    tokenizer = job.tokenizer()
    conversations = [
        encode_conversation(tokenizer, trajectory.turns)
        for trajectory in tqdm(job.trajectories(), "encode", unit="episode", dynamic_ncols=True)
    ]
    distill(
        dataclasses.replace(job.model(), dtype=config.dtype),
        LoopConfig(config.steps, config.microbatches, save_every=config.save_every),
        config.batch_rows,
        job.optimizer(config),
        pack(conversations, config.row_length, tokenizer.pad_id),
        job.mesh,
        checkpoints,
        job.workdir,
        jax.random.key(job.config.seed),
    )


def grpo(job: Job) -> None:
    """Multi-turn GRPO on the training pairs, from the distilled policy."""
    config, checkpoints = job.config.grpo, job.checkpoints("grpo")
    if config.steps == 0 or checkpoints.latest() == config.steps:
        print(f"grpo: done, {config.steps} steps")
        return
    recipes, training = job.pairs("grpo"), job.split.training
    budget, penalty = job.config.gym.budget, job.config.gym.invalid_penalty

    def prompts_of_step(step):
        for recipe in recipes[step * config.groups : (step + 1) * config.groups]:
            pair = curation.build(recipe, training)
            yield functools.partial(
                Episode, pair.target, pair.evidence, budget, invalid_penalty=penalty
            )

    train_grpo(
        job.model(),
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
            job.model(),
            job.tokenizer(),
            job.play(config.temperature),
            prompts_of_step,
            config.group_size,
            job.mesh,
        ),
        job.parameters("distill"),
        job.mesh,
        checkpoints,
        job.workdir,
        jax.random.key(job.config.seed + 1),
    )


def evaluate_methods(job: Job) -> None:
    """Score the agent and the baselines on the held-out experiments."""
    config = job.config
    trained = "grpo" if config.grpo.steps else "distill"
    agent = policy_player(
        job.model(),
        job.parameters(trained),
        job.tokenizer(),
        job.play(config.evaluation.temperature),
        rows=job.even(len(job.split.held_out) * len(config.evaluation.seeds)),
        mesh=job.mesh,
    )
    baselines = {name: play_method(cls) for name, cls in BASELINES.items()}
    players = {"agent": agent, "researcher": Researcher(), **baselines}
    evaluate(
        players,
        job.split,
        None,
        config.gym.budget,
        tuple(config.evaluation.seeds),
        job.results_path,
        tables=table_hashes(job.roots),
        matching=config.gym.matching,
    )


def report(job: Job) -> None:
    """Write report/summary.json and report/index.html, and print the headline."""
    summary = write_report(
        job.results_path,
        job.split.held_out,
        job.results_path.parent / "transcripts.jsonl",
        job.workdir / "report",
        provenance={
            "config": job.config.to_dict(),
            "tables (SHA-256)": table_hashes(job.roots),
            "code": code_commit(),
            "versions": pretraining.package_versions(),
        },
    )
    print(f"{'mean regret after':22}" + "".join(f"{k + ' trials':>12}" for k in ("1", "3", "5")))
    for method, tasks in summary["regret"].items():
        means = [tasks["all"].get(k, {}).get("mean") for k in ("1", "3", "5")]
        cells = "".join(f"{'-' if m is None else format(m, '.3f'):>12}" for m in means)
        print(f"{method:22}{cells}")
    print(f"report: {job.workdir / 'report' / 'index.html'}")


# `all` runs these; `verify` runs when it is named.
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
}
