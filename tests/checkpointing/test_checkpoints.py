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


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.fixture
def two_saved(tmp_path):
    """Checkpoints of steps 1 and 2, whose position is the step."""
    checkpoints, state = Checkpoints(tmp_path), state_on(make_mesh(MeshShape(1, 8, 1)))
    for step in (1, 2):
        checkpoints.save(step, state, {"position": step})
    checkpoints.wait()
    checkpoints.close()
    return Checkpoints(tmp_path)


def damage(folder, how):
    """Damage every file of a checkpoint that holds its values or describes them."""
    for path in files_of(folder):
        if how == "remove":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: 0 if how == "empty" else path.stat().st_size // 2])


@pytest.mark.parametrize("how", ["remove", "empty", "halve"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(two_saved, how, capsys):
    damage(two_saved.directory / "2", how)
    target = abstract(state_on(make_mesh(MeshShape(1, 8, 1))))
    _, extra = two_saved.restore(target)
    assert extra == {"position": 1} and two_saved.latest() == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "/2: damaged (" in line and "going on from step 1" in line
    # The step can be saved again.
    two_saved.save(2, state_on(make_mesh(MeshShape(1, 8, 1))), {"position": 22})
    two_saved.wait()
    assert two_saved.restore(target)[1] == {"position": 22}


@pytest.mark.parametrize("number", range(12))
def test_half_a_file_gives_the_older_checkpoint_or_the_same_values(two_saved, number):
    state = state_on(make_mesh(MeshShape(1, 8, 1)))
    files = files_of(two_saved.directory / "2")
    if number >= len(files):
        pytest.skip("a checkpoint of fewer files")
    files[number].write_bytes(files[number].read_bytes()[: files[number].stat().st_size // 2])
    restored, extra = Checkpoints(two_saved.directory).restore(abstract(state))
    assert extra["position"] in (1, 2)
    np.testing.assert_array_equal(restored["layers"]["gate"], state["layers"]["gate"])


def test_a_damaged_checkpoint_that_has_to_be_restored_is_an_error(two_saved):
    damage(two_saved.directory / "2", "halve")
    target = abstract(state_on(make_mesh(MeshShape(1, 8, 1))))
    with pytest.raises(UserError, match="/2: damaged, and renamed to damaged_2; run --stage="):
        two_saved.restore(target, step=2)
    assert two_saved.latest() == 1


def test_at_least_two_checkpoints_are_kept(tmp_path):
    with pytest.raises(ValueError, match="accepted is 2 or more"):
        Checkpoints(tmp_path, keep=1)
