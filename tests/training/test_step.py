import jax
import numpy as np
import pytest

from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.training import step
from autollm_jax.training.optimizer import OptimizerConfig, make_optimizer
from autollm_jax.training.state import init_state, state_shardings
from autollm_jax.training.step import make_train_step


def train(tiny, token_steps, shape, devices, microbatches=1):
    init, axes, loss_fn = tiny
    mesh = make_mesh(shape, jax.devices()[:devices])
    optimizer = make_optimizer(OptimizerConfig(1e-2), len(token_steps))
    state = init_state(init, axes, optimizer, jax.random.key(0), mesh)
    shardings = state_shardings(init, axes, optimizer, mesh)
    step = make_train_step(loss_fn, optimizer, shardings, mesh, microbatches)
    losses = []
    for tokens_BT in token_steps:
        state, metrics = step(state, tokens_BT, {})
        losses.append(float(metrics["loss"]))
    return losses, state


@pytest.fixture(scope="module")
def one_device(tiny, token_steps):
    return train(tiny, token_steps, MeshShape(1, 1, 1), 1)


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2), (1, 2, 4)], ids=str)
def test_eight_devices_agree_with_one_over_twenty_steps(tiny, token_steps, one_device, shape):
    losses, state = train(tiny, token_steps, MeshShape(*shape), 8)
    used = {d for leaf in jax.tree.leaves(state.params) for d in leaf.sharding.device_set}
    assert len(used) == 8
    np.testing.assert_allclose(losses, one_device[0], atol=1e-4)


def test_training_lowers_the_loss_of_a_repeated_batch(tiny, token_steps):
    losses, _ = train(tiny, [token_steps[0]] * 20, MeshShape(1, 1, 1), 1)
    assert losses[-1] < losses[0] - 0.3


def test_microbatches_give_the_whole_batchs_loss_and_update(tiny, token_steps, one_device):
    losses, state = train(tiny, token_steps, MeshShape(1, 1, 1), 1, microbatches=4)
    np.testing.assert_allclose(losses, one_device[0], atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), state.params, one_device[1].params
    )


@pytest.mark.parametrize(("shape", "microbatches"), [((8, 1, 1), 1), ((1, 2, 4), 4)], ids=str)
def test_a_batch_that_the_devices_do_not_divide_gives_the_same_update(tiny, shape, microbatches):
    init, axes, _ = tiny
    rng = np.random.default_rng(0)
    batch = {"x_BD": rng.normal(size=(3, 16)).astype(np.float32), "mask_B": np.ones(3, bool)}

    def loss_fn(params, batch):
        scores_B = jax.numpy.tanh(batch["x_BD"] @ params["embedding"][0])
        losses_B = jax.numpy.where(batch["mask_B"], (scores_B - 1) ** 2, 0)
        return losses_B.sum(), batch["mask_B"].sum(), {}

    def updated(shape, devices, microbatches):
        mesh = make_mesh(MeshShape(*shape), jax.devices()[:devices])
        optimizer = make_optimizer(OptimizerConfig(1e-2), 10)
        state = init_state(init, axes, optimizer, jax.random.key(0), mesh)
        shardings = state_shardings(init, axes, optimizer, mesh)
        step = make_train_step(loss_fn, optimizer, shardings, mesh, microbatches)
        state, metrics = step(state, batch, {})
        return float(metrics["loss"]), np.asarray(state.params["embedding"])

    alone, split = updated((1, 1, 1), 1, 1), updated(shape, 8, microbatches)
    np.testing.assert_allclose(split[0], alone[0], rtol=1e-6)
    np.testing.assert_allclose(split[1], alone[1], atol=1e-6)


def test_parameters_and_moments_are_split_over_fsdp_and_tensor(tiny):
    init, axes, _ = tiny
    optimizer = make_optimizer(OptimizerConfig(1e-2), 10)
    mesh = make_mesh(MeshShape(1, 4, 2))
    state = init_state(init, axes, optimizer, jax.random.key(0), mesh)
    moments = state.opt_state[1][0].mu
    for tree in (state.params, moments):
        gate = tree["layers"]["gate"]
        assert gate.addressable_shards[0].data.size == gate.size // 8


def test_the_initial_state_does_not_depend_on_the_mesh(tiny):
    init, axes, _ = tiny
    optimizer = make_optimizer(OptimizerConfig(1e-2), 10)
    states = [
        init_state(init, axes, optimizer, jax.random.key(0), make_mesh(shape))
        for shape in (MeshShape(8, 1, 1), MeshShape(1, 4, 2))
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-6), *states
    )


def test_the_state_is_donated(tiny, token_steps):
    init, axes, loss_fn = tiny
    mesh = make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])
    optimizer = make_optimizer(OptimizerConfig(1e-2), 10)
    state = init_state(init, axes, optimizer, jax.random.key(0), mesh)
    shardings = state_shardings(init, axes, optimizer, mesh)
    make_train_step(loss_fn, optimizer, shardings, mesh)(state, token_steps[0], {})
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_the_platforms_options_reach_the_compiler(tiny, token_steps, monkeypatch):
    monkeypatch.setattr(step, "xla_options", lambda mesh: {"xla_no_such_option": "1"})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        train(tiny, token_steps[:1], MeshShape(1, 1, 1), 1)
