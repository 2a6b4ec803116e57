"""GRPO sweeps: many runs of one shape at once, on verifiable problems of one turn.

    for every step:
      1. prompts: each run draws its problems, G neighbours on one of them
      2. roll out: all runs' policies answer (`sampler.single_turn`, vmapped over the runs)
      3. score: answers are checked on the host; advantages are `scoring.score`'s
      4. update: minibatches of `objective.policy_loss`, in one or more epochs, vmapped over runs

Loss, advantages and sampler are the agent's own; this file maps them over runs, which differ in
learning rate, KL coefficient, clip range, temperature and seed. Runs of one group size share a
program, and devices do not communicate inside a step.

Letters: R runs, B rows of a run's rollout, C tokens of the longest prompt, S slots of a row, U
updates of a rollout, M rows of a minibatch.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.cluster import preemption
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl import sampler
from autollm_jax.rl.batches import GRPOLoopConfig, RolloutBatch, UpdateBatch
from autollm_jax.rl.grpo import GRPOHyperparameters
from autollm_jax.rl.logprobs import token_logprobs
from autollm_jax.rl.objective import policy_loss
from autollm_jax.rl.problems import STOP_ID, ProblemSet, decode, encode
from autollm_jax.rl.scoring import score
from autollm_jax.training.group_progress import GroupProgress
from autollm_jax.training.optimizer import (
    OptimizerConfig,
    make_optimizer,
    updates_per_rollout,
)
from autollm_jax.training.state import TrainState
from autollm_jax.training.step import update
from autollm_jax.training.sweep import RUNS, WHOLE, at_once, column, filled

# Held-out problems that a policy answers in one call; it bounds the memory of the KV cache.
EVALUATED_AT_ONCE = 512


@dataclasses.dataclass(frozen=True)
class GRPORun:
    """The fields in which runs of a group differ; `clip_range` holds above and below 1."""

    learning_rate: float
    kl_coefficient: float
    clip_range: float
    temperature: float
    seed: int


@dataclasses.dataclass(frozen=True)
class GRPOSweepConfig:
    """Settings that the runs of a group share.

    steps: rollouts in all.
    rollout_rows: answers of a rollout, B.
    group_size: answers to one problem, G.
    minibatch_rows: answers of an optimizer update, M.
    epochs: passes over each rollout.
    """

    steps: int
    rollout_rows: int
    group_size: int
    minibatch_rows: int
    epochs: int

    @property
    def updates(self) -> int:
        """Count the optimizer updates of a rollout, U."""
        return updates_per_rollout(self.rollout_rows, self.minibatch_rows, self.epochs)


@functools.lru_cache(maxsize=8)
def make_start(optimizer: OptimizerConfig, mesh: Mesh):
    """Compile start(params, seeds_R) -> a TrainState with a leading axis R, all on `params`."""

    def start(params, seeds_R):
        def one_run(_):
            opt_state = make_optimizer(optimizer, updates=1).init(params)
            return TrainState(jnp.zeros((), jnp.int32), params, opt_state)

        return jax.vmap(one_run)(seeds_R)

    specs = {"in_specs": (WHOLE, RUNS), "out_specs": RUNS}
    return jax.jit(jax.shard_map(start, mesh=mesh, check_vma=False, **specs))


@functools.lru_cache(maxsize=8)
def make_answer(model: TransformerConfig, context: int, max_new_tokens: int, greedy: bool, mesh):
    """Compile a function that answers prompts.

    Returns:
      answer(params_R, seeds_R, step, temperature_R, prompt_RBC, length_RB) -> the final
        `SamplerState` with a leading axis R, without cache and logits.
    """
    config = sampler.SamplerConfig(context)

    def one_run(params, seed, step, temperature, prompt_BC, length_B):
        state = sampler.single_turn(
            model,
            params,
            config,
            jnp.arange(len(length_B), dtype=jnp.uint32),
            jax.random.fold_in(jax.random.key(seed), step),
            prompt_BC,
            length_B,
            sampler.TurnConfig(STOP_ID, max_new_tokens, 0.0 if greedy else temperature),
        )
        return dataclasses.replace(state, cache=(), logits_BV=jnp.zeros((len(length_B), 0)))

    def answer(params_R, seeds_R, step, temperature_R, prompt_RBC, length_RB):
        mapped = jax.vmap(one_run, in_axes=(0, 0, None, 0, 0, 0))
        return mapped(params_R, seeds_R, step, temperature_R, prompt_RBC, length_RB)

    specs = {"in_specs": (RUNS, RUNS, WHOLE, RUNS, RUNS, RUNS), "out_specs": RUNS}
    return jax.jit(jax.shard_map(answer, mesh=mesh, check_vma=False, **specs))


@functools.lru_cache(maxsize=8)
def make_improve(model: TransformerConfig, optimizer: OptimizerConfig, mesh: Mesh):
    """Compile the updates that follow a rollout.

    Returns:
      improve(state_R, reference, hp_R, steps, batch_RBT, order_RUM) -> state_R, donated, where
        `reference` holds the parameters of the KL penalty's reference, hp_R is a dict of arrays,
        `steps` the updates of a whole run, and order_RUM the rows of each update.
    """

    def one_run(state, reference, hp, steps, batch_BT: UpdateBatch, order_UM):
        settings = GRPOHyperparameters(
            clip_low=hp["clip_range"],
            clip_high=hp["clip_range"],
            kl_coefficient=hp["kl_coefficient"],
            temperature=hp["temperature"],
        )
        transformation = make_optimizer(optimizer, steps, hp["learning_rate"])
        reference_BT, _ = token_logprobs(
            model,
            reference,
            batch_BT.tokens_BT,
            batch_BT.segments_BT,
            batch_BT.positions_BT,
            hp["temperature"],
        )
        batch_BT = dataclasses.replace(batch_BT, reference_BT=reference_BT)

        def one_update(state, rows_M):
            piece = jax.tree.map(lambda x_BT: x_BT[rows_M], batch_BT)
            loss_fn = functools.partial(policy_loss, model, settings)
            after, _ = update(loss_fn, transformation, state, piece)
            # As in the loop, a minibatch without an informative answer is no update.
            any_token = piece.mask_BT.any()
            return jax.tree.map(lambda new, old: jnp.where(any_token, new, old), after, state), None

        return jax.lax.scan(one_update, state, order_UM)[0]

    def improve(state_R, reference, hp_R, steps, batch_RBT, order_RUM):
        runs, T, M = len(order_RUM), batch_RBT.tokens_BT.shape[-1], order_RUM.shape[-1]
        together, _ = at_once(runs, M, T)

        def improved(arguments):
            state, hp, batch_BT, order_UM = arguments
            return one_run(state, reference, hp, steps, batch_BT, order_UM)

        arguments = (state_R, hp_R, batch_RBT, order_RUM)
        return jax.lax.map(improved, arguments, batch_size=together)

    specs = {"in_specs": (RUNS, WHOLE, RUNS, WHOLE, RUNS, RUNS), "out_specs": RUNS}
    return jax.jit(jax.shard_map(improve, mesh=mesh, check_vma=False, **specs), donate_argnums=0)


def train_grpo_group(
    model: TransformerConfig,
    optimizer: OptimizerConfig,
    reference_params,
    problems: ProblemSet,
    runs: Sequence[GRPORun],
    config: GRPOSweepConfig,
    mesh: Mesh,
    *,
    checkpoints: Checkpoints | None = None,
    checkpoint_seconds: float = 60.0,
    on_steps: Callable[[int], None] = lambda count: None,
) -> tuple[np.ndarray, float]:
    """Train the runs of one group together, then let each answer the held-out problems.

    Args:
      model: their policy's shape.
      optimizer: all but their learning rates.
      reference_params: the first policy, and the reference of the KL penalty.
      problems: the training problems and the held-out ones.
      runs: R of them.
      config: settings that they share.
      mesh: the runs are split over its `data` axis.
      checkpoints: where to save and to resume from; None saves nothing.
      checkpoint_seconds: between two checkpoints.
      on_steps: called with the number of steps done, for a progress bar.

    Returns:
      success_R, the share of held-out problems solved; and wall-clock seconds.
    """
    padded = filled(runs, mesh)
    context = problems.longest_prompt + problems.longest_answer
    start, improve = make_start(optimizer, mesh), make_improve(model, optimizer, mesh)
    answer = make_answer(model, context, problems.longest_answer, False, mesh)
    seeds_R = column([run.seed for run in padded], np.int32, mesh)
    hp_R = {
        name: column([getattr(run, name) for run in padded], np.float32, mesh)
        for name in ("learning_rate", "kl_coefficient", "clip_range", "temperature")
    }

    progress = GroupProgress(checkpoints, checkpoint_seconds, on_steps)
    state = progress.begin(start, seeds_R.sharding, reference_params, seeds_R)
    with preemption.deferred(mesh) as asked_to_stop:
        while progress.step < config.steps:
            step = progress.step
            # 1. and 2. Prompts, and answers to them.
            prompts = [_draw(problems, run.seed, step, config) for run in padded]
            prompt_RBC, length_RB = _lay_out(prompts, problems.longest_prompt)
            played = answer(
                state.params, seeds_R, np.int32(step), hp_R["temperature"], prompt_RBC, length_RB
            )
            # 3. Check and score.
            batch = _score(jax.device_get(played), prompts, problems, config)
            order_RUM = np.stack([_order(run.seed, step, config) for run in padded])
            # 4. Update.
            whole = np.int32(config.steps * config.updates)
            state = improve(state, reference_params, hp_R, whole, batch, order_RUM)
            progress.advance(1, state, asked_to_stop())
    success_R = evaluate_policies(model, state.params, problems, len(padded), mesh)
    return success_R[: len(runs)], progress.end(state)


def evaluate_policies(model, params_R, problems: ProblemSet, runs: int, mesh: Mesh) -> np.ndarray:
    """Return the share [R] of held-out problems that R policies solve.

    Answers have the problems' own temperature. All policies draw the same random numbers, so that
    chance moves them alike.
    """
    context = problems.longest_prompt + problems.longest_answer
    greedy = problems.temperature == 0
    answer = make_answer(model, context, problems.longest_answer, greedy, mesh)
    texts = [problem.prompt for problem in problems.held_out]
    seeds_R = np.zeros(runs, np.int32)
    temperature_R = np.full(runs, problems.temperature, np.float32)
    right = []
    for start in range(0, len(texts), EVALUATED_AT_ONCE):
        part = texts[start : start + EVALUATED_AT_ONCE]
        prompt_RBC, length_RB = _lay_out([part] * runs, problems.longest_prompt)
        state = answer(params_R, seeds_R, np.int32(start), temperature_R, prompt_RBC, length_RB)
        right.append(_check(jax.device_get(state), [part] * runs, problems))
    return np.concatenate(right, axis=1).mean(axis=1)


def _draw(problems: ProblemSet, seed: int, step: int, config: GRPOSweepConfig) -> list[str]:
    """Draw a rollout's prompts, the members of a group side by side."""
    count = config.rollout_rows // config.group_size
    chosen = np.random.default_rng([seed, step]).choice(len(problems.training), count, False)
    return [problems.training[i].prompt for i in chosen for _ in range(config.group_size)]


def _lay_out(texts_RB: Sequence[Sequence[str]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Encode prompts as prompt_RBC and length_RB."""
    length_RB = np.array([[len(text) for text in texts] for texts in texts_RB], np.int32)
    prompt_RBC = np.zeros((*length_RB.shape, width), np.int32)
    for r, texts in enumerate(texts_RB):
        for b, text in enumerate(texts):
            prompt_RBC[r, b, : len(text)] = encode(text)
    return prompt_RBC, length_RB


def _check(state: sampler.SamplerState, prompts_RB, problems: ProblemSet) -> np.ndarray:
    """Return which answers [R, B] are right: complete, and solving their problem."""
    right_RB = np.array(state.stopped_B)
    for r, b in zip(*np.nonzero(right_RB), strict=True):
        prompt = prompts_RB[r][b]
        end = state.length_B[r, b] - 1  # without the stop token
        answer = decode(state.tokens_BS[r, b, len(prompt) : end])
        right_RB[r, b] = problems.is_right(prompt, answer)
    return right_RB


def _score(played, prompts_RB, problems: ProblemSet, config: GRPOSweepConfig) -> UpdateBatch:
    """Check the answers, and make the loss's input of them: an UpdateBatch of [R, B, T]."""
    rewards_RB = _check(played, prompts_RB, problems).astype(np.float32)
    runs, rows = rewards_RB.shape

    def flat(x):
        return np.asarray(x).reshape(runs * rows, *x.shape[2:])

    conversations = RolloutBatch(
        tokens_BT=flat(played.tokens_BS),
        length_B=flat(played.length_B),
        turns_BT=flat(played.turns_BS),
        behaviour_BT=flat(played.logprobs_BS),
        rewards_BJ=rewards_RB.reshape(-1, 1),
        turn_mask_BJ=np.ones((runs * rows, 1), bool),
    )
    context = played.tokens_BS.shape[-1]
    loop = GRPOLoopConfig(
        config.steps, config.group_size, config.minibatch_rows, length_multiple=context
    )
    batch, informative_B = score(conversations, GRPOHyperparameters(), loop)
    # Whole rows are scored: a run's bits and a group's program do not depend on what others answer.
    mask_BT = batch.mask_BT & informative_B[:, None]
    batch = dataclasses.replace(batch, mask_BT=mask_BT, place_BM=None)
    return jax.tree.map(lambda x: x.reshape(runs, rows, *x.shape[1:]), batch)


def _order(seed: int, step: int, config: GRPOSweepConfig) -> np.ndarray:
    """Return the rows of each update [U, M], in another order each epoch."""
    rng = np.random.default_rng([seed, step, 1])
    epochs = [rng.permutation(config.rollout_rows) for _ in range(config.epochs)]
    return np.concatenate(epochs).reshape(config.updates, config.minibatch_rows).astype(np.int32)
