"""Arrays between a process's host memory and a mesh that may span several processes.

All processes must make the same calls in the same order. If an array is spread over several
processes and one of them leaves out a call, the others wait for ever.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding


def to_host(tree):
    """Copy whole arrays to this process's memory; shards of other processes are gathered.

    Args:
      tree: device arrays or numpy arrays.

    Returns:
      The same tree of numpy arrays; copies, so that the device's buffers may be donated.
    """
    return jax.tree.map(_to_host, tree)


def _to_host(x) -> np.ndarray:
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        x = multihost_utils.process_allgather(x, tiled=True)
    return np.array(x)


def to_devices(tree, sharding):
    """Copy host arrays to a mesh's devices.

    Args:
      tree: host arrays, the same ones in every process.
      sharding: one sharding for all arrays, or a tree with one sharding per array.
    """
    shardings = sharding if not isinstance(sharding, jax.sharding.Sharding) else None
    if shardings is None:
        shardings = jax.tree.map(lambda _: sharding, tree)
    return jax.tree.map(_to_devices, tree, shardings)


def _to_devices(x, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.device_put(x, sharding)  # from another sharding over the same devices
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def as_arguments(tree, sharding: NamedSharding):
    """Prepare host arrays as arguments of a compiled function with this `in_shardings`.

    `jit` copies host arrays to the devices of one process by itself. It refuses host arrays if the
    devices belong to several processes; then `to_devices` copies them here.
    """
    return tree if sharding.is_fully_addressable else to_devices(tree, sharding)


def processes_of(mesh: Mesh) -> list[int]:
    """Return the sorted indices of the processes that own a mesh's devices."""
    return sorted({device.process_index for device in mesh.devices.flat})
