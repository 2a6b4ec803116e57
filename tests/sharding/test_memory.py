"""What a compiled train step keeps on a device, from one shard to eight."""

import functools

import jax
import jax.numpy as jnp
import pytest

from autollm_jax.agent.distillation import PackedRows, imitation_loss
from autollm_jax.models import lora
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.training.optimizer import OptimizerConfig, make_optimizer
from autollm_jax.training.state import abstract_state, state_shardings
from autollm_jax.training.step import jit_train_step

MODEL = TransformerConfig(
    vocab_size=512, width=64, layers=2, heads=8, kv_heads=8, head_dim=8, mlp_width=128
)
ROWS, LENGTH = 8, 16


@functools.cache
def state_bytes(shape):
    """Bytes a device of parameters and optimizer state, by the compiled step's own account."""
    mesh = make_mesh(shape, jax.devices()[: shape.data * shape.fsdp * shape.tensor])
    optimizer = make_optimizer(OptimizerConfig(1e-3), 10)
    init, axes = functools.partial(lora.init, MODEL), lora.logical_axes(MODEL)
    shardings = state_shardings(init, axes, optimizer, mesh)
    step = jit_train_step(functools.partial(imitation_loss, MODEL), optimizer, shardings, mesh)
    numbers = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    mask = jax.ShapeDtypeStruct((ROWS, LENGTH), bool)
    batch = PackedRows(numbers, numbers, numbers, mask)
    with jax.set_mesh(mesh):
        state = abstract_state(init, axes, optimizer, mesh)
        memory = step.lower(state, batch, {}).compile().memory_analysis()
    rows = ROWS // (shape.data * shape.fsdp)
    batch_bytes = rows * LENGTH * (3 * 4 + 1)
    # The state goes in and comes out in the same buffers; else it would be there twice.
    assert memory.alias_size_in_bytes >= 0.99 * (memory.argument_size_in_bytes - batch_bytes)
    return memory.argument_size_in_bytes - batch_bytes


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_parameters_and_optimizer_fall_with_the_fsdp_shards(shards):
    whole = state_bytes(MeshShape(1, 1, 1))
    assert state_bytes(MeshShape(1, shards, 1)) == pytest.approx(whole / shards, rel=0.05)


def test_they_fall_with_the_tensor_shards_too():
    whole = state_bytes(MeshShape(1, 1, 1))
    assert state_bytes(MeshShape(1, 2, 4)) == pytest.approx(whole / 8, rel=0.05)


def test_replicas_hold_all_of_them():
    assert state_bytes(MeshShape(8, 1, 1)) == state_bytes(MeshShape(1, 1, 1))
