import jax
import numpy as np
import pytest

from autollm_jax.sharding import rows
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.sharding.rules import batch_sharding
from tests.collectives import COLLECTIVE

B, S, C = 16, 12, 3


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    slots_BC = np.stack([rng.permutation(S + 2)[:C] for _ in range(B)])  # some beyond the end
    return rng.normal(size=(B, S, 2)), slots_BC, rng.normal(size=(B, C, 2))


def test_writing_sets_the_places_and_drops_what_is_beyond_the_end(arrays):
    x_BSA, slots_BC, values_BCA = arrays
    wanted = x_BSA.astype(np.float32)
    for b, c in np.ndindex(slots_BC.shape):
        if slots_BC[b, c] < S:
            wanted[b, slots_BC[b, c]] = values_BCA[b, c]
    np.testing.assert_array_equal(rows.write(*map(jax.numpy.asarray, arrays)), wanted)
    assert (slots_BC >= S).any()


def test_reading_takes_one_place_of_each_row(arrays):
    x_BS, slot_B = arrays[0][..., 0], arrays[1][:, 0] % S
    found = rows.read(jax.numpy.asarray(x_BS), jax.numpy.asarray(slot_B))
    np.testing.assert_array_equal(found, x_BS[np.arange(B), slot_B].astype(np.float32))


def compiled(function, mesh, *arrays):
    split = [jax.device_put(x, batch_sharding(mesh)) for x in arrays]
    return jax.jit(function).lower(*split).compile().as_text()


def test_rows_split_over_devices_stay_where_they_are(arrays):
    mesh, (x_BSA, slots_BC, _) = make_mesh(MeshShape(data=8)), arrays
    texts = [
        compiled(rows.write, mesh, *arrays),
        compiled(rows.read, mesh, x_BSA[..., 0], slots_BC[:, 0] % S),
    ]
    assert not any(map(COLLECTIVE.search, texts))

    def by_indices(x_BSA, slots_BC, values_BCA):
        return x_BSA.at[np.arange(B)[:, None], slots_BC].set(values_BCA, mode="drop")

    assert COLLECTIVE.search(compiled(by_indices, mesh, *arrays))  # what they are there to avoid
