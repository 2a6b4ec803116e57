"""The stages that train the agent: curation, simulation, distillation, GRPO."""

import dataclasses
import functools

import jax
import numpy as np
from tqdm import tqdm

from autollm_jax.agent.distillation import (
    distill,
    encode_conversation,
    interchangeable,
    pack,
    relabel,
)
from autollm_jax.agent.rollout import make_rollout
from autollm_jax.cluster import distributed
from autollm_jax.curriculum.pairs import CurationConfig, Families, build_pair, draw_recipes
from autollm_jax.curriculum.teacher import SimulationConfig, simulate_all
from autollm_jax.data.tokenizer import train_tokenizer
from autollm_jax.errors import UserError
from autollm_jax.files import write_atomic
from autollm_jax.gym.environment import Episode
from autollm_jax.job.job import Job
from autollm_jax.rl.loop import GRPOLoopConfig, train_grpo
from autollm_jax.text import prompts
from autollm_jax.training.loop import LoopConfig, Site

MOST_CUT = 0.1  # largest accepted share of episodes that are longer than a training row


def curate(job: Job) -> None:
    """Write the training pairs of distillation and of GRPO."""
    config, families = job.config, Families(job.training)
    steps = config.grpo.steps * config.grpo.groups
    # A family is costly to make, and its pairs resemble each other. Distillation shuffles its
    # pairs, so it takes many per family. A step of GRPO takes consecutive pairs, so it takes few.
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
        lines = [recipe.to_json() + "\n" for recipe in draw_recipes(families, settings)]
        write_atomic(path, "".join(lines))
        print(f"curate: wrote {len(lines)} pairs to {path}")


def simulate(job: Job) -> None:
    """Play the scripted researcher on every pair; train the policy's vocabulary on the episodes."""
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
    """Train the policy on the scripted researcher's turns, by supervised fine-tuning."""
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
    """Train the distilled policy on the training pairs, by multi-turn GRPO."""
    config, checkpoints = job.config.grpo, job.checkpoints("grpo")
    if config.steps == 0 or checkpoints.latest() == config.steps:
        print(f"grpo: done, {config.steps} steps")
        return
    recipes, families, gym = job.pairs("grpo"), Families(job.training), job.config.gym
    terms = {"matching": gym.matching, "invalid_penalty": gym.invalid_penalty}

    def prompts_of_step(step):
        for recipe in recipes[step * config.groups : (step + 1) * config.groups]:
            pair = build_pair(recipe, families)
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
