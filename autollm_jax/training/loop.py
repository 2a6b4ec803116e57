"""The training loop: one run, from its newest checkpoint to its last step.

1. restore the newest checkpoint, or initialise (from given parameters, or afresh)
2. for every step: the batch of that step, an update
3. metrics are read one step late, while the next step is under way; a loss that is not finite
   ends the run before anything broken is saved
4. a checkpoint now and then, with the consumed position and what the data were; a pre-emption saves
   one and ends the job there
"""

import dataclasses
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
from autollm_jax.sharding.hosts import to_devices
from autollm_jax.training.metrics import MetricsWriter
from autollm_jax.training.state import TrainState, abstract_state, init_state, state_shardings
from autollm_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long and in what pieces.

    steps: updates in all.
    microbatches: pieces that an update's gradient is summed over.
    save_every: steps between checkpoints.
    report_every: steps between rows of metrics.
    """

    steps: int
    microbatches: int = 1
    save_every: int = 100
    report_every: int = 10


def train(
    init: Callable,
    logical_axes,
    loss_fn: Callable,
    optimizer: optax.GradientTransformation,
    batch_of_step: Callable,
    config: LoopConfig,
    mesh: Mesh,
    checkpoints: Checkpoints,
    workdir,
    stage: str,
    key: jax.Array,
    *,
    data: str,
    tokens_of: Callable,
    params=None,
    frozen=None,
) -> TrainState:
    """Train to the last step; resumes where `checkpoints` stands.

    Args:
      init: key -> parameter tree.
      logical_axes: the same tree with tuples of logical axis names.
      loss_fn: as in `training.step.update`.
      optimizer: optax transformation.
      batch_of_step: step -> batch, a function of the step alone.
      config: of the loop.
      mesh: the job's mesh.
      checkpoints: this run's.
      workdir: where metrics go.
      stage: the name they go under.
      key: randomness of the initial parameters.
      data: names what is trained on, for a checkpoint to be known by.
      tokens_of: batch -> tokens in it, for the rate.
      params: where to start from; fresh parameters by default.
      frozen: parameters beside them that are not trained; a checkpoint does not hold them.

    Returns:
      The state after the last step.

    Raises:
      UserError: if the loss stops being finite, or a checkpoint was trained on other data.
      Preempted: the job was asked to stop; a checkpoint holds the last step.
    """
    first = checkpoints.latest() or 0
    if first:
        state, extra = checkpoints.restore(abstract_state(init, logical_axes, optimizer, mesh))
        if extra["data"] != data:
            raise UserError(
                f"{checkpoints.directory}: the checkpoint was trained on other data; remove it, or "
                "use another --workdir"
            )
    else:
        state = init_state(init, logical_axes, optimizer, key, mesh)
        if params is not None:
            state = dataclasses.replace(state, params=_placed(params, state.params))
    shardings = state_shardings(init, logical_axes, optimizer, mesh)
    step_fn = make_train_step(loss_fn, optimizer, shardings, mesh, config.microbatches)
    writer = MetricsWriter(workdir, stage, first_step=first)
    bar = tqdm(
        total=config.steps,
        initial=first,
        desc=stage,
        unit="step",
        dynamic_ncols=True,
        disable=not distributed.is_main(),
    )
    tokens, began, waiting = 0, time.perf_counter(), None

    def report(step, metrics, rate):
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not np.isfinite(metrics["loss"]):
            raise UserError(
                f"{stage}: the loss is {metrics['loss']} at step {step}; lower "
                f"config.{stage}.optimizer.learning_rate and give --restart={stage}"
            )
        if rate is None:
            return
        writer.write(step, {**metrics, "tokens_per_second": rate})
        bar.set_postfix(loss=f"{metrics['loss']:.3f}", tokens_per_second=f"{rate:.0f}")

    metrics: dict = {}
    with preemption.deferred(mesh) as asked_to_stop:
        for step in range(first, config.steps):
            batch = batch_of_step(step)
            before, (state, metrics) = metrics, step_fn(state, batch, frozen)
            jax.block_until_ready(before)  # no further ahead, for a stop or the bar to be in time
            if waiting is not None:
                report(*waiting)
                waiting = None
            tokens += tokens_of(batch)
            done, stopping = step + 1, asked_to_stop()
            saving = done % config.save_every == 0 or done == config.steps
            if saving or done % config.report_every == 0:
                waiting = (step, metrics, tokens / (time.perf_counter() - began))
                tokens, began = 0, time.perf_counter()
            if saving or stopping:
                # Without a row where the uninterrupted run has none.
                report(*(waiting or (step, metrics, None)))
                waiting = None
                checkpoints.save(done, state, {"data": data, "position": done})
            bar.update()
            if stopping:
                checkpoints.wait()
                raise preemption.Preempted
        checkpoints.wait()
    bar.close()
    writer.close()
    return state


def _placed(params, like):
    """Copy parameters into a layout; a copy, since training gives its buffers away."""
    return jax.tree.map(
        lambda x, other: jnp.array(to_devices(x, other.sharding), copy=True), params, like
    )
