"""The stages that train the agent: curation, simulation, distillation, GRPO."""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Iterable
from concurrent.futures.process import BrokenProcessPool

import jax
import numpy as np

from autollm_jax.agent.dialogue import panel_ids
from autollm_jax.agent.distillation import (
    choices_of,
    distill,
    encode_conversation,
    pack,
)
from autollm_jax.agent.environment_pool import Workers
from autollm_jax.agent.environment_turns import Start
from autollm_jax.agent.grpo_rollout import make_rollout
from autollm_jax.agent.player import mean_regret
from autollm_jax.agent.rollout import Layout, Policy
from autollm_jax.cluster import distributed
from autollm_jax.curriculum.pairs import CurationConfig, Families, draw_recipes
from autollm_jax.curriculum.preparing import Prepared, over_pairs, prepare
from autollm_jax.curriculum.teacher import SimulationConfig
from autollm_jax.curriculum.teacher import simulate as simulate_pair
from autollm_jax.data.tokenizer import train_tokenizer
from autollm_jax.errors import UserError
from autollm_jax.files import write_atomic
from autollm_jax.gym.environment import Episode
from autollm_jax.job.job import Job
from autollm_jax.progress_bar import progress_bar
from autollm_jax.rl.batches import GRPOLoopConfig
from autollm_jax.rl.loop import Selection, train_grpo
from autollm_jax.sharding.mesh import for_play
from autollm_jax.text.symbols import SYMBOLS
from autollm_jax.training.loop import LoopConfig, Site

PAIRS_PER_FAMILY = 3  # a family is costly to make, and its pairs resemble each other
MOST_CUT = 0.1  # largest accepted share of episodes that are longer than a training row


def curate(job: Job) -> None:
    """Write the training pairs of distillation and of GRPO, and GRPO's kept-out pairs."""
    config, families = job.config, Families(job.training)
    grpo, seed = config.grpo, 3 * config.seed
    for name, pairs, synthetic, own_seed in (
        ("distill", config.curate.distill_pairs, config.curate.synthetic, seed),
        ("grpo", grpo.pairs if grpo.steps else 0, grpo.synthetic, seed + 1),
        ("kept_out", grpo.kept_out if grpo.steps else 0, 0.0, seed + 2),
    ):
        path = job.pairs_path(name)
        if path.exists():
            continue
        settings = CurationConfig(
            seed=own_seed,
            pairs=pairs,
            # Without real tables to draw from, all families are of the prior.
            synthetic=synthetic if families.usable_tables() else 1.0,
            unchanged=config.curate.unchanged,
            renamed=config.curate.renamed,
            failing=config.curate.failing,
            far=config.curate.far,
            pairs_per_family=PAIRS_PER_FAMILY,
            **({} if config.gym.evidence else {"no_evidence": 1.0}),
        )
        lines = [recipe.to_json() + "\n" for recipe in draw_recipes(families, settings)]
        write_atomic(path, "".join(lines))
        print(f"curate: wrote {len(lines)} pairs to {path}")


def simulate(job: Job) -> None:
    """Play the teacher on every pair; train the policy's vocabulary on the episodes."""
    config = job.config.simulate
    if not job.trajectories_path.exists():
        settings = SimulationConfig(
            budget=job.config.gym.budget,
            episodes=config.episodes,
            softness=config.softness,
            uniform=config.uniform,
            lookahead=config.lookahead,
            prior=config.prior,
            reasoning=config.reasoning,
            full=job.config.policy.full_texts,
            matching=job.config.gym.matching,
        )
        recipes = job.pairs("distill")
        bar = progress_bar(desc="simulate", total=len(recipes), unit="pair")
        work, lines = functools.partial(simulate_pair, config=settings), []
        with over_pairs(job.training, recipes, work, config.processes) as coming:
            for played in coming:
                lines += [trajectory.to_json() + "\n" for trajectory in played]
                bar.update()
        bar.close()
        write_atomic(job.trajectories_path, "".join(lines))
    if not job.weights and not job.tokenizer_path.exists():
        texts = [trajectory.text for trajectory in job.trajectories()]
        train_tokenizer(
            texts,
            job.config.policy.vocab_size,
            job.tokenizer_path,
            user_defined_symbols=SYMBOLS,
            split_digits=job.config.policy.split_digits,
        )


def distill_policy(job: Job) -> None:
    """Train the policy on the teacher's turns, by supervised fine-tuning."""
    config, checkpoints = job.config.distill, job.checkpoints("distill")
    if config.steps == 0 or checkpoints.latest() == config.steps:
        print(f"distill: done, {config.steps} steps")
        return
    tokenizer = job.tokenizer
    trajectories = job.trajectories()
    conversations = [
        encode_conversation(tokenizer, trajectory.turns)
        for trajectory in progress_bar(trajectories, "encode", shown=distributed.is_main())
    ]
    choices = [choices_of(tokenizer, trajectory.turns) for trajectory in trajectories]
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
    distill(
        dataclasses.replace(job.model, dtype=config.dtype),
        LoopConfig(config.steps, config.microbatches, save_every=config.save_every),
        config.batch_rows,
        job.optimizer(config),
        pack(conversations, config.row_length, tokenizer.pad_id, choices, panel_ids(tokenizer)),
        Site(job.mesh, checkpoints, job.workdir, job.traced("distill")),
        jax.random.key(job.config.seed),
        params=job.first_parameters() if job.weights else None,
    )


def grpo(job: Job) -> None:
    """Train the distilled policy on the training pairs, by multi-turn GRPO."""
    config, checkpoints = job.config.grpo, job.checkpoints("grpo")
    if config.steps == 0 or checkpoints.latest() == config.steps:
        print(f"grpo: done, {config.steps} steps")
        return
    enumerated = config.members == "enumerated"
    refills = 0 if enumerated else config.refills
    first, rounds = (checkpoints.latest() or 0), refills + 1
    numbers = range(first * rounds * config.groups, config.steps * rounds * config.groups)
    ahead, processes = enumerated and config.lookahead, job.config.simulate.processes

    def starts_of_round(number):
        first = number * config.groups
        return [functools.partial(games.start, first + n) for n in range(config.groups)]

    player_mesh, mesh = job.grpo_meshes
    looking = for_play(mesh, job.config.mesh.player_tensor)

    def kept_out_regret(params):
        starts = [kept_out.start(n) for n in range(config.kept_out)]
        policy = Policy(job.model, params, job.tokenizer)
        rows = job.config.evaluation.games
        return mean_regret(policy, job.play(0.0), starts, rows, looking)

    selection = Selection(kept_out_regret, config.evaluate_every, job.best_checkpoints("grpo"))
    answering = job.config.rollout.processes
    if answering > 1:
        answering = max(answering // distributed.on_this_host(), 1)
    with (
        Workers(answering, job.tokenizer) if answering > 1 else contextlib.nullcontext() as workers,
        _Games(job, "grpo", numbers, ahead, processes) as games,
        _Games(job, "kept_out", range(config.kept_out)) as kept_out,
    ):
        train_grpo(
            job.model,
            job.grpo_hyperparameters(),
            GRPOLoopConfig(
                config.steps,
                config.group_size,
                config.minibatch_rows,
                epochs=config.epochs,
                microbatches=config.microbatches,
                share_prefixes=config.share_prefixes,
                most_sampled=job.most_sampled,
                save_every=config.save_every,
            ),
            job.optimizer(config),
            make_rollout(
                job.model,
                job.tokenizer,
                job.play(config.temperature),
                starts_of_round,
                Layout(config.group_size, job.rollout_rows, player_mesh, workers),
                config.baseline and not enumerated,
                refills,
                job.grpo_hyperparameters(),
            ),
            functools.partial(job.parameters, "distill"),
            Site(mesh, checkpoints, job.workdir, job.traced("grpo")),
            jax.random.key(job.config.seed + 1),
            selection if config.kept_out else None,
            player_mesh if config.off_policy_steps else None,
        )


class _Games:
    """The games of a list of pairs, a context; each pair is prepared once.

    Args:
      job: the job.
      name: the list's.
      numbers: of the games that will be played, in the order of their first play.
      ahead: as in `prepare`.
      processes: that prepare pairs beside this one; with 1, this one does when a game begins.
    """

    def __init__(self, job: Job, name: str, numbers: Iterable[int], ahead=False, processes=1):
        self._job, self._gym, self._pairs = job, job.config.gym, job.pairs(name)
        places = dict.fromkeys(number % len(self._pairs) for number in numbers)
        self._waiting = collections.deque(places)
        self._made: dict[int, Prepared] = {}
        self._work = functools.partial(prepare, budget=self._gym.budget, ahead=ahead)
        self._processes, self._stack = processes, contextlib.ExitStack()

    def __enter__(self) -> "_Games":
        self._begin(self._processes)
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def _begin(self, processes: int) -> None:
        recipes = [self._pairs[place] for place in self._waiting]
        coming = over_pairs(self._job.training, recipes, self._work, processes)
        self._coming = self._stack.enter_context(coming)

    def start(self, number: int) -> Start:
        """Begin an episode; later rounds over the pairs have the candidates in another order."""
        place = number % len(self._pairs)
        while place not in self._made:
            try:
                made = next(self._coming)
            except BrokenProcessPool:  # the processes were stopped, as by a pre-emption of all
                self._begin(processes=1)
                made = next(self._coming)
            self._made[self._waiting.popleft()] = made
        made, gym = self._made[place], self._gym
        terms = {"matching": gym.matching, "invalid_penalty": gym.invalid_penalty}
        episode = Episode(made.target, made.panel.evidence, gym.budget, **terms)
        return Start(episode, made.panel, number, made.lookahead)
