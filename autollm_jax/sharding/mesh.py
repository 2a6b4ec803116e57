"""The device mesh: axes `data`, `fsdp` and `tensor`."""

import dataclasses
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from autollm_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Number of devices along each mesh axis; one number may be -1, for all remaining devices.

    Attributes:
      data: splits the batch, or the configurations of a sweep; parameters are replicated.
      fsdp: splits parameters, optimizer state and the batch.
      tensor: splits heads, MLP columns and the vocabulary.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def resolve(self, device_count: int) -> tuple[int, int, int]:
        """Return the sizes of the axes, with -1 replaced by the number of remaining devices.

        Raises:
          UserError: if the axes do not multiply to `device_count`.
        """
        sizes = [getattr(self, axis) for axis in AXES]
        known = 1
        for size in sizes:
            known *= size if size != -1 else 1
        if sizes.count(-1) == 1 and known > 0 and device_count % known == 0:
            sizes[sizes.index(-1)] = device_count // known
            known = device_count
        if known != device_count or min(sizes) < 1:
            asked = " x ".join(f"{a}={getattr(self, a)}" for a in AXES)
            raise UserError(
                f"config.mesh: {asked} does not fit {device_count} devices; the axes must multiply "
                "to the device count, and at most one may be -1"
            )
        return tuple(sizes)


def split_mesh(mesh: Mesh, replicas: int) -> tuple[Mesh, Mesh]:
    """Cut a mesh in two along `data`: so many replicas, and the rest.

    Raises:
      UserError: there are no replicas left, or the mesh spans several processes.
    """
    count = mesh.shape["data"]
    if len({device.process_index for device in mesh.devices.flat}) > 1:
        raise UserError(
            "config.grpo.off_policy_steps=1 splits the devices of one process; accepted is 0 in a "
            "job of several"
        )
    if not 0 < replicas < count:
        raise UserError(
            f"config.grpo.player_replicas={replicas} of {count} replicas along config.mesh.data "
            "play; accepted is a number from 1 that leaves one for training"
        )
    parts = mesh.devices[:replicas], mesh.devices[replicas:]
    first, rest = (Mesh(part, mesh.axis_names, axis_types=mesh.axis_types) for part in parts)
    return first, rest


def make_mesh(shape: MeshShape, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make the mesh over `devices`; None for all devices of the job.

    Raises:
      UserError: if the shape does not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = shape.resolve(len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
