import dataclasses

import jax
import pytest
from jax.sharding import AxisType, PartitionSpec

from autollm_jax.errors import UserError
from autollm_jax.sharding.mesh import MeshShape, for_play, make_mesh, over_slices
from autollm_jax.sharding.rules import RULES, constrain, partition_spec


def test_minus_one_takes_the_devices_that_are_left():
    assert MeshShape(data=-1, fsdp=2, tensor=2).resolve(8) == (2, 2, 2)


@pytest.mark.parametrize("shape", [(3, 1, 1), (-1, -1, 1), (0, 8, 1), (-1, 3, 1), (-2, -2, 2)])
def test_a_shape_that_does_not_fit_names_the_field_and_the_devices(shape):
    with pytest.raises(UserError, match=r"config\.mesh.*8 devices"):
        MeshShape(*shape).resolve(8)


def test_axes_are_auto_so_that_constraints_are_hints():
    mesh = make_mesh(MeshShape(2, 2, 2))
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_play_arranges_the_same_devices_anew():
    mesh = make_mesh(MeshShape(2, 4, 1))
    playing = for_play(mesh, 2)
    assert dict(playing.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert list(playing.devices.flat) == list(mesh.devices.flat)  # one program may span both
    assert for_play(mesh, 0) is mesh and for_play(mesh, 1) is mesh
    with pytest.raises(UserError, match=r"config\.mesh\.player_tensor=3 does not divide .*=4"):
        for_play(mesh, 3)


def test_a_dimension_that_does_not_divide_stays_whole():
    mesh = make_mesh(MeshShape(1, 2, 4))
    axes = ("width", "kv_heads", "head_dim")
    assert partition_spec(axes, (16, 8, 4), mesh) == PartitionSpec(("fsdp",), ("tensor",), None)
    assert partition_spec(axes, (16, 2, 4), mesh) == PartitionSpec(("fsdp",), None, None)


def test_an_unknown_logical_axis_is_an_error():
    with pytest.raises(KeyError, match="widht"):
        partition_spec(("widht",), (8,), make_mesh(MeshShape()))


def test_every_rule_names_mesh_axes():
    assert {axis for axes in RULES.values() for axis in axes} <= {"data", "fsdp", "tensor"}


def test_constrain_splits_an_activation_over_the_mesh_in_scope():
    mesh = make_mesh(MeshShape(4, 2, 1))
    with jax.set_mesh(mesh):
        x = jax.jit(lambda x: constrain(x * 2, "batch", None))(jax.numpy.ones((16, 3)))
    assert x.addressable_shards[0].data.shape == (2, 3)


def test_constrain_without_a_mesh_changes_nothing():
    x = jax.numpy.ones((16, 3))
    assert constrain(x, "batch", None) is x


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device as far as laying out a mesh looks at it."""

    id: int
    slice_index: int
    platform: str = "test"
    device_kind: str = "test"

    @property
    def process_index(self):
        return self.id // 4


def test_the_data_axis_alone_crosses_slices():
    chips = [Chip(i, i % 2) for i in range(16)]  # in no order
    laid_out = over_slices((4, 2, 2), 2, chips)
    assert laid_out.shape == (4, 2, 2) and set(laid_out.flat) == set(chips)
    slices = [{chip.slice_index for chip in replica.flat} for replica in laid_out]
    assert slices == [{0}, {0}, {1}, {1}]


@pytest.mark.parametrize("shape", [(1, 16, 1), (2, 8, 1), (1, 4, 4)])
def test_any_axis_crosses_the_hosts_of_gpus(shape):
    gpus = [Chip(i, i // 8, "gpu") for i in range(16)]
    laid_out = make_mesh(MeshShape(*shape), gpus).devices
    assert laid_out.shape == shape and [gpu.id for gpu in laid_out.flat] == list(range(16))


def test_a_data_axis_that_the_slices_do_not_divide():
    chips = [Chip(i, i // 8) for i in range(16)]
    with pytest.raises(UserError, match=r"config.mesh.data=1: these devices are 2 slices.* of 2"):
        make_mesh(MeshShape(1, 4, 4), chips)
