import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.errors import UserError
from autollm_jax.sharding.mesh import MeshShape, make_mesh


def state_on(mesh, rows=8):
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    values = jnp.arange(rows * 2, dtype=jnp.float32).reshape(rows, 2)
    return {"layers": {"gate": jax.device_put(values, sharding)}}


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state_on(make_mesh(MeshShape(1, 8, 1))), {"position": 42})
    checkpoints.wait()
    checkpoints.close()
    return Checkpoints(tmp_path)  # as another process would open them


def test_another_mesh_restores_the_same_values(saved):
    target = state_on(make_mesh(MeshShape(1, 2, 4)))
    state, _ = saved.restore(abstract(target))
    assert state["layers"]["gate"].sharding == target["layers"]["gate"].sharding
    np.testing.assert_array_equal(state["layers"]["gate"], target["layers"]["gate"])


def test_the_data_position_comes_back(saved):
    _, extra = saved.restore(abstract(state_on(make_mesh(MeshShape(1, 8, 1)))))
    assert extra == {"position": 42}


def test_a_checkpoint_of_another_shape_is_refused_in_one_line(saved):
    other = abstract(state_on(make_mesh(MeshShape(1, 8, 1)), rows=16))
    with pytest.raises(UserError, match=r"layers/gate is \(8, 2\).*but \(16, 2\)") as error:
        saved.restore(other)
    assert "\n" not in str(error.value)


def test_a_checkpoint_with_another_tree_is_refused(saved):
    more = abstract(state_on(make_mesh(MeshShape(1, 8, 1))))
    more["layers"]["up"] = more["layers"]["gate"]
    with pytest.raises(UserError, match="layers/up is missing"):
        saved.restore(more)
    with pytest.raises(UserError, match="layers/gate has no place"):
        saved.restore({})


def test_nothing_to_restore_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        Checkpoints(tmp_path).restore({})


def test_only_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(4):
        checkpoints.save(step, state_on(make_mesh(MeshShape(1, 8, 1))), {})
    checkpoints.wait()
    assert checkpoints.latest() == 3
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "3"]
