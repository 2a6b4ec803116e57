"""The GRPO loop, over any rollout function.

    for every step:
      1. roll out: the policy plays N groups of G conversations on one prompt each
      2. score: advantages against the group; groups without differences are left out
      3. reference: log-probabilities under the policy that training started from
      4. update: minibatches of the clipped objective, for one or more epochs
      5. report, and save periodically; a pre-emption saves and ends the job here or, in a single
         process, in 1.

With a mesh of their own for the players, 1. is one step ahead of the others (`ahead.py`).

Letters: N groups, G members, B = N * G rows, T tokens, J turns.
"""

import dataclasses
import functools
import time
from collections.abc import Callable

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
from autollm_jax.progress_bar import progress_bar
from autollm_jax.rl.ahead import Ahead, rollout_key
from autollm_jax.rl.batches import (
    GRPOLoopConfig,
    Rollout,
    RolloutBatch,
    minibatches,
)
from autollm_jax.rl.grpo import GRPOHyperparameters
from autollm_jax.rl.objective import (
    jit_reference,
    jit_update,
    reference_of,
    with_reference,
    with_weights,
)
from autollm_jax.rl.prefixes import Aligner
from autollm_jax.rl.scoring import score
from autollm_jax.sharding.hosts import to_devices
from autollm_jax.sharding.rules import even_rows, tree_shardings
from autollm_jax.training.flops import without_recomputation
from autollm_jax.training.loop import Site
from autollm_jax.training.meter import Meter
from autollm_jax.training.metrics import MetricsWriter
from autollm_jax.training.profiling import Profiler
from autollm_jax.training.state import TrainState, abstract_state, state_shardings
from autollm_jax.training.step import Program


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
    reference: (parameters, minibatch) -> log-probabilities [B, T], logits of the choices.
    frozen: parameters that are not trained; empty without LoRA.
    reference_params: all parameters of the reference; None where the loss needs none.
    aligner: of groups whose common beginning is computed once; None where none is.
    """

    step: Program
    reference: Program
    frozen: dict
    reference_params: dict | None
    aligner: Aligner | None

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
    first_params: Callable[[], dict],
    site: Site,
    key: jax.Array,
    selection: Selection | None = None,
    player_mesh: Mesh | None = None,
) -> TrainState:
    """Train a policy by GRPO; resume from the newest checkpoint.

    Args:
      model: the policy's shape.
      hp: of advantages and loss.
      config: of the loop.
      optimizer: a checkpoint holds its state too.
      rollout: plays `group_size` conversations on each of its prompts.
      first_params: makes the first policy's parameters; it is the reference of the KL penalty, too.
        A function, so that nobody keeps a copy that the training does not read.
      site: mesh, checkpoints and work directory; metrics go under stage `grpo`.
      key: randomness; step i uses only its i-th descendants.
      selection: how the best policy is found and kept; None keeps none but the last.
      player_mesh: devices that play each rollout beside the update before it, none of them in
        `site`'s mesh; None plays and updates in turn, on `site`'s.

    Returns:
      The state after the last step, its parameters the trained policy; with LoRA, its factors.

    Raises:
      UserError: the loss is not finite.
      Preempted: the job was asked to stop; the last whole step is saved.
    """
    config = _of_whole_groups(hp, config)
    programs, first, state = _begin(model, hp, config, optimizer, first_params, site)
    writer = MetricsWriter(site.workdir, "grpo", first_step=first)
    meter = Meter(site.mesh, player_mesh)
    shown = distributed.is_main()
    bar = progress_bar(total=config.steps, initial=first, desc="grpo", unit="step", shown=shown)
    ahead = None
    if player_mesh is not None:
        folder = site.checkpoints.directory.with_name(f"{site.checkpoints.directory.name}_ahead")
        ahead = Ahead(rollout, model, programs.frozen, player_mesh, folder, key, config.steps)
    with preemption.deferred(site.mesh) as asked_to_stop, Profiler(site.traced) as profiler:
        for step in range(first, config.steps):
            profiler.before(step, state)
            played_at = meter.now()
            _, order_key = jax.random.split(jax.random.fold_in(key, step))
            params = lora.join(programs.frozen, state.params)
            try:  # 1. Roll out.
                if ahead is None:
                    played, metrics = _roll_out(rollout, params, rollout_key(key, step), step, site)
                else:
                    played, metrics = ahead.take(step, state.params)
            except preemption.Preempted:
                if step > first and step % config.save_every:  # as 5. would have
                    site.checkpoints.save(step, state, {"step": step})
                site.checkpoints.wait()
                raise
            seconds = meter.seconds_since(played_at)
            metrics = metrics | _select(selection, step, config.steps, state, params, site)
            seed = int(jax.random.bits(order_key))  # 2. to 4. Score and update.
            updated_at, flops = meter.now(), programs.flops
            state, of_updates = _improve(programs, state, played, hp, config, seed)
            of_updates |= meter.mfu(programs.flops - flops, meter.seconds_since(updated_at))
            seconds += meter.seconds_since(updated_at)
            of_updates |= meter.speed(int(played.length_B.sum()), seconds) | meter.totals()
            _report(step, metrics | of_updates, writer, bar)  # 5. Report and save.
            done, stopping = step + 1, asked_to_stop()
            if done % config.save_every == 0 or done == config.steps or stopping:
                if ahead is not None:
                    ahead.save(done)
                site.checkpoints.save(done, state, {"step": done})
            if stopping:
                site.checkpoints.wait()
                raise preemption.Preempted
        site.checkpoints.wait()
        params = lora.join(programs.frozen, state.params)
        if last := _select(selection, config.steps, config.steps, state, params, site):
            writer.write(config.steps, last)
    if ahead is not None:
        ahead.close()
    bar.close()
    writer.close()
    return state


def _roll_out(
    rollout: Rollout, params, key: jax.Array, step: int, site: Site
) -> tuple[RolloutBatch, dict[str, float]]:
    """Play a step's rollout on the trainer's own mesh; a pre-emption may end it."""
    began = time.perf_counter()
    with preemption.interruptible(), jax.set_mesh(site.mesh):
        played, metrics = rollout(params, key, step)
    return played, metrics | {"rollout_seconds": time.perf_counter() - began}


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
    model, hp, config: GRPOLoopConfig, optimizer, first_params, site: Site
) -> tuple[_Programs, int, TrainState]:
    """Make the programs, and restore or make the state; also returns the first step."""
    mesh = site.mesh
    init, axes = functools.partial(lora.init, model), lora.logical_axes(model)
    whole = tree_shardings(
        transformer.logical_axes(model), transformer.parameter_shapes(model), mesh
    )
    params = to_devices(first_params(), whole)
    frozen, trained = lora.split(model, params)
    update = functools.partial(
        jit_update, hp=hp, optimizer=optimizer, mesh=mesh, microbatches=config.microbatches
    )
    counted = update(without_recomputation(model))
    programs = _Programs(
        Program(update(model), mesh, config.microbatches, counted),
        Program(jit_reference(model, hp, mesh), mesh),
        frozen,
        reference_of(model, params) if hp.needs_reference else None,
        _aligner(config, mesh),
    )
    first = site.checkpoints.latest() or 0
    if first:
        state, _ = site.checkpoints.restore(abstract_state(init, axes, optimizer, mesh))
    else:
        shardings = state_shardings(init, axes, optimizer, mesh)
        state = _start(trained, optimizer, shardings, mesh)
    return programs, first, state


def _of_whole_groups(hp: GRPOHyperparameters, config: GRPOLoopConfig) -> GRPOLoopConfig:
    """Return the config, without sharing where minibatches are not made of whole sampled groups."""
    G = config.group_size
    if not config.share_prefixes or hp.members != "sampled" or G == 1:
        return dataclasses.replace(config, share_prefixes=False)
    if config.minibatch_rows % G:
        _tell_unshared(f"{config.minibatch_rows} rows are no whole groups of {G}")
        return dataclasses.replace(config, share_prefixes=False)
    return config


def _aligner(config: GRPOLoopConfig, mesh: Mesh) -> Aligner | None:
    """Return an aligner where each device has whole groups of a microbatch; else say so."""
    if not config.share_prefixes:
        return None
    parts = even_rows(1, mesh, config.microbatches)
    if config.minibatch_rows % (config.group_size * parts) == 0:
        return Aligner(config.group_size)
    _tell_unshared(
        f"{config.minibatch_rows} rows do not give each of {parts} parts (microbatches times "
        f"devices) whole groups of {config.group_size}"
    )
    return None


def _tell_unshared(reason: str) -> None:
    if distributed.is_main():
        print(
            "grpo: updates read prompts once a row, not once a group: config.grpo.minibatch_rows="
            + reason
        )


def _start(params, optimizer, shardings: TrainState, mesh: Mesh) -> TrainState:
    """Make a fresh state; its parameters are a copy, since training donates their buffers."""
    copy = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
    with jax.set_mesh(mesh):
        opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(copy)
    return TrainState(to_devices(np.zeros((), np.int32), shardings.step), copy, opt_state)


def _improve(
    programs: _Programs, state: TrainState, played: RolloutBatch, hp, config, seed: int
) -> tuple[TrainState, dict[str, float]]:
    """Score a rollout and update the policy on it; also returns metrics of the updates."""
    began = time.perf_counter()
    batch, informative_B = score(played, hp, config, programs.aligner)
    losses, rows = [], np.flatnonzero(informative_B)
    if programs.reference_params is not None:
        reference = programs.reference, programs.reference_params
        batch = with_reference(batch, rows, *reference, config)
    of_weights = {}
    if hp.importance_cap:
        params = lora.join(programs.frozen, state.params)
        batch, of_weights = with_weights(batch, rows, programs.reference, params, hp, config)
    for minibatch in minibatches(batch, rows, config, seed):
        state, update_metrics = programs.step(state, minibatch, programs.frozen)
        losses.append(update_metrics)
    losses = jax.device_get(losses)
    metrics = {"informative_share": informative_B.mean()}
    if programs.aligner is not None:
        metrics["computed_share"] = batch.shared.computed_share(batch.tokens_BT.shape[1])
    for name in losses[0] if losses else ():
        metrics[name] = float(np.mean([entry[name] for entry in losses]))
    if losses:  # in the first update alone sampler and trainer have the same parameters
        metrics["logprob_gap"] = float(losses[0]["logprob_gap"])
    metrics |= of_weights
    metrics["updates"] = len(losses)
    metrics["update_seconds"] = time.perf_counter() - began
    return state, metrics
