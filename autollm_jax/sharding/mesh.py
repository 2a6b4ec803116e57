"""The device mesh: axes `data`, `fsdp` and `tensor`."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
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


def for_play(mesh: Mesh, tensor: int) -> Mesh:
    """Arrange a mesh's devices anew for play: `tensor` shards of heads, and fewer of fsdp.

    A step of training reads so many tokens that gathering its parameters pays; a step of play reads
    one a row, and a device that holds a part of each layer has less to read.

    Args:
      mesh: the trainer's mesh.
      tensor: size of the tensor axis; 0 leaves the mesh as it is.

    Raises:
      UserError: `tensor` does not divide fsdp x tensor of the mesh.
    """
    data, fsdp, own = (mesh.shape[axis] for axis in AXES)
    if tensor in (0, own):
        return mesh
    if fsdp * own % tensor:
        raise UserError(
            f"config.mesh.player_tensor={tensor} does not divide config.mesh.fsdp x tensor="
            f"{fsdp * own}; accepted is a divisor, or 0 for config.mesh.tensor"
        )
    devices = mesh.devices.reshape(data, fsdp * own // tensor, tensor)
    return Mesh(devices, AXES, axis_types=mesh.axis_types)


def make_mesh(shape: MeshShape, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make the mesh over `devices`; None for all devices of the job.

    Several TPU slices are joined by a slow network. The data axis alone crosses it, so that
    parameters are gathered, and products summed, within a slice. GPU hosts count as slices to JAX,
    but any axis may cross them, as one of fsdp has to where a model needs more than one host; the
    last axes lie within a host as far as they fit.

    Raises:
      UserError: if the shape does not fit the devices, or the data axis not the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = shape.resolve(len(devices))
    slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
    types = (AxisType.Auto,) * len(AXES)
    if slices == 1:
        return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
    if devices[0].platform == "gpu":
        return Mesh(mesh_utils.create_device_mesh(sizes, devices), AXES, axis_types=types)
    return Mesh(over_slices(sizes, slices, devices), AXES, axis_types=types)


def over_slices(sizes: Sequence[int], slices: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """Lay devices of several slices out, as an array [data, fsdp, tensor]; data crosses slices.

    Raises:
      UserError: if the slices do not divide the data axis.
    """
    data, *inner = sizes
    if data % slices:
        raise UserError(
            f"config.mesh.data={data}: these devices are {slices} slices, and the data axis alone "
            f"crosses them; accepted is a multiple of {slices}"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, *inner), (slices, *(1 for _ in inner)), devices
    )
