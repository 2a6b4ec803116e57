"""The GRPO loop, over any rollout function.

    for every step:
      1. roll out: the policy plays N groups of G conversations on one prompt each
      2. score: advantages against the group; groups without differences are left out
      3. reference: log-probabilities under the policy that training started from
      4. update: minibatches of the clipped objective, for one or more epochs
      5. report, and save periodically; a pre-emption saves and ends the job here or, in a single
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
from autollm_jax.rl.grpo import (
    GRPOHyperparameters,
    decision_loss,
    grpo_loss,
    token_advantages,
    turn_advantages,
)
from autollm_jax.rl.logprobs import Allowed, choice_logprobs, score_tokens
from autollm_jax.sharding.hosts import to_devices, to_host
from autollm_jax.sharding.rules import batch_sharding, tree_shardings
from autollm_jax.training.flops import without_recomputation
from autollm_jax.training.loop import Site
from autollm_jax.training.meter import Meter
from autollm_jax.training.metrics import MetricsWriter
from autollm_jax.training.profiling import Profiler
from autollm_jax.training.state import TrainState, abstract_state, state_shardings
from autollm_jax.training.step import Program, jit_train_step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decisions:
    """The decisions of conversations, all of whose choices are known; P choices.

    place_BJ: i32, where a turn's choice stands, one token of the row; 0 where there is none.
    rewards_BJP: f32, what each choice would have brought.
    reference_BJP: f32, the choices' logits under the reference policy.
    id_BP: i32, the token of each choice, the same in every row.
    """

    place_BJ: np.ndarray
    rewards_BJP: np.ndarray
    reference_BJP: np.ndarray
    id_BP: np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RolloutBatch:
    """Sampled conversations, one a row; members of a group are neighbours.

    tokens_BT: i32, the ids that were given and sampled, unchanged; 0 after the row's end.
    length_B: i32, tokens in the row.
    turns_BT: i32, the turn (0 to J - 1) in which a token was sampled; -1 for the environment's
      tokens and after the row's end. Tokens with a turn are trained on.
    behaviour_BT: f32, log-probabilities recorded as the tokens were sampled.
    rewards_BJ: f32, reward of each turn.
    turn_mask_BJ: bool, turns that took place.
    allowed: what a grammar allowed at each sampled token; None without a grammar.
    decisions: what each choice would have brought; None where nobody knows.
    """

    tokens_BT: np.ndarray
    length_B: np.ndarray
    turns_BT: np.ndarray
    behaviour_BT: np.ndarray
    rewards_BJ: np.ndarray
    turn_mask_BJ: np.ndarray
    allowed: Allowed | None = None
    decisions: Decisions | None = None


# (params, key, step) -> the conversations, and metrics to log (reward, regret, ...). It depends on
# nothing else, so that a resumed run continues as an uninterrupted one would.
Rollout = Callable[[dict, jax.Array, int], tuple[RolloutBatch, dict[str, float]]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UpdateBatch:
    """The loss's input; a field is [B, T] (or [M, T]), aligned with the tokens.

    tokens, positions: i32. segments: i32, 1 on a row's tokens and 0 after its end (the attention
    mask). mask: bool, sampled tokens (the loss mask). behaviour, reference: f32 log-probabilities
    of the sampled tokens. advantages: f32. allowed and decisions: as in `RolloutBatch`; decisions
    are there for enumerated groups alone.
    """

    tokens_BT: jax.Array
    positions_BT: jax.Array
    segments_BT: jax.Array
    mask_BT: jax.Array
    behaviour_BT: jax.Array
    reference_BT: jax.Array
    advantages_BT: jax.Array
    allowed: Allowed | None = None
    decisions: Decisions | None = None


@dataclasses.dataclass(frozen=True)
class GRPOLoopConfig:
    """Length and sizes of a run.

    steps: rollouts in all.
    group_size: conversations on one prompt.
    minibatch_rows: conversations that an optimizer update sees.
    epochs: passes over each rollout.
    microbatches: parts of a minibatch that its gradient is summed over.
    length_multiple: rows are cut to the longest one, rounded up to a multiple of this. Each length
      compiles once.
    save_every: steps between checkpoints.
    """

    steps: int
    group_size: int
    minibatch_rows: int
    epochs: int = 1
    microbatches: int = 1
    length_multiple: int = 256
    save_every: int = 10


@dataclasses.dataclass(frozen=True)
class Selection:
    """How the best policy of a training is found.

    regret: parameters -> the policy's regret on experiments that are kept out of the training.
    every: steps between two looks; the policies before the first and after the last step count.
    best: checkpoints of the best policy so far.
    """

    regret: Callable[[dict], float]
    every: int
    best: Checkpoints


@dataclasses.dataclass(frozen=True)
class _Programs:
    """The compiled parts of a step, and the parameters that they share.

    step: (state, minibatch, frozen) -> (state, metrics).
    reference: (parameters, minibatch) -> log-probabilities [M, T], logits of the choices.
    frozen: parameters that are not trained; empty without LoRA.
    reference_params: all parameters of the reference.
    """

    step: Program
    reference: Program
    frozen: dict
    reference_params: dict

    @property
    def flops(self) -> int:
        """FLOPs of all calls so far."""
        return self.step.flops + self.reference.flops


def train_grpo(
    model: TransformerConfig,
    hp: GRPOHyperparameters,
    config: GRPOLoopConfig,
    optimizer: optax.GradientTransformation,
    rollout: Rollout,
    reference_params,
    site: Site,
    key: jax.Array,
    selection: Selection | None = None,
) -> TrainState:
    """Train a policy by GRPO; resume from the newest checkpoint.

    Args:
      model: the policy's shape.
      hp: of advantages and loss.
      config: of the loop.
      optimizer: a checkpoint holds its state too.
      rollout: plays `group_size` conversations on each of its prompts.
      reference_params: the first policy, and the reference of the KL penalty.
      site: mesh, checkpoints and work directory; metrics go under stage `grpo`.
      key: randomness; step i uses only its i-th descendants.
      selection: how the best policy is found and kept; None keeps none but the last.

    Returns:
      The state after the last step, its parameters the trained policy; with LoRA, its factors.

    Raises:
      UserError: the loss is not finite.
      Preempted: the job was asked to stop; the last whole step is saved.
    """
    programs, first, state = _begin(model, hp, config, optimizer, reference_params, site)
    writer, meter = MetricsWriter(site.workdir, "grpo", first_step=first), Meter(site.mesh)
    hidden = None if distributed.is_main() else True
    bar = tqdm(total=config.steps, initial=first, desc="grpo", unit="step", disable=hidden)
    with preemption.deferred(site.mesh) as asked_to_stop, Profiler(site.traced) as profiler:
        for step in range(first, config.steps):
            profiler.before(step, state)
            rollout_key, order_key = jax.random.split(jax.random.fold_in(key, step))
            began, played_at = time.perf_counter(), meter.now()  # 1. Roll out.
            try:
                with preemption.interruptible(), jax.set_mesh(site.mesh):
                    params = lora.join(programs.frozen, state.params)
                    played, metrics = rollout(params, rollout_key, step)
            except preemption.Preempted:
                if step > first and step % config.save_every:  # as 5. would have
                    site.checkpoints.save(step, state, {"step": step})
                site.checkpoints.wait()
                raise
            metrics = metrics | {"rollout_seconds": time.perf_counter() - began}
            seconds = meter.seconds_since(played_at)
            metrics |= _select(selection, step, config.steps, state, params, site)
            seed = int(jax.random.bits(order_key))  # 2. to 4. Score and update.
            updated_at, flops = meter.now(), programs.flops
            state, of_updates = _improve(programs, state, played, hp, config, seed)
            of_updates |= meter.mfu(programs.flops - flops, meter.seconds_since(updated_at))
            seconds += meter.seconds_since(updated_at)
            of_updates |= meter.speed(int(played.length_B.sum()), seconds) | meter.totals()
            _report(step, metrics | of_updates, writer, bar)  # 5. Report and save.
            done, stopping = step + 1, asked_to_stop()
            if done % config.save_every == 0 or done == config.steps or stopping:
                site.checkpoints.save(done, state, {"step": done})
            if stopping:
                site.checkpoints.wait()
                raise preemption.Preempted
        site.checkpoints.wait()
        params = lora.join(programs.frozen, state.params)
        if last := _select(selection, config.steps, config.steps, state, params, site):
            writer.write(config.steps, last)
    bar.close()
    writer.close()
    return state


def _select(
    selection: Selection | None, step: int, steps: int, state: TrainState, params, site: Site
) -> dict[str, float]:
    """Look at the policy before a step where it is due; save it if it is the best so far."""
    if selection is None or (step % selection.every and step != steps):
        return {}
    with jax.set_mesh(site.mesh):
        regret = float(selection.regret(params))
    best = selection.best
    before = best.latest()
    known = np.inf if before is None else best.extra(before)["regret"]
    if regret < known and (before is None or step > before):
        best.save(step, state, {"step": step, "regret": regret})
        best.wait()
    return {"kept_out_regret": regret}


def _report(step: int, metrics: dict[str, float], writer: MetricsWriter, bar: tqdm) -> None:
    """Write a step's metrics; raises UserError where the loss is not finite."""
    if not np.isfinite(metrics.get("loss", 0.0)):
        writer.close()
        raise UserError(
            f"grpo: the loss is {metrics['loss']} at step {step}; lower "
            "config.grpo.optimizer.learning_rate and give --restart=grpo"
        )
    writer.write(step, metrics)
    bar.set_postfix({k: f"{metrics[k]:.3f}" for k in ("reward", "regret", "kl") if k in metrics})
    bar.update()


def _begin(
    model, hp, config: GRPOLoopConfig, optimizer, reference_params, site: Site
) -> tuple[_Programs, int, TrainState]:
    """Make the programs, and restore or make the state; also returns the first step."""
    mesh = site.mesh
    init, axes = functools.partial(lora.init, model), lora.logical_axes(model)
    whole = tree_shardings(
        transformer.logical_axes(model), transformer.parameter_shapes(model), mesh
    )
    reference_params = to_devices(reference_params, whole)
    frozen, reference = lora.split(model, reference_params)
    update = functools.partial(
        jit_update, hp=hp, optimizer=optimizer, mesh=mesh, microbatches=config.microbatches
    )
    counted = update(without_recomputation(model))
    programs = _Programs(
        Program(update(model), mesh, config.microbatches, counted),
        Program(jit_reference(model, hp, mesh), mesh),
        frozen,
        reference_params,
    )
    first = site.checkpoints.latest() or 0
    if first:
        state, _ = site.checkpoints.restore(abstract_state(init, axes, optimizer, mesh))
    else:
        shardings = state_shardings(init, axes, optimizer, mesh)
        state = _start(reference, optimizer, shardings, mesh)
    return programs, first, state


def _improve(
    programs: _Programs, state: TrainState, played: RolloutBatch, hp, config, seed: int
) -> tuple[TrainState, dict[str, float]]:
    """Score a rollout and update the policy on it; also returns metrics of the updates."""
    began = time.perf_counter()
    batch, informative_B = score(played, hp, config)
    losses, rows = [], np.flatnonzero(informative_B)
    if hp.kl_coefficient or batch.decisions is not None:
        reference = programs.reference, programs.reference_params
        batch = _with_reference(batch, rows, *reference, config)
    for minibatch in minibatches(batch, rows, config, seed):
        state, update_metrics = programs.step(state, minibatch, programs.frozen)
        losses.append(update_metrics)
    losses = jax.device_get(losses)
    metrics = {"informative_share": informative_B.mean()}
    for name in losses[0] if losses else ():
        metrics[name] = float(np.mean([entry[name] for entry in losses]))
    if losses:  # in the first update alone sampler and trainer have the same parameters
        metrics["logprob_gap"] = float(losses[0]["logprob_gap"])
    metrics["updates"] = len(losses)
    metrics["update_seconds"] = time.perf_counter() - began
    return state, metrics


def score(
    played: RolloutBatch, hp: GRPOHyperparameters, config: GRPOLoopConfig
) -> tuple[UpdateBatch, np.ndarray]:
    """Turn conversations and rewards into the loss's input.

    Returns:
      The batch, on the host and with the behaviour policy as its reference; and informative_B, True
      on rows of groups whose members differ in some advantage. Other rows would only add their KL.

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
    advantages_NGJ = np.where(np.arange(J) >= hp.first_turn - 1, advantages_NGJ, 0.0)
    informative_B = np.repeat((advantages_NGJ != 0).any((1, 2)), G)
    advantages_BJ = advantages_NGJ.reshape(B, J)
    longest = max(int(played.length_B.max()), 2)
    T = min(T, -(-longest // config.length_multiple) * config.length_multiple)
    turns_BT = played.turns_BT[:, :T]
    positions_BT = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    allowed, decisions, mask_BT = played.allowed, None, turns_BT >= 0
    if allowed is not None:
        cut = allowed.free_BT[:, :T], allowed.token_BTK[:, :T]
        allowed = Allowed(*cut, allowed.free_BV)
    advantages_BT = np.asarray(token_advantages(advantages_BJ, turns_BT))
    if hp.members == "enumerated":
        if played.decisions is None:
            raise ValueError("enumerated groups need decisions whose choices are known")
        decisions, advantages_BT = played.decisions, np.zeros_like(advantages_BT)
        # A decision counts as a group; its token is no other token of the turn.
        learned_BJ = (decisions.place_BJ > 0) & (np.arange(J) >= hp.first_turn - 1)
        rewards_BJP = np.where(learned_BJ[..., None], decisions.rewards_BJP, 0)
        informative_B = (np.ptp(rewards_BJP, axis=-1) > 0).any(-1)
        mask_BT = mask_BT.copy()
        mask_BT[np.arange(B)[:, None], decisions.place_BJ] = False
    batch = UpdateBatch(
        tokens_BT=played.tokens_BT[:, :T],
        positions_BT=positions_BT,
        segments_BT=(positions_BT < played.length_B[:, None]).astype(np.int32),
        mask_BT=mask_BT,
        behaviour_BT=played.behaviour_BT[:, :T],
        reference_BT=played.behaviour_BT[:, :T],
        advantages_BT=advantages_BT,
        allowed=allowed,
        decisions=decisions,
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
    decisions = piece.decisions
    if decisions is not None:
        decisions = dataclasses.replace(decisions, place_BJ=decisions.place_BJ * real_M1)
    return dataclasses.replace(piece, mask_BT=piece.mask_BT & real_M1, decisions=decisions)


def _start(params, optimizer, shardings: TrainState, mesh: Mesh) -> TrainState:
    """Make a fresh state; its parameters are a copy, since training donates their buffers."""
    copy = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
    with jax.set_mesh(mesh):
        opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(copy)
    return TrainState(to_devices(np.zeros((), np.int32), shardings.step), copy, opt_state)


def policy_loss(model: TransformerConfig, hp: GRPOHyperparameters, params, batch: UpdateBatch):
    """Compute GRPO's loss of a minibatch: summed over its sampled tokens, their count, metrics.

    With enumerated groups the loss is that of the decisions, and the other tokens add their
    divergence from the reference alone.
    """
    logprobs_BT, entropy_BT, logits_BJP = _forward(model, hp, params, batch)
    if batch.decisions is not None:  # the other tokens have no advantage
        of_speech = {"kl_coefficient": hp.speech_coefficient, "entropy_coefficient": 0.0}
    else:
        of_speech = {}
    loss, count, metrics = grpo_loss(
        logprobs_BT,
        entropy_BT,
        batch.behaviour_BT,
        batch.reference_BT,
        batch.advantages_BT,
        batch.mask_BT,
        dataclasses.replace(hp, **of_speech),
    )
    if batch.decisions is None:
        return loss, count, metrics
    made, decided = batch.decisions, batch.decisions.place_BJ > 0
    of_decisions, decisions, more = decision_loss(
        logits_BJP, made.reference_BJP, made.rewards_BJP, decided, hp
    )
    # A decision counts as much as all other tokens of a turn.
    speech = loss / jnp.maximum(count, 1.0) * decisions
    return speech + of_decisions, decisions, metrics | more


def _forward(model: TransformerConfig, hp: GRPOHyperparameters, params, batch: UpdateBatch):
    """Return the tokens' log-probabilities and entropies, and the logits of decisions' choices."""
    x_BTD = transformer.hidden(
        model, params, batch.tokens_BT[:, :-1], batch.positions_BT[:, :-1],
        batch.segments_BT[:, :-1],
    )  # fmt: skip
    logprobs_BT, entropy_BT = score_tokens(
        model, params, x_BTD, batch.tokens_BT, hp.temperature, batch.allowed
    )
    if batch.decisions is None:
        return logprobs_BT, entropy_BT, None
    places = batch.decisions.place_BJ, batch.decisions.id_BP
    return logprobs_BT, entropy_BT, choice_logprobs(model, params, x_BTD, *places)


def jit_update(
    model: TransformerConfig, hp: GRPOHyperparameters, optimizer, mesh: Mesh, microbatches: int
):
    """Make GRPO's optimizer step a program of (state, batch, frozen), as `jit_train_step` does."""
    init, axes = functools.partial(lora.init, model), lora.logical_axes(model)
    shardings = state_shardings(init, axes, optimizer, mesh)
    loss_fn = functools.partial(policy_loss, model, hp)
    return jit_train_step(loss_fn, optimizer, shardings, mesh, microbatches)


def jit_reference(model: TransformerConfig, hp: GRPOHyperparameters, mesh: Mesh):
    """Make a program of (params, batch) -> what the loss needs of the reference, on a mesh."""

    @functools.partial(jax.jit, in_shardings=(None, batch_sharding(mesh)))
    def reference(params, batch):
        logprobs_BT, _, logits_BJP = _forward(model, hp, params, batch)
        return logprobs_BT, logits_BJP

    return reference


def _with_reference(batch, rows, reference_fn, reference_params, config) -> UpdateBatch:
    """Fill in the reference's log-probabilities and logits for the given rows."""
    reference_BT, decisions = np.array(batch.reference_BT), batch.decisions
    if decisions is not None:
        decisions = dataclasses.replace(decisions, reference_BJP=decisions.reference_BJP.copy())
    for start in range(0, len(rows), config.minibatch_rows):
        chosen = rows[start : start + config.minibatch_rows]
        piece = _take(batch, chosen, config.minibatch_rows)
        found = to_host(reference_fn(reference_params, piece))
        reference_BT[chosen] = found[0][: len(chosen)]
        if decisions is not None:
            decisions.reference_BJP[chosen] = found[1][: len(chosen)]
    return dataclasses.replace(batch, reference_BT=reference_BT, decisions=decisions)
