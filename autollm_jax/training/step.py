"""The train step: gradients over microbatches, clipping, update."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from autollm_jax.models import lora
from autollm_jax.sharding.hosts import as_arguments
from autollm_jax.sharding.rules import batch_sharding, even_rows
from autollm_jax.sharding.xla_options import xla_options
from autollm_jax.training import flops
from autollm_jax.training.likelihood import chosen
from autollm_jax.training.masked import divide
from autollm_jax.training.state import TrainState


def next_token_loss(logits_BTV, targets_BT, mask_BT):
    """Sum cross-entropy in nats over the tokens in the mask.

    Returns:
      (sum, count), f32 scalars.
    """
    losses_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - chosen(logits_BTV, targets_BT)
    return (losses_BT * mask_BT).sum(), mask_BT.sum().astype(jnp.float32)


def update(
    loss_fn: Callable, optimizer, state: TrainState, batch, microbatches: int = 1, frozen=None
):
    """Do one optimizer step.

    Args:
      loss_fn: (params, batch) -> (loss_sum, count, {name: (sum, count)}); the loss is their ratio
        over the whole batch, however it is cut.
      optimizer: optax transformation.
      state: the state before.
      batch: a tree of arrays with the batch axis first.
      microbatches: parts that the batch is cut into; gradients are summed over them.
      frozen: parameters that the loss reads beside the trained ones (`models.lora`).

    Returns:
      The state after, and metrics: name -> f32 scalar, with `loss` and `gradient_norm`.
    """

    def objective(params, piece):
        loss_sum, count, metrics = loss_fn(lora.join(frozen or {}, params), piece)
        return loss_sum, (count, {**metrics, "loss": (loss_sum, count)})

    gradient = jax.grad(objective, has_aux=True)
    if microbatches == 1:
        grads, (count, metrics) = gradient(state.params, batch)
    else:
        # Piece i takes every microbatches-th row, so that each device keeps its own rows.
        pieces = jax.tree.map(
            lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch
        )

        def accumulate(carry, piece):
            return jax.tree.map(jnp.add, carry, gradient(state.params, piece)), None

        first = jax.tree.map(lambda x: x[0], pieces)
        zeros = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(gradient, state.params, first)
        )
        (grads, (count, metrics)), _ = jax.lax.scan(accumulate, zeros, pieces)
    grads = jax.tree.map(lambda g: g / jnp.maximum(count, 1.0), grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {name: divide(metric) for name, metric in metrics.items()}
    metrics["gradient_norm"] = optax.tree.norm(grads)
    return TrainState(state.step + 1, params, opt_state), metrics


def jit_train_step(
    loss_fn: Callable, optimizer, shardings: TrainState, mesh: Mesh, microbatches: int = 1
):
    """Make `update` a program for a mesh, with the state donated.

    Args:
      loss_fn: as in `update`.
      optimizer: optax transformation.
      shardings: of the state, from `state_shardings`.
      mesh: the job's mesh; batch arrays are split over data and fsdp along their first axis, and
        have as many rows as they and the microbatches divide.
      microbatches: as in `update`.

    Returns:
      The jitted step(state, batch, frozen) -> (state, metrics), to be traced under
      `jax.set_mesh(mesh)`.
    """

    def step(state, batch, frozen):
        return update(loss_fn, optimizer, state, batch, microbatches, frozen)

    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh), None),
        out_shardings=(shardings, None),
        donate_argnums=0,
        compiler_options=xla_options(mesh),
    )


def make_train_step(
    loss_fn: Callable,
    optimizer,
    shardings: TrainState,
    mesh: Mesh,
    microbatches: int = 1,
    counted_fn: Callable | None = None,
) -> "Program":
    """Return `jit_train_step`'s step(state, batch, frozen) -> (state, metrics), as a `Program`.

    A batch of fewer rows than the mesh divides is filled up with rows of zeros, which `loss_fn` has
    to count for nothing: they are in no mask. `counted_fn` is `loss_fn` without recomputation.
    """
    parts = optimizer, shardings, mesh, microbatches
    counted = counted_fn and jit_train_step(counted_fn, *parts)
    return Program(jit_train_step(loss_fn, *parts), mesh, microbatches, counted)


class Program:
    """A program of (parameters or state, batch, ...) that takes the host's batches of any size.

    Args:
      jitted: the program.
      mesh: the mesh that it runs on; batches are filled up to a number of rows that it divides.
      microbatches: parts that it cuts a batch into.
      counted: the same program without recomputation; its FLOPs count where `jitted` recomputes.

    Attributes:
      flops: FLOPs of all calls so far, over all devices.
    """

    def __init__(self, jitted, mesh: Mesh, microbatches: int = 1, counted=None):
        self.flops = 0
        self._jitted, self._mesh, self._microbatches = jitted, mesh, microbatches
        self._counted, self._known = counted, {}

    def __call__(self, first, batch, *others):
        batch = jax.tree.map(self._filled, batch)
        batch = as_arguments(batch, batch_sharding(self._mesh))
        with jax.set_mesh(self._mesh):
            self.flops += self._flops_of(first, batch, *others)
            return self._jitted(first, batch, *others)

    def _filled(self, x):
        missing = even_rows(len(x), self._mesh, self._microbatches) - len(x)
        return np.pad(x, ((0, missing), *[(0, 0)] * (x.ndim - 1))) if missing else x

    def _flops_of(self, first, batch, *others) -> int:
        """Count the FLOPs of a call; each shape of the batch is counted once."""
        leaves, structure = jax.tree.flatten(batch)
        shapes = structure, *(x.shape for x in leaves)
        if shapes not in self._known:
            jaxpr = self._jitted.trace(first, batch, *others).jaxpr
            if self._counted is not None and flops.recomputes(jaxpr):
                jaxpr = self._counted.trace(first, batch, *others).jaxpr
            self._known[shapes] = flops.count(jaxpr)
        return self._known[shapes]
