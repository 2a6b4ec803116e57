"""Arrays between a process's host memory and a mesh that may span several processes.

Every process calls these alike: where an array is spread over them, a process that left a call out
would leave the others waiting.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding


def to_host(tree):
    """Copy arrays to this process's memory, whole; what other processes hold is gathered.

    Args:
      tree: device arrays, or numpy's.

    Returns:
      The same tree of numpy arrays; copies, so that the device's buffers may be donated.
    """
    return jax.tree.map(_to_host, tree)


def _to_host(x) -> np.ndarray:
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        x = multihost_utils.process_allgather(x, tiled=True)
    return np.array(x)


def to_devices(tree, sharding):
    """Lay host arrays, the same in every process, over a mesh's devices.

    Args:
      tree: host arrays.
      sharding: of all of them, or a tree of shardings.
    """
    shardings = sharding if not isinstance(sharding, jax.sharding.Sharding) else None
    if shardings is None:
        shardings = jax.tree.map(lambda _: sharding, tree)
    return jax.tree.map(_to_devices, tree, shardings)


def _to_devices(x, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.device_put(x, sharding)  # from another layout of the same devices
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def as_arguments(tree, sharding: NamedSharding):
    """Prepare host arrays for a compiled function whose in_sharding this is.

    `jit` lays host arrays over the devices of one process by itself, and refuses to where they are
    several processes'.
    """
    return tree if sharding.is_fully_addressable else to_devices(tree, sharding)


def processes_of(mesh: Mesh) -> list[int]:
    """Return the processes whose devices a mesh has."""
    return sorted({device.process_index for device in mesh.devices.flat})
