import functools

import jax
import jax.numpy as jnp
import pytest

from autollm_jax.models import transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.training.step import next_token_loss

TINY = TransformerConfig(
    vocab_size=64, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=32
)


def loss_fn(params, tokens_BT):
    logits_BTV = transformer.apply(TINY, params, tokens_BT[:, :-1])
    targets_BT = tokens_BT[:, 1:]
    # A mask that differs between rows: means of means would be wrong.
    mask_BT = (jnp.arange(targets_BT.shape[1])[None] <= targets_BT[:, :1] % 8).astype(jnp.float32)
    loss, count = next_token_loss(logits_BTV, targets_BT, mask_BT)
    return loss, count, {"seen": (count, jnp.ones(()))}


@pytest.fixture(scope="session")
def tiny():
    """(init, logical axes, loss) of a model of width 16."""
    init = functools.partial(transformer.init, TINY)
    return init, transformer.logical_axes(TINY), loss_fn


@pytest.fixture(scope="session")
def token_steps():
    """[20, 16, 17] random tokens."""
    return jax.random.randint(jax.random.key(1), (20, 16, 17), 0, TINY.vocab_size)
