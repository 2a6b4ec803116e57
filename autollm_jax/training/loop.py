"""The training loop of one run, from its newest checkpoint to its last step.

1. restore the newest checkpoint, or initialise (from given parameters, or afresh)
2. for every step: fetch its batch, make an update
3. read metrics one step late, while the next step runs; a loss that is not finite ends the run
   before a broken state is saved
4. save periodically, with the position and a digest of the data; a pre-emption saves and ends the
   job
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.cluster import distributed, preemption
from autollm_jax.errors import UserError
from autollm_jax.progress_bar import progress_bar
from autollm_jax.sharding.hosts import to_devices
from autollm_jax.training.meter import Meter
from autollm_jax.training.metrics import MetricsWriter
from autollm_jax.training.profiling import Profiler, Window
from autollm_jax.training.state import TrainState, abstract_state, init_state, state_shardings
from autollm_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Length and periods of a run.

    steps: updates in all.
    microbatches: parts of a batch that an update's gradient is summed over.
    save_every: steps between checkpoints.
    report_every: steps between rows of metrics.
    """

    steps: int
    microbatches: int = 1
    save_every: int = 100
    report_every: int = 10


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a stage trains.

    mesh: parameters and rows are split over it.
    checkpoints: the stage's.
    workdir: folder that metrics go to.
    traced: steps whose trace is written; None for none.
    """

    mesh: Mesh
    checkpoints: Checkpoints
    workdir: Path | str
    traced: Window | None = None


@dataclasses.dataclass(frozen=True)
class Learner:
    """Parameters and the objective that they are trained on.

    stage: its name in metrics and messages.
    init: key -> parameter tree.
    logical_axes: the same tree with tuples of logical axis names.
    loss_fn: as in `training.step.update`.
    optimizer: optax transformation.
    counted_fn: `loss_fn` without recomputation, whose FLOPs count.
    """

    stage: str
    init: Callable
    logical_axes: dict
    loss_fn: Callable
    optimizer: optax.GradientTransformation
    counted_fn: Callable | None = None


@dataclasses.dataclass(frozen=True)
class Stream:
    """The batches of a run.

    batch_of_step: step -> batch, a function of the step alone.
    tokens_of: batch -> tokens in it, for the rate.
    digest: names the data in checkpoints.
    """

    batch_of_step: Callable
    tokens_of: Callable
    digest: str


class _Reports:
    """Writes a run's metrics to file and progress bar.

    Raises:
      UserError: a loss is not finite.
    """

    def __init__(self, stage: str, workdir, first: int, steps: int):
        self.stage, self.writer = stage, MetricsWriter(workdir, stage, first_step=first)
        shown = distributed.is_main()
        self.bar = progress_bar(total=steps, initial=first, desc=stage, unit="step", shown=shown)

    def report(self, step: int, metrics: dict, rates: dict | None) -> None:
        """Check a step's loss, and write its metrics and rates where there are rates."""
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not np.isfinite(metrics["loss"]):
            raise UserError(
                f"{self.stage}: the loss is {metrics['loss']} at step {step}; lower "
                f"config.{self.stage}.optimizer.learning_rate and give --restart={self.stage}"
            )
        if rates is not None:
            self.writer.write(step, metrics | rates)
            rate = f"{rates['tokens_per_second']:.0f}"
            self.bar.set_postfix(loss=f"{metrics['loss']:.3f}", tokens_per_second=rate)

    def close(self) -> None:
        """Finish bar and files."""
        self.bar.close()
        self.writer.close()


class _Rates:
    """Rates of the steps between two rows of metrics.

    When a step is added, it runs, and all steps before it have ended: those count.
    """

    def __init__(self, mesh: Mesh):
        self._meter, self._began = Meter(mesh), None
        self._added = self._ended = self._read = (0, 0)  # tokens and FLOPs so far

    def begin(self) -> None:
        self._began = self._meter.now()

    def add(self, tokens: int, flops: int) -> None:
        """Add a step's tokens; `flops` are those of all steps so far, this one included."""
        self._ended, self._added = self._added, (self._added[0] + tokens, flops)

    def read(self, metrics: dict) -> dict[str, float]:
        """Return the rates since the last reading; where no step has ended, wait for `metrics`."""
        if self._ended == self._read:
            jax.block_until_ready(metrics)
            self._ended = self._added
        seconds = self._meter.seconds_since(self._began)
        tokens, flops = (now - before for now, before in zip(self._ended, self._read, strict=True))
        self._began, self._read = self._meter.now(), self._ended
        return {
            "tokens_per_second": tokens / seconds,
            **self._meter.speed(tokens, seconds),
            **self._meter.mfu(flops, seconds),
            **self._meter.totals(),
        }


def train(
    learner: Learner,
    stream: Stream,
    config: LoopConfig,
    site: Site,
    key: jax.Array,
    *,
    params=None,
    frozen=None,
) -> TrainState:
    """Train to the last step; resumes from the newest checkpoint.

    Args:
      learner: parameters, loss and optimizer.
      stream: the batches.
      config: of the loop.
      site: mesh, checkpoints and work directory.
      key: randomness of the initial parameters.
      params: initial parameters; fresh ones by default.
      frozen: parameters beside them that are not trained; a checkpoint does not hold them.

    Returns:
      The state after the last step.

    Raises:
      UserError: the loss is not finite, or the checkpoint was trained on other data.
      Preempted: the job was asked to stop; a checkpoint holds the last step.
    """
    rates = _Rates(site.mesh)
    first, state = _begin(learner, stream, site, key, params)
    shardings = state_shardings(learner.init, learner.logical_axes, learner.optimizer, site.mesh)
    step_fn = make_train_step(
        learner.loss_fn, learner.optimizer, shardings, site.mesh, config.microbatches,
        learner.counted_fn,
    )  # fmt: skip
    reports = _Reports(learner.stage, site.workdir, first, config.steps)
    rates.begin()
    waiting, metrics = None, {}
    with preemption.deferred(site.mesh) as asked_to_stop, Profiler(site.traced) as profiler:
        for step in range(first, config.steps):
            profiler.before(step, metrics)
            batch = stream.batch_of_step(step)
            before, (state, metrics) = metrics, step_fn(state, batch, frozen or {})
            jax.block_until_ready(before)  # at most one step ahead, so that a stop is in time
            if waiting is not None:
                reports.report(*waiting)
                waiting = None
            rates.add(stream.tokens_of(batch), step_fn.flops)
            done, stopping = step + 1, asked_to_stop()
            saving = done % config.save_every == 0 or done == config.steps
            if saving or done % config.report_every == 0:
                waiting = (step, metrics, rates.read(metrics))
            if saving or stopping:  # a step that is no row of the whole run is only checked
                reports.report(*(waiting or (step, metrics, None)))
                waiting = None
                site.checkpoints.save(done, state, {"data": stream.digest, "position": done})
            reports.bar.update()
            if stopping:
                site.checkpoints.wait()
                raise preemption.Preempted
        site.checkpoints.wait()
    reports.close()
    return state


def _begin(learner: Learner, stream: Stream, site: Site, key, params) -> tuple[int, TrainState]:
    """Return the first step and the state before it: the newest checkpoint's, or a fresh one."""
    parts = learner.init, learner.logical_axes, learner.optimizer
    first = site.checkpoints.latest() or 0
    if first:
        state, extra = site.checkpoints.restore(abstract_state(*parts, site.mesh))
        if extra["data"] != stream.digest:
            raise UserError(
                f"{site.checkpoints.directory}: the checkpoint was trained on other data; remove "
                "it, or use another --workdir"
            )
        return first, state
    state = init_state(*parts, key, site.mesh)
    if params is not None:
        state = dataclasses.replace(state, params=_placed(params, state.params))
    return first, state


def _placed(params, like):
    """Copy parameters into a layout; a copy, since training donates its buffers."""
    return jax.tree.map(
        lambda x, other: jnp.array(to_devices(x, other.sharding), copy=True), params, like
    )
