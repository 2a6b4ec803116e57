"""A decoder-only transformer, used for the ground-truth runs and for the agent's policy.

RMSNorm (arXiv 1910.07467), rotary positions (2104.09864), grouped-query attention (2305.13245) with
optional QK norm (2302.05442) and short convolutions over queries and keys (2412.06464), SwiGLU
(2002.05202), tied or untied embeddings. Parameters are f32; the operands of matrix products have
type `dtype`, and the products accumulate in f32. Layers pass on and keep arrays of type `stream`;
norms, rotations, softmax and logits are computed in f32.

Other packages call the functions at the end of this file, over a plain tree of parameters: `init`,
`apply` (`hidden`, then `unembed`); `decoding.py` has those that go on from a cache.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from autollm_jax.models.attention import cached_attention, rotate, shift_past, short_convolution
from autollm_jax.models.config import LORA_IN, LORA_OUT, MATRICES, TransformerConfig, axes_of
from autollm_jax.models.embedding import look_up
from autollm_jax.models.kernels import SAVED, causal_attention, is_cuda_forward
from autollm_jax.models.mimetic import mimic
from autollm_jax.models.product import product
from autollm_jax.models.shared_prefix import NOTHING_SHARED, SharedPrefix
from autollm_jax.sharding.rules import constrain, reshard, whole_over_fsdp

# Names by which rematerialisation policies find a layer's input and the matrices that it gathered.
LAYER_INPUT, GATHERED = "layer_input", "gathered"


def _in_float32(f, x, *others):
    """Return f(x, ...), computed in f32 and rounded to the type of x.

    The backward pass of a bfloat16 stream computes f again from its inputs. What f makes on the way
    is f32, cheap, and would take most of the memory that a layer keeps.
    """

    def rounded(x, *others):
        return f(x.astype(jnp.float32), *others).astype(x.dtype)

    keeps_all = x.dtype == jnp.float32
    return (rounded if keeps_all else jax.checkpoint(rounded, prevent_cse=False))(x, *others)


class RMSNorm(nn.Module):
    """Scale by the root mean square over the last axis, in f32; the result has the input's type."""

    epsilon: float

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)

        def normed(x, scale):
            mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
            normed = x * jax.lax.rsqrt(mean_square + self.epsilon)
            return normed * jnp.broadcast_to(scale, x.shape)

        return _in_float32(normed, x, scale)


def _fan_in(in_axis, out_axis):
    return nn.initializers.variance_scaling(
        1.0, "fan_in", "truncated_normal", in_axis=in_axis, out_axis=out_axis
    )


def _identity_taps(_, shape):
    """Return the taps of an identity convolution: weight 1 on the token itself, 0 elsewhere."""
    return jnp.zeros(shape, jnp.float32).at[0].set(1.0)


class Block(nn.Module):
    """One layer: attention and SwiGLU, each behind a norm and a residual.

    With a shared prefix the residual stream, and `turns`, hold each group's tokens once, as
    `SharedPrefix.together` returns them; positions and segments are of whole rows. With
    `outputs_first` the layer's matrices have their contracted axes last (`decoding.for_decoding`).
    """

    config: TransformerConfig
    shared: SharedPrefix = NOTHING_SHARED
    outputs_first: bool = False

    def _project(self, name, x_BTX, shape):
        """Multiply x_BTX with the parameter `name` of `shape` over its first axes (`MATRICES`).

        The contracted axes are joined into X and the others into Y, because an einsum over two axes
        may copy the matrix into another layout before every product.
        """
        c, contract = self.config, MATRICES[name]
        first, rest = shape[:contract], shape[contract:]
        X, Y = math.prod(first), math.prod(rest)

        def parameter(name, shape, initial):
            return self.param(name, initial(range(contract), range(contract, len(shape))), shape)

        if self.outputs_first:
            weight_YX = self.param(name, nn.initializers.zeros, (*rest, *first)).reshape(Y, X)
            out_BTY = product("BTX,YX->BTY", x_BTX, weight_YX, c.dtype, c.stream)
        else:
            weight = parameter(name, shape, _fan_in)
            if c.gradients == "bfloat16" and c.remat == "weights":
                axes = axes_of(name)
                weight = reshard(weight.astype(c.dtype), axes, whole_over_fsdp(axes))
                weight = checkpoint_name(weight, GATHERED)
            weight_XY = weight.reshape(X, Y)
            if c.gradients == "bfloat16":  # a gradient has the type of what is multiplied
                weight_XY = weight_XY.astype(c.dtype)
            out_BTY = product("BTX,XY->BTY", x_BTX, weight_XY, c.dtype, c.stream)
        if name in c.lora_targets:
            # The second factor starts at zero, so that the model is unchanged before training.
            low = parameter(name + LORA_IN, (*first, c.lora_rank), _fan_in)
            high = self.param(name + LORA_OUT, nn.initializers.zeros, (c.lora_rank, *rest))
            x_BTr = product("BTX,Xr->BTr", x_BTX, low.reshape(X, -1), c.dtype, c.stream)
            added_BTY = product("BTr,rY->BTY", x_BTr, high.reshape(-1, Y), c.dtype, c.stream)
            out_BTY += c.lora_scale * added_BTY
        return out_BTY.reshape(*x_BTX.shape[:2], *rest)

    def _convolve(self, name, x_BTNA, positions_BT, cache, valid_BT):
        """Convolve queries or keys (`short_convolution`); return them and the updated cache."""
        B, _, *shape = x_BTNA.shape
        taps_WNA = self.param(f"{name}_taps", _identity_taps, (self.config.short_conv, *shape))
        if cache is None:
            past_BPNA = jnp.zeros((B, self.config.short_conv - 1, *shape), x_BTNA.dtype)
        else:
            past_BPNA = cache[f"past_{name}"]
            cache = {**cache, f"past_{name}": shift_past(past_BPNA, x_BTNA, valid_BT)}
        convolved = _in_float32(short_convolution, x_BTNA, past_BPNA, positions_BT, taps_WNA)
        return convolved, cache

    @nn.compact
    def __call__(self, x_BTD, positions_BT, turns, segments_BT=None, cache=None, valid_BT=None):
        """Run the layer.

        Args:
          x_BTD: residual stream, of type `stream`.
          positions_BT: position of each token in its own sequence, from 0.
          turns: cosine and sine of the rotations at these positions (`attention.rotations`).
          segments_BT: a token attends only within its segment; None for one segment per row.
          cache: None, or this layer's entry (see `decoding.init_cache`). A token is written at the
            slot of its position and attends to all slots up to its own. With a short convolution
            the entry also has "past_query" [B, W - 1, H, A] and "past_key" [B, W - 1, K, A]: the
            last queries and keys before the convolution.
          valid_BT: with a cache, whether each token is real; padding is not written.

        Returns:
          The residual stream, and the updated cache (None without one).
        """
        c = self.config
        D, H, K, A, F = c.width, c.heads, c.kv_heads, c.head_dim, c.mlp_width
        x_BTD = checkpoint_name(x_BTD, LAYER_INPUT)
        normed = RMSNorm(c.norm_epsilon, name="attention_norm")(x_BTD)
        q_BTHA = self._project("query", normed, (D, H, A))
        k_BTKA = self._project("key", normed, (D, K, A))
        v_BTKA = self._project("value", normed, (D, K, A))
        if c.qk_norm:
            q_BTHA = RMSNorm(c.norm_epsilon, name="query_norm")(q_BTHA)
            k_BTKA = RMSNorm(c.norm_epsilon, name="key_norm")(k_BTKA)
        turn = functools.partial(rotate, fraction=c.rope_fraction)
        q_BTHA = constrain(_in_float32(turn, q_BTHA, *turns), "batch", None, "heads", None)
        k_BTKA = constrain(_in_float32(turn, k_BTKA, *turns), "batch", None, "kv_heads", None)
        q_BTHA, k_BTKA, v_BTKA = map(self.shared.apart, (q_BTHA, k_BTKA, v_BTKA))
        if c.short_conv:
            q_BTHA, cache = self._convolve("query", q_BTHA, positions_BT, cache, valid_BT)
            k_BTKA, cache = self._convolve("key", k_BTKA, positions_BT, cache, valid_BT)
        if cache is None:
            attend = functools.partial(
                causal_attention, block=c.attention_block, dtype=c.dtype, kind=c.attention
            )
            if c.remat == "attention":
                attend = jax.checkpoint(attend, prevent_cse=False)
            mixed_BTHA = attend(q_BTHA, k_BTKA, v_BTKA, segments_BT)
        else:
            mixed_BTHA, cache = cached_attention(
                q_BTHA, k_BTKA, v_BTKA, positions_BT, valid_BT, cache
            )
        mixed_BTHA = self.shared.together(mixed_BTHA)
        mixed_BTX = mixed_BTHA.astype(c.stream).reshape(*mixed_BTHA.shape[:2], H * A)
        out = self._project("output", mixed_BTX, (H, A, D))
        x_BTD = constrain(x_BTD + out, "batch", "length", "activation")

        normed = RMSNorm(c.norm_epsilon, name="mlp_norm")(x_BTD)
        gate_BTF = self._project("gate", normed, (D, F))
        up_BTF = self._project("up", normed, (D, F))
        hidden_BTF = _in_float32(lambda gate, up: nn.silu(gate) * up, gate_BTF, up_BTF)
        hidden_BTF = constrain(hidden_BTF, "batch", "length", "mlp")
        out = self._project("down", hidden_BTF, (F, D))
        return constrain(x_BTD + out, "batch", "length", "activation"), cache


def _kept(*names: str) -> Callable:
    """Return a policy that keeps these names and what attention's backward pass needs."""
    named = jax.checkpoint_policies.save_only_these_names(*names)
    return jax.checkpoint_policies.save_from_both_policies(named, is_cuda_forward)


# What a rematerialised layer keeps, by `remat`; None keeps its input alone.
REMAT_POLICIES = {
    "layer": None,
    "outputs": _kept(SAVED),
    "weights": _kept(SAVED, GATHERED),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[LAYER_INPUT, SAVED],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


class Transformer(nn.Module):
    """Embedding, layers, final norm, logits."""

    config: TransformerConfig
    shared: SharedPrefix = NOTHING_SHARED

    def setup(self):
        c = self.config
        normal = nn.initializers.normal(1.0 / c.width**0.5)
        shape = (c.vocab_size, c.width)
        self.embedding = self.param("embedding", normal, shape, jnp.float32)
        if not c.tied_embeddings:
            self.unembedding = self.param("unembedding", normal, shape, jnp.float32)
        self.final_norm = RMSNorm(c.norm_epsilon)
        block = Block
        if c.remat in REMAT_POLICIES:
            block = nn.remat(Block, prevent_cse=False, policy=REMAT_POLICIES[c.remat])
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
            length=c.layers,
            unroll=c.scan_unroll,
        )(c, self.shared)

    def embed(self, tokens_BT):
        """Look up the tokens' embeddings; with `scaled_embedding` they have unit variance."""
        c = self.config
        x_BTD = look_up(self.embedding, tokens_BT, c.stream)
        if c.scaled_embedding:
            x_BTD = (x_BTD.astype(jnp.float32) * c.width**0.5).astype(c.stream)
        return constrain(x_BTD, "batch", "length", "activation")

    def hidden(self, tokens_BT, positions_BT, segments_BT=None):
        """Embed tokens and run the layers and the final norm."""
        turns = self.config.rotations(self.shared.together(positions_BT))
        x_NLD = self.embed(self.shared.together(tokens_BT))
        x_NLD, _ = self.layers(x_NLD, positions_BT, turns, segments_BT)
        return self.shared.apart(self.final_norm(x_NLD))

    def unembed(self, x_BTD):
        """Multiply the final norm's output with the tied or untied output embedding; return f32."""
        table = self.embedding if self.config.tied_embeddings else self.unembedding
        logits_BTV = product("BTD,VD->BTV", x_BTD, table, self.config.dtype)
        return constrain(logits_BTV, "batch", "length", "vocab")

    def logits(self, x_BTD):
        """Return the logits of the residual stream after the last layer."""
        return self.unembed(self.final_norm(x_BTD))

    def __call__(self, tokens_BT, positions_BT, segments_BT=None):
        return self.unembed(self.hidden(tokens_BT, positions_BT, segments_BT))


@functools.partial(jax.jit, static_argnames="config")  # op by op it would compile 90 programs
def init(config: TransformerConfig, key: jax.Array):
    """Draw the f32 parameters; `logical_axes(config)` names the axes of the tree."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = Transformer(config).init(key, tokens, tokens)["params"]
    return mimic(config, params) if config.mimetic else params


def logical_axes(config: TransformerConfig):
    """Return the parameter tree with a tuple of logical axis names in place of each array."""

    def axes(path, leaf):
        names = axes_of(path[-1].key)
        return ("layers", *names) if path[0].key == "layers" else names

    return jax.tree_util.tree_map_with_path(axes, parameter_shapes(config))


def parameter_shapes(config: TransformerConfig):
    """Return the parameter tree as `ShapeDtypeStruct`s; nothing is computed."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def parameter_count(config: TransformerConfig) -> int:
    """Count the parameters by a formula, embeddings included (memory plans count thousands)."""
    c = config
    attention = 2 * c.width * c.head_dim * (c.heads + c.kv_heads)
    attention += c.short_conv * c.head_dim * (c.heads + c.kv_heads)
    norms = 2 * c.width + (2 * c.head_dim if c.qk_norm else 0)
    wide, narrow = c.heads * c.head_dim, c.kv_heads * c.head_dim
    outputs = dict(query=wide, key=narrow, value=narrow, output=wide)
    factors = sum(c.width + outputs.get(name, c.mlp_width) for name in c.lora_targets)
    layer = attention + 3 * c.width * c.mlp_width + norms + c.lora_rank * factors
    tables = 1 if c.tied_embeddings else 2
    return tables * c.vocab_size * c.width + c.layers * layer + c.width


def apply(config: TransformerConfig, params, tokens_BT, positions_BT=None, segments_BT=None):
    """Compute next-token logits of whole sequences.

    Args:
      config: the model.
      params: from `init`.
      tokens_BT: token ids.
      positions_BT: None for 0..T-1 in each row.
      segments_BT: None for one segment per row.

    Returns:
      logits_BTV, f32.
    """
    return unembed(config, params, hidden(config, params, tokens_BT, positions_BT, segments_BT))


def hidden(
    config: TransformerConfig,
    params,
    tokens_BT,
    positions_BT=None,
    segments_BT=None,
    shared: SharedPrefix = NOTHING_SHARED,
):
    """Compute x_BTD, the input of `unembed`, of type `stream`.

    Arguments are those of `apply`, and what the rows share, which makes it cheaper and changes
    nothing else; positions are given then.
    """
    if positions_BT is None:
        positions_BT = jnp.arange(tokens_BT.shape[1])[None]
    model, variables = Transformer(config, shared), {"params": params}
    return model.apply(variables, tokens_BT, positions_BT, segments_BT, method=Transformer.hidden)


def unembed(config: TransformerConfig, params, x_BTD):
    """Compute logits_BTV, f32, from the result of `hidden`."""
    return Transformer(config).apply({"params": params}, x_BTD, method=Transformer.unembed)


def output_embedding(config: TransformerConfig, params) -> jax.Array:
    """Return the output embedding table_VD of `unembed`."""
    return params["embedding" if config.tied_embeddings else "unembedding"]
