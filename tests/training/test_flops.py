"""FLOPs of traced programs against closed formulas."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest

from autollm_jax.models import lora, transformer
from autollm_jax.models.transformer import MATRICES, TransformerConfig
from autollm_jax.rl.logprobs import token_logprobs
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.training import flops

B, T = 2, 128
MODEL = TransformerConfig(
    vocab_size=512, width=64, layers=3, heads=4, kv_heads=2, head_dim=16, mlp_width=128
)


def counted(f, *arguments):
    return flops.count(jax.make_jaxpr(f)(*arguments))


def forward_flops(model, seen):
    """2 a parameter and token, and attention's two products over the keys that are looked at."""
    norms = model.width * (2 * model.layers + 1) + 2 * model.head_dim * model.layers
    dense = 2 * (transformer.parameter_count(model) - norms) * B * T
    # The values have a column of ones beside them, which sums the weights.
    attention = 2 * (2 * model.head_dim + 1) * model.layers * model.heads * B * T * seen
    return dense + attention


def shapes(model):
    rows = jax.ShapeDtypeStruct((B, T + 1), jnp.int32)
    return transformer.parameter_shapes(model), rows, rows, rows


@pytest.mark.parametrize("block", [T, T // 4], ids=["square", "causal blocks"])
def test_a_forward_pass_is_two_a_parameter_and_token(block):
    model = dataclasses.replace(MODEL, attention_block=block)
    seen = sum(range(block, T + 1, block)) / (T // block)  # keys a query row is multiplied with
    found = counted(functools.partial(token_logprobs, model), *shapes(model))
    assert found == forward_flops(model, seen)


@pytest.mark.parametrize(
    ("changes", "passes"), [({}, 3), ({"remat": "layer"}, 4)], ids=["kept", "recomputed"]
)
def test_a_gradient_is_six_a_parameter_and_token(changes, passes):
    model = dataclasses.replace(MODEL, attention_block=T, **changes)

    def loss(params, *batch):
        return token_logprobs(model, params, *batch)[0].sum()

    # Recomputing leaves out the output embedding, and a layer's last product, which nobody reads.
    kept = 2 * model.vocab_size * model.width * B * T
    last = 2 * model.mlp_width * model.width * B * T * model.layers
    expected = passes * forward_flops(model, T) - (passes - 3) * (kept + last)
    assert counted(jax.grad(loss), *shapes(model)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("remat", ["none", "layer"])
def test_gradients_of_frozen_matrices_are_not_counted(remat):
    model = dataclasses.replace(MODEL, attention_block=T, remat=remat)
    adapted = dataclasses.replace(model, lora_rank=1, lora_targets=tuple(MATRICES))

    def loss_of(model):
        def loss(trained, frozen, *batch):
            params = lora.join(frozen, trained)
            return token_logprobs(model, params, *batch)[0].sum()

        return loss

    full, *batch = shapes(model)
    whole = counted(jax.grad(loss_of(model)), full, {}, *batch)
    frozen, trained = lora.split(adapted, shapes(adapted)[0])
    factors = counted(jax.grad(loss_of(adapted)), trained, frozen, *batch)
    # One of the three passes, over the matrices, is that of their gradients.
    matrices = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(frozen) if leaf.ndim > 2)
    saved = 2 * (matrices + model.vocab_size * model.width) * B * T
    added = 2 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained)) * B * T
    assert 0 <= factors - (whole - saved) <= (4 + (remat == "layer")) * added


def test_loops_count_as_often_as_they_run_and_branches_once():
    a = jnp.ones((4, 8)), jnp.ones((8, 8))

    def scanned(x, w):
        return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=5)[0]

    def once(x, w):
        return jax.lax.while_loop(lambda c: c.sum() < 0, lambda c: c @ w, x)

    def either(x, w):
        return jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)

    one = 2 * 4 * 8 * 8
    assert [counted(f, *a) for f in (scanned, once, either)] == [5 * one, one, 2 * one]


def test_a_program_split_by_hand_counts_for_all_devices():
    mesh = make_mesh(MeshShape(8, 1, 1))
    rows, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    split = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
    assert counted(split, jnp.ones((16, 4)), jnp.ones((4, 4))) == 2 * 16 * 4 * 4
