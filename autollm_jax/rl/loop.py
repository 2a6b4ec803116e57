"""The GRPO loop, over any rollout function.

    for every step:
      1. roll out: the policy plays N groups of G conversations on one prompt each
      2. score: advantages against the group; groups without differences are left out
      3. reference: log-probabilities under the policy that training started from
      4. update: minibatches of the clipped objective, for one or more epochs
      5. report, and save now and then; a pre-emption saves and ends the job here, or, in a single
         process, in 1.

Letters: N groups, G members, B = N * G rows, T tokens, J turns, M rows of a minibatch.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.cluster import distributed, preemption
from autollm_jax.errors import UserError
from autollm_jax.models import lora, transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl.grpo import GRPOHyperparameters, grpo_loss, token_advantages, turn_advantages
from autollm_jax.rl.logprobs import token_logprobs
from autollm_jax.sharding.hosts import to_devices, to_host
from autollm_jax.sharding.rules import batch_sharding, tree_shardings
from autollm_jax.training.metrics import MetricsWriter
from autollm_jax.training.state import TrainState, abstract_state, state_shardings
from autollm_jax.training.step import jit_train_step, on_mesh


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RolloutBatch:
    """Conversations as they were sampled, one a row; members of a group are neighbours.

    tokens_BT: i32, the very ids that were given and sampled; 0 after the row's end.
    length_B: i32, tokens in the row.
    turns_BT: i32, the turn (0 to J - 1) that a token was sampled in; -1 for the environment's
      tokens and after the row's end. What is not -1 is trained on.
    behaviour_BT: f32, log-probabilities recorded as the tokens were sampled.
    rewards_BJ: f32, reward of each turn.
    turn_mask_BJ: bool, turns that took place.
    """

    tokens_BT: np.ndarray
    length_B: np.ndarray
    turns_BT: np.ndarray
    behaviour_BT: np.ndarray
    rewards_BJ: np.ndarray
    turn_mask_BJ: np.ndarray


# (params, key, step) -> the conversations, and metrics to log (reward, regret, ...). It has to
# depend on nothing else, so that a resumed run goes on as if it had not been interrupted.
Rollout = Callable[[dict, jax.Array, int], tuple[RolloutBatch, dict[str, float]]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UpdateBatch:
    """What the loss reads; all of shape BT (or MT), aligned with the tokens.

    tokens, positions: i32. segments: i32, 1 on a row's tokens and 0 after its end (the attention
    mask). mask: bool, sampled tokens (the loss mask). behaviour, reference: f32 log-probabilities
    of the sampled tokens. advantages: f32.
    """

    tokens_BT: jax.Array
    positions_BT: jax.Array
    segments_BT: jax.Array
    mask_BT: jax.Array
    behaviour_BT: jax.Array
    reference_BT: jax.Array
    advantages_BT: jax.Array


@dataclasses.dataclass(frozen=True)
class GRPOLoopConfig:
    """How long and in what pieces.

    steps: rollouts in all.
    group_size: conversations on one prompt.
    minibatch_rows: conversations an optimizer update sees.
    epochs: passes over each rollout.
    microbatches: pieces that a minibatch's gradient is summed over.
    length_multiple: rows are cut to the longest one, rounded up to a multiple of this; one
      compilation for each length met.
    save_every: steps between checkpoints.
    """

    steps: int
    group_size: int
    minibatch_rows: int
    epochs: int = 1
    microbatches: int = 1
    length_multiple: int = 128
    save_every: int = 10


def train_grpo(
    model: TransformerConfig,
    hp: GRPOHyperparameters,
    config: GRPOLoopConfig,
    optimizer: optax.GradientTransformation,
    rollout: Rollout,
    reference_params,
    mesh: Mesh,
    checkpoints: Checkpoints,
    workdir,
    key: jax.Array,
) -> TrainState:
    """Train a policy by GRPO; resumes where `checkpoints` stands.

    Args:
      model: the policy's shape.
      hp: of advantages and loss.
      config: of the loop.
      optimizer: what is saved holds its state too.
      rollout: plays `group_size` conversations each on some prompts.
      reference_params: the policy to start from, and the one that the KL penalty refers to. With
        LoRA its frozen part is shared by both.
      mesh: parameters and rows are split over it.
      checkpoints: this stage's.
      workdir: where metrics go, as stage `grpo`.
      key: randomness; step i uses only its i-th descendants.

    Returns:
      The state after the last step, its parameters the trained policy; with LoRA, its factors.

    Raises:
      UserError: if the loss stops being finite.
      Preempted: the job was asked to stop; a checkpoint holds the last whole step.
    """
    init, axes = functools.partial(lora.init, model), lora.logical_axes(model)
    shardings = state_shardings(init, axes, optimizer, mesh)
    whole = tree_shardings(
        transformer.logical_axes(model), transformer.parameter_shapes(model), mesh
    )
    reference_params = to_devices(reference_params, whole)
    frozen, reference = lora.split(model, reference_params)
    update_fn = jit_update(model, hp, optimizer, mesh, config.microbatches)
    step_fn = on_mesh(update_fn, mesh, config.microbatches)
    reference_fn = on_mesh(jit_reference(model, hp, mesh), mesh)

    first = checkpoints.latest() or 0
    if first:
        state, _ = checkpoints.restore(abstract_state(init, axes, optimizer, mesh))
    else:
        state = _start(reference, optimizer, shardings, mesh)
    writer = MetricsWriter(workdir, "grpo", first_step=first)
    bar = tqdm(
        total=config.steps,
        initial=first,
        desc="grpo",
        unit="step",
        disable=None if distributed.is_main() else True,
    )
    with preemption.deferred(mesh) as asked_to_stop:
        for step in range(first, config.steps):
            rollout_key, order_key = jax.random.split(jax.random.fold_in(key, step))
            # 1. Roll out.
            began = time.perf_counter()
            try:
                with preemption.interruptible(), jax.set_mesh(mesh):
                    played, metrics = rollout(lora.join(frozen, state.params), rollout_key, step)
            except preemption.Preempted:
                if step > first and step % config.save_every:  # as 5. would have
                    checkpoints.save(step, state, {"step": step})
                checkpoints.wait()
                raise
            metrics = dict(metrics, rollout_seconds=time.perf_counter() - began)
            # 2. Score.
            began = time.perf_counter()
            batch, informative_B = score(played, hp, config)
            metrics["informative_share"] = informative_B.mean()
            # 3. and 4. Update, with the reference's log-probabilities in the first epoch's batches.
            losses, rows = [], np.flatnonzero(informative_B)
            if hp.kl_coefficient:
                batch = _with_reference(batch, rows, reference_fn, reference_params, config)
            seed = int(jax.random.bits(order_key))
            for minibatch in minibatches(batch, rows, config, seed):
                state, update_metrics = step_fn(state, minibatch, frozen)
                losses.append(update_metrics)
            # 5. Report and save.
            losses = jax.device_get(losses)
            for name in losses[0] if losses else ():
                metrics[name] = float(np.mean([entry[name] for entry in losses]))
            if losses:  # only there do sampler and trainer stand on the same parameters
                metrics["logprob_gap"] = float(losses[0]["logprob_gap"])
            metrics["updates"] = len(losses)
            metrics["update_seconds"] = time.perf_counter() - began
            if not np.isfinite(metrics.get("loss", 0.0)):
                writer.close()
                raise UserError(
                    f"grpo: the loss is {metrics['loss']} at step {step}; lower "
                    "config.grpo.optimizer.learning_rate and give --restart=grpo"
                )
            writer.write(step, metrics)
            bar.set_postfix(
                {k: f"{metrics[k]:.3f}" for k in ("reward", "regret", "kl") if k in metrics}
            )
            bar.update()
            done, stopping = step + 1, asked_to_stop()
            if done % config.save_every == 0 or done == config.steps or stopping:
                checkpoints.save(done, state, {"step": done})
            if stopping:
                checkpoints.wait()
                raise preemption.Preempted
        checkpoints.wait()
    bar.close()
    writer.close()
    return state


def score(
    played: RolloutBatch, hp: GRPOHyperparameters, config: GRPOLoopConfig
) -> tuple[UpdateBatch, np.ndarray]:
    """Turn conversations and rewards into what the loss reads.

    Returns:
      The batch, on the host and with the behaviour policy as its reference; and informative_B,
      rows of groups whose members differ in some advantage. The others would only add their KL.

    Raises:
      ValueError: if a reward is not finite, or the rows do not make whole groups.
    """
    if not np.isfinite(played.rewards_BJ).all():
        raise ValueError("a rollout's reward is not finite")
    B, T = played.tokens_BT.shape
    G, J = config.group_size, played.rewards_BJ.shape[1]
    shape = (B // G, G, J)
    advantages_NGJ = np.asarray(
        turn_advantages(played.rewards_BJ.reshape(shape), played.turn_mask_BJ.reshape(shape), hp)
    )
    informative_B = np.repeat((advantages_NGJ != 0).any((1, 2)), G)
    advantages_BJ = advantages_NGJ.reshape(B, J)
    longest = max(int(played.length_B.max()), 2)
    T = min(T, -(-longest // config.length_multiple) * config.length_multiple)
    turns_BT = played.turns_BT[:, :T]
    positions_BT = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    batch = UpdateBatch(
        tokens_BT=played.tokens_BT[:, :T],
        positions_BT=positions_BT,
        segments_BT=(positions_BT < played.length_B[:, None]).astype(np.int32),
        mask_BT=turns_BT >= 0,
        behaviour_BT=played.behaviour_BT[:, :T],
        reference_BT=played.behaviour_BT[:, :T],
        advantages_BT=np.asarray(token_advantages(advantages_BJ, turns_BT)),
    )
    return batch, informative_B


def minibatches(
    batch: UpdateBatch, rows: np.ndarray, config: GRPOLoopConfig, seed: int
) -> Iterator[UpdateBatch]:
    """Cut the given rows into minibatches, in another order each epoch.

    All have `minibatch_rows` rows; the last one of an epoch is filled up with rows outside the
    loss mask.
    """
    rng = np.random.default_rng(seed)
    for _ in range(config.epochs):
        order = rng.permutation(rows)
        for start in range(0, len(order), config.minibatch_rows):
            chosen = order[start : start + config.minibatch_rows]
            yield _take(batch, chosen, config.minibatch_rows)


def _take(batch: UpdateBatch, chosen: np.ndarray, rows: int) -> UpdateBatch:
    filled = np.resize(chosen, rows)
    piece = jax.tree.map(lambda x_BT: x_BT[filled], batch)
    real_M1 = (np.arange(rows) < len(chosen))[:, None]
    return dataclasses.replace(piece, mask_BT=piece.mask_BT & real_M1)


def _start(params, optimizer, shardings: TrainState, mesh: Mesh) -> TrainState:
    """Make a fresh state; its parameters are a copy, since training gives their buffers away."""
    copy = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
    with jax.set_mesh(mesh):
        opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(copy)
    return TrainState(to_devices(np.zeros((), np.int32), shardings.step), copy, opt_state)


def policy_loss(model: TransformerConfig, hp: GRPOHyperparameters, params, batch: UpdateBatch):
    """Compute GRPO's loss of a minibatch: summed over its sampled tokens, their count, metrics."""
    logprobs_BT, entropy_BT = token_logprobs(
        model, params, batch.tokens_BT, batch.segments_BT, batch.positions_BT, hp.temperature
    )
    return grpo_loss(
        logprobs_BT,
        entropy_BT,
        batch.behaviour_BT,
        batch.reference_BT,
        batch.advantages_BT,
        batch.mask_BT,
        hp,
    )


def jit_update(
    model: TransformerConfig, hp: GRPOHyperparameters, optimizer, mesh: Mesh, microbatches: int
):
    """Make GRPO's optimizer step a program of (state, batch, frozen), as `jit_train_step` does."""
    init, axes = functools.partial(lora.init, model), lora.logical_axes(model)
    shardings = state_shardings(init, axes, optimizer, mesh)
    loss_fn = functools.partial(policy_loss, model, hp)
    return jit_train_step(loss_fn, optimizer, shardings, mesh, microbatches)


def jit_reference(model: TransformerConfig, hp: GRPOHyperparameters, mesh: Mesh):
    """Make a program of (params, batch) -> log-probabilities of its tokens, on a mesh."""

    @functools.partial(jax.jit, in_shardings=(None, batch_sharding(mesh)))
    def logprobs(params, batch):
        return token_logprobs(
            model, params, batch.tokens_BT, batch.segments_BT, batch.positions_BT, hp.temperature
        )[0]

    return logprobs


def _with_reference(batch, rows, reference_fn, reference_params, config) -> UpdateBatch:
    """Fill in the reference's log-probabilities for the given rows."""
    reference_BT = np.array(batch.reference_BT)
    for start in range(0, len(rows), config.minibatch_rows):
        chosen = rows[start : start + config.minibatch_rows]
        piece = _take(batch, chosen, config.minibatch_rows)
        reference_BT[chosen] = to_host(reference_fn(reference_params, piece))[: len(chosen)]
    return dataclasses.replace(batch, reference_BT=reference_BT)
