"""The one table that maps logical axes to mesh axes, and what applies it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# A parameter names its axes `width`, `mlp`, ...; an activation's `width` is called `activation`,
# since fsdp splits parameters over it but the batch over the activations.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "sweep": ("data",),
    "length": (),
    "activation": (),
    "layers": (),
    "vocab": ("tensor",),
    "width": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
}


def partition_spec(axes, shape, mesh) -> PartitionSpec:
    """Map one array's logical axes to mesh axes.

    Args:
      axes: one logical axis name, or None, per dimension.
      shape: the array's shape. A dimension that its mesh axes do not divide stays whole (two
        key-value heads on four tensor devices, say).
      mesh: a concrete or abstract mesh; axes that are not Auto in it (inside `shard_map`) are left
        to the surrounding code.

    Raises:
      KeyError: for a logical axis that `RULES` does not have.
    """
    automatic = {
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto
    }
    entries = []
    for axis, size in zip(axes, shape, strict=True):
        names = tuple(n for n in RULES[axis] if n in automatic) if axis is not None else ()
        split = int(np.prod([mesh.shape[n] for n in names]))
        entries.append(names if split > 1 and size % split == 0 else None)
    return PartitionSpec(*entries)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pin an activation's layout by its logical axes; without a mesh in scope, do nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = partition_spec(axes, x.shape, mesh)
    return x if all(s is None for s in spec) else jax.lax.with_sharding_constraint(x, spec)


def pieces(axis: str, size: int) -> int:
    """Return into how many pieces the mesh in scope splits a dimension; without a mesh, 1."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    (names,) = partition_spec((axis,), (size,), mesh)
    return int(np.prod([mesh.shape[name] for name in names or ()], dtype=int))


def tree_shardings(logical_axes, shapes, mesh: Mesh):
    """Give every leaf of a tree its `NamedSharding`.

    Args:
      logical_axes: a tree whose leaves are tuples of logical axis names.
      shapes: the same tree with arrays or `ShapeDtypeStruct` leaves.
      mesh: the job's mesh.
    """
    return jax.tree.map(
        lambda leaf, axes: NamedSharding(mesh, partition_spec(axes, leaf.shape, mesh)),
        shapes,
        logical_axes,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch array: the first dimension is split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def even_rows(rows: int, mesh: Mesh, pieces: int = 1) -> int:
    """Round a batch's rows up so that each device gets as many of each piece as any other."""
    multiple = pieces * mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-rows // multiple) * multiple


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())
