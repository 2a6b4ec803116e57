"""A train step against the machine's matrix product, and against other libraries' steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from autollm_jax.benchmarks import plain_flax, plain_torch
from autollm_jax.benchmarks.timing import Options, in_turn, measured
from autollm_jax.models import transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.training.optimizer import OptimizerConfig, make_optimizer
from autollm_jax.training.state import init_state, state_shardings
from autollm_jax.training.step import make_train_step, next_token_loss

LEARNING_RATE, CLIP_NORM = 1e-3, 1.0


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model and its batch; the product that it is measured against has `product` rows."""

    model: TransformerConfig
    batch: int
    length: int
    product: int


def _shape(vocab_size, width, layers, heads, kv_heads, head_dim, mlp_width, **numerics):
    return TransformerConfig(
        vocab_size, width, layers, heads, kv_heads, head_dim, mlp_width, **numerics
    )


# By about how many parameters they have: 3.4M for a CPU; 42M, 342M and 1.01B for an accelerator.
SHAPES = {
    "3m": Shape(_shape(1024, 256, 4, 4, 4, 64, 688, scan_unroll=4), 16, 512, 4096),
    "50m": Shape(_shape(32_768, 512, 8, 8, 8, 64, 1408, scan_unroll=8), 16, 2048, 8192),
    "350m": Shape(_shape(32_768, 1024, 24, 16, 16, 64, 2816, remat="layer"), 16, 2048, 8192),
    "1b": Shape(_shape(32_768, 2048, 20, 16, 8, 128, 5632, remat="layer"), 8, 2048, 8192),
}


def flops_of(shape: Shape, parameters: int) -> int:
    """FLOPs of a step: 6 x parameters x tokens + 12 x layers x batch x T^2 x heads x head width."""
    model, tokens = shape.model, shape.batch * shape.length
    attention = 12 * model.layers * model.heads * model.head_dim * shape.length
    return tokens * (6 * parameters + attention)


def train_step(options: Options) -> dict:
    """Time a whole train step: forward, backward, clipping, AdamW; recomputation counts nothing.

    Reference: the product of two square matrices, the highest FLOP rate of this machine in practice
    and so the ratio the step's MFU: f32 on a CPU, --dtype on an accelerator.
    """
    shape, dtype = SHAPES[options.size], options.dtype or "bfloat16"
    kind = "float32" if jax.default_backend() == "cpu" else dtype
    matrix = jax.random.normal(jax.random.key(2), (shape.product, shape.product), kind)
    multiply = jax.jit(lambda a: a @ a)
    calls = {"product": lambda: multiply(matrix), "step": own_step(shape, dtype, _tokens(shape))}
    seconds = in_turn("train_step", calls, options.repeats)
    parameters = transformer.parameter_count(shape.model)
    rates = {
        "step": [flops_of(shape, parameters) / spent.wall / 1e9 for spent in seconds["step"]],
        "product": [2 * shape.product**3 / spent.wall / 1e9 for spent in seconds["product"]],
    }
    print(f"{parameters:,} parameters, {_described(shape, dtype)}")
    _print_rates(rates)
    return measured(rates["step"], "GFLOP/s", rates["product"])


def train_peers(options: Options) -> dict:
    """Time our train step against PyTorch's and plain Flax's, all with clipping and AdamW.

    PyTorch: the same architecture in `transformers` (Llama, eager, fused attention and optimizer),
    as many parameters. Flax: a model of nanodo's shape (`plain_flax`), about as many. Compared are
    FLOP rates, by one formula.
    """
    shape, dtype = SHAPES[options.size], options.dtype or "float32"
    tokens_BT = _tokens(shape)
    peers = {
        "torch": plain_torch.Step(shape.model, dtype, tokens_BT, LEARNING_RATE, CLIP_NORM),
        "flax": plain_flax.Step(shape.model, dtype, tokens_BT, LEARNING_RATE, CLIP_NORM),
    }
    ours = own_step(dataclasses.replace(shape, model=_llama(shape.model)), dtype, tokens_BT)
    counts = {"ours": transformer.parameter_count(_llama(shape.model))}
    counts |= {name: peer.parameters for name, peer in peers.items()}
    seconds = in_turn("train_peers", {"ours": ours, **peers}, options.repeats)
    rates = {
        name: [flops_of(shape, counts[name]) / each.wall / 1e9 for each in spent]
        for name, spent in seconds.items()
    }
    print(f"{_described(shape, dtype)}; parameters: {counts}")
    _print_rates(rates)
    return measured(rates["ours"], "GFLOP/s", rates["torch"], flax=rates["flax"])


def own_step(shape: Shape, dtype: str, tokens_BT: np.ndarray):
    """Return a function that makes our step on the same tokens each time, and returns its loss."""
    model, mesh = dataclasses.replace(shape.model, dtype=dtype), make_mesh(MeshShape())
    optimizer = make_optimizer(
        OptimizerConfig(LEARNING_RATE, decay="constant", clip_norm=CLIP_NORM), 100
    )
    init, axes = functools.partial(transformer.init, model), transformer.logical_axes(model)
    state = init_state(init, axes, optimizer, jax.random.key(0), mesh)

    def loss_fn(params, tokens_BT):
        logits_BTV = transformer.apply(model, params, tokens_BT[:, :-1])
        mask_BT = jnp.ones(logits_BTV.shape[:2])
        return *next_token_loss(logits_BTV, tokens_BT[:, 1:], mask_BT), {}

    step = make_train_step(loss_fn, optimizer, state_shardings(init, axes, optimizer, mesh), mesh)

    def call():
        nonlocal state
        state, metrics = step(state, tokens_BT, {})
        return metrics["loss"]

    return call


def _llama(model: TransformerConfig) -> TransformerConfig:
    """Return the shape that Llama's architecture has: no norms of queries and keys."""
    return dataclasses.replace(model, qk_norm=False, scaled_embedding=False)


def _tokens(shape: Shape) -> np.ndarray:
    sizes = shape.batch, shape.length + 1
    return np.random.default_rng(1).integers(0, shape.model.vocab_size, sizes, np.int32)


def _described(shape: Shape, dtype: str) -> str:
    return f"{shape.batch} x {shape.length} tokens, {dtype} operands"


def _print_rates(rates) -> None:
    for name, found in rates.items():
        print(f"{name:8}", ", ".join(f"{rate:.0f}" for rate in found), "GFLOP/s")
