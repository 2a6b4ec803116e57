"""Sweeps: many training runs of one shape at once.

1. Runs that share every shape (model, batch size, number of steps) form a group; what differs
   between them (learning rate, seed, stream of batches) is an array with one entry per run. Groups
   of one model and batch size share a program, whatever their number of steps.
2. `shard_map` splits the runs over the mesh's `data` axis, so that devices never speak to each
   other inside a step. A chunk of K steps is one `lax.scan` of `update`; the next chunk's batches
   are fetched while it computes.
3. On an accelerator a device's runs are vmapped. On a CPU an operation holds about
   `TOKENS_AT_ONCE` tokens, so that its arrays stay in the core's cache: a few runs are vmapped, and
   a larger batch is cut into microbatches.
4. State and position of the group are checkpointed; a killed group resumes from there.
5. A run whose loss is not finite, or ends above a uniform guess's, has the outcome "diverged".

Letter: R runs.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.cluster import preemption
from autollm_jax.data.pipeline import Batch, Pipeline
from autollm_jax.models import transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.training.group_progress import GroupProgress
from autollm_jax.training.optimizer import OptimizerConfig, make_optimizer
from autollm_jax.training.state import TrainState
from autollm_jax.training.step import next_token_loss, update

# Tokens of each seed in a chunk: long enough to hide the host, short enough to stop.
CHUNK_TOKENS = 16_384
# Tokens of an operation on a CPU (docs/performance.md).
TOKENS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Run:
    """The fields in which runs of a group differ.

    Attributes:
      learning_rate: the peak.
      seed: of the initial parameters.
      stream: which of the group's pipelines it trains on.
    """

    learning_rate: float
    seed: int
    stream: Hashable = 0


@dataclasses.dataclass(frozen=True)
class RunOutcome:
    """The outcome of a run.

    Attributes:
      losses: validation cross-entropy by domain, nats per token (nan where it is not finite).
      status: "ok" or "diverged".
      seconds: the group's wall-clock seconds on this machine, divided by its runs.
    """

    run: Run
    losses: dict[str, float]
    status: str
    seconds: float


def _loss(model: TransformerConfig, params, batch: Batch):
    logits_BTV = transformer.apply(model, params, batch.tokens_BT)
    return *next_token_loss(logits_BTV, batch.targets_BT, batch.loss_mask_BT), {}


RUNS, WHOLE = PartitionSpec("data"), PartitionSpec()


def filled(runs: Sequence, mesh: Mesh) -> list:
    """Repeat the last run until the mesh's `data` axis divides them; the copies are dropped."""
    return list(runs) + [runs[-1]] * (-len(runs) % mesh.shape["data"])


def column(values: Sequence, dtype, mesh: Mesh) -> jax.Array:
    """Lay one number a run over the mesh's `data` axis."""
    return jax.device_put(np.array(values, dtype), NamedSharding(mesh, RUNS))


def _divisor(number: int, most: int) -> int:
    """Return the largest divisor of `number` that is at most `most`, and at least 1."""
    return max(n for n in range(1, number + 1) if number % n == 0 and n <= max(1, most))


def at_once(runs: int, batch: int, length: int) -> tuple[int, int]:
    """Return how many of a device's runs are vmapped, and how many microbatches a batch has."""
    if jax.default_backend() != "cpu":
        return runs, 1
    together = _divisor(runs, TOKENS_AT_ONCE // (batch * length))
    return together, batch // _divisor(batch, TOKENS_AT_ONCE // length)


# The programs are kept, since groups of one model share two of the three.
@functools.lru_cache(maxsize=8)
def make_init(model: TransformerConfig, optimizer: OptimizerConfig, mesh: Mesh):
    """Compile init(seeds_R) -> a TrainState with a leading axis R, split over `data`."""

    def init_one(seed):
        params = transformer.init(model, jax.random.key(seed))
        # Neither the schedule's length nor the rate is part of an optimizer's state.
        opt_state = make_optimizer(optimizer, updates=1).init(params)
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state)

    split = jax.shard_map(
        jax.vmap(init_one), mesh=mesh, in_specs=RUNS, out_specs=RUNS, check_vma=False
    )
    # It runs once, so that on a CPU optimising it costs more than it saves.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(split, compiler_options=quick)


@functools.lru_cache(maxsize=8)
def make_advance(model: TransformerConfig, optimizer: OptimizerConfig, mesh: Mesh):
    """Compile the training of R runs by K of their steps.

    Args:
      model: the one shape.
      optimizer: all but the learning rate.
      mesh: its `data` axis splits the runs; R must be a multiple of it.

    Returns:
      advance(state, rates_R, order_R, steps, batch_KSBT) -> (state, losses_RK), state donated,
        where run r trains on the batches of stream number order_R[r], and `steps` is the length of
        every run, for the schedule.
    """

    def advance(state, rates_R, order_R, steps, batch_KSBT):
        runs, (B, T) = len(rates_R), batch_KSBT.tokens_BT.shape[2:]
        together, microbatches = at_once(runs, B, T)

        def one_run(arguments):
            state, rate, number = arguments
            # Rate and length are traced, so that they are no part of the program.
            transformation = make_optimizer(optimizer, steps, rate)

            def one_step(state, batch_SBT):
                batch_BT = jax.tree.map(lambda x: x[number], batch_SBT)
                loss_fn = functools.partial(_loss, model)
                state, metrics = update(loss_fn, transformation, state, batch_BT, microbatches)
                return state, metrics["loss"]

            return jax.lax.scan(one_step, state, batch_KSBT)

        return jax.lax.map(one_run, (state, rates_R, order_R), batch_size=together)

    split = jax.shard_map(
        advance,
        mesh=mesh,
        in_specs=(RUNS, RUNS, RUNS, WHOLE, WHOLE),
        out_specs=(RUNS, RUNS),
        check_vma=False,
    )
    return jax.jit(split, donate_argnums=0)


@functools.lru_cache(maxsize=8)
def make_evaluate(model: TransformerConfig, mesh: Mesh):
    """Compile evaluate(params_R, batch_EBT) -> (loss_sums_RE, counts_RE)."""

    def evaluate(params_R, batch_EBT):
        def one_run(params):
            return jax.lax.map(lambda batch: _loss(model, params, batch)[:2], batch_EBT)

        return jax.vmap(one_run)(params_R)

    return jax.jit(
        jax.shard_map(evaluate, mesh=mesh, in_specs=(RUNS, WHOLE), out_specs=RUNS, check_vma=False)
    )


def train_states(
    model: TransformerConfig,
    optimizer: OptimizerConfig,
    runs: Sequence[Run],
    *,
    steps: int,
    pipelines: Mapping[Hashable, Pipeline],
    mesh: Mesh,
    checkpoints: Checkpoints | None = None,
    checkpoint_seconds: float = 60.0,
    on_steps: Callable[[int], None] = lambda count: None,
) -> tuple[TrainState, float]:
    """Train the runs of one group together.

    Args:
      model: their model.
      optimizer: all but their learning rates.
      runs: R of them.
      steps: updates each run does.
      pipelines: training batches by stream, all of one batch size.
      mesh: the runs are split over its `data` axis.
      checkpoints: where to save and to resume from; None saves nothing.
      checkpoint_seconds: between two checkpoints.
      on_steps: called with the number of steps done, for a progress bar.

    Returns:
      The state after the last step, with a leading axis of R (filled up to a multiple of the mesh's
      `data` axis with copies of the last run), and the wall-clock seconds spent.
    """
    padded = filled(runs, mesh)
    streams = list(dict.fromkeys(run.stream for run in runs))
    init = make_init(model, optimizer, mesh)
    advance = make_advance(model, optimizer, mesh)
    rates_R = column([run.learning_rate for run in padded], np.float32, mesh)
    order_R = column([streams.index(run.stream) for run in padded], np.int32, mesh)
    seeds_R = column([run.seed for run in padded], np.int32, mesh)

    progress = GroupProgress(checkpoints, checkpoint_seconds, on_steps)
    state = progress.begin(init, seeds_R.sharding, seeds_R)
    first = pipelines[streams[0]]
    length = max(1, min(steps, CHUNK_TOKENS // (first.batch_size * first.length)))

    def fetch(start):
        parts = [pipelines[s].batches(start, min(length, steps - start)) for s in streams]
        return jax.tree.map(lambda *x: np.stack(x, axis=1), *parts)

    batch_KSBT = fetch(progress.step) if progress.step < steps else None
    with preemption.deferred(mesh) as asked_to_stop:
        while progress.step < steps:
            state, losses_RK = advance(state, rates_R, order_R, np.int32(steps), batch_KSBT)
            after = progress.step + losses_RK.shape[1]
            batch_KSBT = fetch(after) if after < steps else None
            jax.block_until_ready(losses_RK)
            progress.advance(losses_RK.shape[1], state, asked_to_stop())
    jax.block_until_ready(state)
    return state, progress.end(state)


def train_group(
    model: TransformerConfig,
    optimizer: OptimizerConfig,
    runs: Sequence[Run],
    *,
    validation: Mapping[str, Batch],
    mesh: Mesh,
    **options,
) -> list[RunOutcome]:
    """Train the runs of one group together, and evaluate them.

    Args:
      model: their model.
      optimizer: all but their learning rates.
      runs: R of them.
      validation: one batch [B, T] a domain.
      mesh: the runs are split over its `data` axis.
      **options: the other arguments of `train_states`.

    Returns:
      The outcomes, in the order of `runs`.
    """
    state, seconds = train_states(model, optimizer, runs, mesh=mesh, **options)
    began = time.monotonic()
    batch_EBT = jax.tree.map(lambda *x: np.stack(x), *validation.values())
    evaluate = make_evaluate(model, mesh)
    sums_RE, counts_RE = jax.device_get(evaluate(state.params, batch_EBT))
    seconds += time.monotonic() - began
    outcomes = []
    for run, losses_E in zip(runs, sums_RE / counts_RE, strict=False):  # without the filling
        losses_E = np.where(np.isfinite(losses_E), losses_E, np.nan).tolist()
        losses = dict(zip(validation, losses_E, strict=True))
        mean = sum(losses.values()) / len(losses)
        status = "ok" if mean < math.log(model.vocab_size) else "diverged"
        outcomes.append(RunOutcome(run, losses, status, seconds / len(runs)))
    return outcomes
