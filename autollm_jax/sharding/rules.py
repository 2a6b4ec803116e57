"""The table that maps logical axes to mesh axes, and the functions that apply it."""

import functools

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# A parameter's axis of model width is `width`, an activation's is `activation`: fsdp splits the
# width of parameters, but the batch of activations.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "replica": ("data",),  # rows of a batch that one copy of the parameters reads
    "row": ("fsdp",),  # one of these rows
    "sweep": ("data",),
    "length": (),
    "activation": (),
    "layers": (),
    "vocab": ("tensor",),
    "vocab_shard": ("fsdp", "tensor"),  # rows of a table that is multiplied where they lie
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
      shape: the array's shape. A dimension that is not divisible by its mesh axes is not split (two
        key-value heads on four tensor devices, say).
      mesh: a concrete or abstract mesh. Only axes of type Auto are used; inside `shard_map` the
        surrounding code splits over the others.

    Raises:
      KeyError: a logical axis is not in `RULES`.
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


def constrain(x: jax.Array, *axes: str | None, always: bool = False) -> jax.Array:
    """Constrain an array's sharding by its logical axes; without a mesh, return x as it is.

    An array that no axis splits is left to the compiler, unless `always` is set: then every device
    holds it whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = partition_spec(axes, x.shape, mesh)
    if all(entry is None for entry in spec):
        # Inside `shard_map` over all axes there is nothing that the compiler could split.
        always = always and AxisType.Auto in mesh.axis_types
        return jax.lax.with_sharding_constraint(x, spec) if always else x
    return jax.lax.with_sharding_constraint(x, spec)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def reshard(x: jax.Array, source: tuple[str | None, ...], target: tuple[str | None, ...]):
    """Bring x from one layout to another, and its gradient back.

    The gradient of `constrain` would be brought to the target's layout first: summed over devices
    that each keep a part of the sum.
    """
    return constrain(x, *target, always=True)


def _reshard(x, source, target):
    return reshard(x, source, target), None


def _reshard_back(source, target, _, cotangent):
    return (constrain(cotangent, *source, always=True),)


reshard.defvjp(_reshard, _reshard_back)


def whole_over_fsdp(axes: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """Return a parameter's logical axes with no axis that only `fsdp` splits."""
    return tuple(None if axis is not None and RULES[axis] == ("fsdp",) else axis for axis in axes)


def pieces(axis: str, size: int) -> int:
    """Return into how many parts the current mesh splits a dimension; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    (names,) = partition_spec((axis,), (size,), mesh)
    names = (names,) if isinstance(names, str) else names or ()  # a name alone comes without tuple
    return int(np.prod([mesh.shape[name] for name in names], dtype=int))


def shards(axis: str) -> int:
    """Return over how many devices the current mesh spreads an axis; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else int(np.prod([mesh.shape[name] for name in RULES[axis]]))


def tree_shardings(logical_axes, shapes, mesh: Mesh):
    """Return a tree with the `NamedSharding` of every leaf.

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
    """Return the sharding of a batch array: the first dimension is split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def even_rows(rows: int, mesh: Mesh, pieces: int = 1) -> int:
    """Round a batch's rows up so that each of `pieces` parts splits evenly over the devices."""
    multiple = pieces * mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-rows // multiple) * multiple


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())
