"""A small policy for the agent's tests."""

import functools

import jax
import pytest

from autollm_jax.models import transformer


@pytest.fixture(scope="module")
def model(tokenizer):
    """A small policy over the module's own vocabulary."""
    return transformer.TransformerConfig(
        vocab_size=tokenizer.vocab_size, width=16, layers=2, heads=2, kv_heads=1, head_dim=8,
        mlp_width=32,
    )  # fmt: skip


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(functools.partial(transformer.init, model))(jax.random.key(0))
