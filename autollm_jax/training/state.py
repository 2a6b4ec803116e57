"""The state of a train step, made directly in its sharded layout."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from autollm_jax.sharding.rules import replicated, tree_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step: number of updates done, i32 []. params: f32 tree. opt_state: optax's."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState


def _fresh(init: Callable, optimizer: optax.GradientTransformation, key) -> TrainState:
    params = init(key)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def state_shardings(init, logical_axes, optimizer, mesh: Mesh) -> TrainState:
    """Give the shardings of the whole state; optimizer moments lie as their parameters do."""
    shapes = jax.eval_shape(lambda: _fresh(init, optimizer, jax.random.key(0)))
    params = tree_shardings(logical_axes, shapes.params, mesh)
    opt_state = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        shapes.opt_state,
        params,
        transform_non_params=lambda _: replicated(mesh),
    )
    return TrainState(replicated(mesh), params, opt_state)


def init_state(init: Callable, logical_axes, optimizer, key, mesh: Mesh) -> TrainState:
    """Initialise every array where it belongs; no device holds more than its share.

    Args:
      init: key -> parameter tree.
      logical_axes: the same tree with tuples of logical axis names.
      optimizer: its state is made too.
      key: random key.
      mesh: the job's mesh.
    """
    shardings = state_shardings(init, logical_axes, optimizer, mesh)
    with jax.set_mesh(mesh):
        return jax.jit(lambda k: _fresh(init, optimizer, k), out_shardings=shardings)(key)


def abstract_state(init: Callable, logical_axes, optimizer, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, to restore a checkpoint into."""
    shapes = jax.eval_shape(lambda: _fresh(init, optimizer, jax.random.key(0)))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(init, logical_axes, optimizer, mesh),
    )
