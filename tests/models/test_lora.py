"""Low-rank adaptation: what is trained, what stays, and what a merged model computes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from autollm_jax.models import lora, transformer
from autollm_jax.models.transformer import MATRICES, TransformerConfig
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.training.state import init_state, state_shardings
from autollm_jax.training.step import make_train_step

PLAIN = TransformerConfig(
    vocab_size=32, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=24
)
MODEL = dataclasses.replace(PLAIN, lora_rank=3, lora_targets=tuple(MATRICES), lora_scale=0.5)
TOKENS_BT = jax.random.randint(jax.random.key(1), (2, 9), 0, 32)
init = jax.jit(transformer.init, static_argnums=0)
apply = jax.jit(transformer.apply, static_argnums=0)


@pytest.fixture(scope="module")
def params():
    return init(MODEL, jax.random.key(0))


def moved(model, params):
    """Give the factors values, as training would."""
    frozen, trained = lora.split(model, params)
    return lora.join(
        frozen,
        jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), trained),
    )


def test_nothing_changes_before_training(params):
    frozen, _ = lora.split(MODEL, params)
    np.testing.assert_allclose(
        apply(MODEL, params, TOKENS_BT), apply(PLAIN, frozen, TOKENS_BT), atol=1e-6
    )


def test_a_merged_model_computes_what_its_factors_did(params):
    changed = moved(MODEL, params)
    plain, merged = lora.merge(MODEL, changed)
    assert plain == dataclasses.replace(PLAIN, lora_scale=0.5)
    logits = apply(MODEL, changed, TOKENS_BT)
    assert np.abs(logits - apply(MODEL, params, TOKENS_BT)).max() > 0.1
    np.testing.assert_allclose(apply(plain, merged, TOKENS_BT), logits, atol=1e-4)


@pytest.mark.parametrize("targets", [("query",), ("output", "down"), tuple(MATRICES)])
def test_the_formula_counts_the_factors(targets):
    model = dataclasses.replace(MODEL, lora_targets=targets)
    shapes = jax.tree.leaves(transformer.parameter_shapes(model))
    assert transformer.parameter_count(model) == sum(leaf.size for leaf in shapes)


def test_only_the_factors_are_trained_and_only_they_are_in_the_state(params):
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    optimizer, axes = optax.adam(1e-2), lora.logical_axes(MODEL)

    def init_fn(key):
        return lora.init(MODEL, key)

    def loss_fn(params, batch):
        logits_BTV = transformer.apply(MODEL, params, batch)
        return logits_BTV.var(), jnp.float32(1), {}

    frozen, trained = lora.split(MODEL, params)
    state = init_state(init_fn, axes, optimizer, jax.random.key(0), mesh)
    assert set(state.params["layers"]) == {
        n + s for n in MATRICES for s in ("_lora_in", "_lora_out")
    }
    assert jax.tree.structure(state.params) == jax.tree.structure(trained)
    step = make_train_step(
        loss_fn, optimizer, state_shardings(init_fn, axes, optimizer, mesh), mesh
    )
    before = jax.tree.map(np.array, (frozen, state.params))
    rows = jnp.tile(TOKENS_BT, (2, 1))
    for _ in range(2):
        state, metrics = step(state, rows, frozen)
    assert metrics["gradient_norm"] > 0
    jax.tree.map(np.testing.assert_array_equal, before[0], frozen)
    for old, new in zip(jax.tree.leaves(before[1]), jax.tree.leaves(state.params), strict=True):
        assert np.abs(old - new).max() > 1e-4


@pytest.mark.parametrize(
    "changes", [{"lora_targets": ()}, {"lora_targets": ("embedding",)}, {"lora_rank": 0}]
)
def test_impossible_adaptations_are_refused(changes):
    with pytest.raises(ValueError, match="lora_targets"):
        dataclasses.replace(MODEL, **changes)
