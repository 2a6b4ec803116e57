"""A train step as a short Flax script writes it, of nanodo's shape.

The shape is that of github.com/google-deepmind/nanodo: layer norms before attention and MLP,
learned positions, an MLP of four times the width with GELU, the embedding as the output's matrix.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from autollm_jax.models.transformer import TransformerConfig


class Block(nn.Module):
    """A layer: x [B, T, D] -> [B, T, D]."""

    heads: int
    dtype: str

    @nn.compact
    def __call__(self, x_BTD):
        width = x_BTD.shape[-1]
        mask = nn.make_causal_mask(jnp.ones(x_BTD.shape[:2]))
        h_BTD = nn.LayerNorm(use_bias=False, dtype=self.dtype)(x_BTD)
        attend = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype, use_bias=False)
        x_BTD = x_BTD + attend(h_BTD, mask=mask)
        h_BTD = nn.LayerNorm(use_bias=False, dtype=self.dtype)(x_BTD)
        h_BTF = nn.gelu(nn.Dense(4 * width, use_bias=False, dtype=self.dtype)(h_BTD))
        return x_BTD + nn.Dense(width, use_bias=False, dtype=self.dtype)(h_BTF)


class LanguageModel(nn.Module):
    """Tokens [B, T] -> logits [B, T, V], f32."""

    shape: TransformerConfig
    dtype: str

    @nn.compact
    def __call__(self, tokens_BT):
        c, length = self.shape, tokens_BT.shape[1]
        embed = nn.Embed(c.vocab_size, c.width, dtype=self.dtype)
        positions = nn.Embed(length, c.width, dtype=self.dtype)
        x_BTD = embed(tokens_BT) + positions(jnp.arange(length))
        for _ in range(c.layers):
            x_BTD = Block(c.heads, self.dtype)(x_BTD)
        x_BTD = nn.LayerNorm(use_bias=False, dtype=self.dtype)(x_BTD)
        return embed.attend(x_BTD).astype(jnp.float32)


class Step:
    """Steps on the same tokens; a call makes one and returns its loss."""

    def __init__(self, shape: TransformerConfig, dtype: str, tokens_BT, rate: float, clip: float):
        model, self._tokens_BT = LanguageModel(shape, dtype), tokens_BT
        params = jax.jit(model.init)(jax.random.key(0), tokens_BT[:, :-1])
        self.parameters = sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(params))
        self.parameters = int(self.parameters)
        optimizer = optax.chain(
            optax.clip_by_global_norm(clip), optax.adamw(rate, b2=0.95, weight_decay=0.1)
        )

        def loss_fn(params, tokens_BT):
            logits_BTV = model.apply(params, tokens_BT[:, :-1])
            return optax.losses.softmax_cross_entropy_with_integer_labels(
                logits_BTV, tokens_BT[:, 1:]
            ).mean()

        def update(params, opt_state, tokens_BT):
            loss, grads = jax.value_and_grad(loss_fn)(params, tokens_BT)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, loss

        self._update = jax.jit(update, donate_argnums=(0, 1))
        self._state = params, optimizer.init(params)

    def __call__(self):
        *self._state, loss = self._update(*self._state, self._tokens_BT)
        return loss
