"""Causal attention by the implementation that suits the platform.

`causal_attention` is the one entry. Its implementations are

    blocks  plain products over blocks of queries (`attention.attend_in_blocks`); runs anywhere
    splash  TPU: JAX's Pallas kernel, which skips blocks of the score matrix that are masked whole
    triton  CUDA: JAX's Pallas kernel
    cudnn   CUDA: cuDNN's kernel, through `jax.nn.dot_product_attention`; one segment per row, so
            that "auto" alone chooses it

All three kernels follow FlashAttention-2 (arXiv 2307.08691): no score matrix is kept in memory. The
Pallas kernels run interpreted where their platform is absent, which is slow and meant for tests.

Letters: B batch, T tokens, H query heads, K key-value heads, A head width.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, PartitionSpec

from autollm_jax.models.attention import attend_in_blocks
from autollm_jax.sharding.rules import partition_spec

ATTENTIONS = ("auto", "blocks", "splash", "triton")
SAVED = "attention"  # the name by which rematerialisation policies find attention's outputs
SPLASH_BLOCKS = (512, 256, 128)  # queries, and keys, of a block
TRITON_BLOCK = 128


def causal_attention(
    q_BTHA, k_BTKA, v_BTKA, segments_BT=None, *, block: int, dtype: str, kind: str = "auto"
):
    """Attend causally within each row.

    Args:
      q_BTHA: queries, rotated.
      k_BTKA: keys, rotated.
      v_BTKA: values.
      segments_BT: a token attends only within its segment; None for one segment per row.
      block: queries per block of "blocks".
      dtype: type of the matrix products' operands.
      kind: one of `ATTENTIONS`. "auto" is chosen when the program is lowered, by `_kernels`.

    Returns:
      mixed_BTHA, of the type of q_BTHA.
    """
    arrays = (q_BTHA, k_BTKA, v_BTKA, segments_BT)
    on_mesh = functools.partial(functools.partial, _on_mesh, dtype)
    default, kernels = functools.partial(_blocks, block=block, dtype=dtype), {}
    if kind == "auto":
        kernels = _kernels(q_BTHA, segments_BT, dtype)
    elif kind != "blocks":
        platform, kernel = {"splash": ("tpu", _splash), "triton": ("cuda", _triton)}[kind]
        kernels = {platform: kernel}
        default = on_mesh(functools.partial(kernel, interpret=True))
    if not kernels:
        return default(*arrays)
    compiled = {platform: on_mesh(kernel) for platform, kernel in kernels.items()}
    return jax.lax.platform_dependent(*arrays, default=default, **compiled)


def _kernels(q_BTHA, segments_BT, dtype: str) -> dict:
    """Choose each platform's kernel; a platform without one computes blocks.

    Kernels read bfloat16, since their f32 products are not exact, and heads of whole tiles of 64.
    In a row shorter than 128 tokens no block of theirs is full, and scores take little memory.
    """
    _, T, _, A = q_BTHA.shape
    if dtype != "bfloat16" or A % 64 or T < 128:
        return {}
    kernels = {"tpu": _splash}
    if A <= 128:  # blocks of wider heads do not fit a GPU core's shared memory
        kernels["cuda"] = _cudnn if segments_BT is None and _has_cudnn() else _triton
    return kernels


@functools.cache
def _has_cudnn() -> bool:
    """Whether this process can trace cuDNN's kernel, even if only to lower it for elsewhere."""
    x_BTHA = jax.ShapeDtypeStruct((1, 128, 1, 64), jnp.bfloat16)
    try:
        jax.eval_shape(_cudnn, x_BTHA, x_BTHA, x_BTHA, None)
    except RuntimeError:
        return False
    return True


def is_cuda_forward(primitive, *_, **params) -> bool:
    """A rematerialisation policy: keep all that the forward pass of CUDA's kernels returns.

    Their backward pass reads sums of the softmax as well, which no name can be given to.
    """
    if primitive.name == "custom_vjp_call":  # the Triton kernel's forward pass calls itself
        return any(each.params.get("name") == "mha" for each in params["call_jaxpr"].eqns)
    return primitive.name == "dot_product_attention_fwd_wrapper"


def _blocks(q_BTHA, k_BTKA, v_BTKA, segments_BT, block: int, dtype: str):
    mixed_BTHA = attend_in_blocks(q_BTHA, k_BTKA, v_BTKA, segments_BT, block=block, dtype=dtype)
    return checkpoint_name(mixed_BTHA.astype(q_BTHA.dtype), SAVED)


def _on_mesh(dtype: str, kernel, q_BTHA, k_BTKA, v_BTKA, segments_BT):
    """Run a kernel on each device's rows and heads; the compiler cannot split one by itself."""
    q, k, v = (x.astype(dtype) for x in (q_BTHA, k_BTKA, v_BTKA))
    mesh = jax.sharding.get_abstract_mesh()
    free = {
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto
    }
    if free:
        rows, _, heads, _ = partition_spec(("batch", None, "heads", None), q.shape, mesh)
        _, _, kv_heads, _ = partition_spec(("batch", None, "kv_heads", None), k.shape, mesh)
        if heads != kv_heads:  # a device's query heads need their own key-value heads beside them
            k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
        by_head = PartitionSpec(rows, None, heads, None)
        kernel = jax.shard_map(
            kernel,
            in_specs=(by_head, by_head, by_head, PartitionSpec(rows, None)),
            out_specs=by_head,
            axis_names=free,
            check_vma=False,
        )
    return kernel(q, k, v, segments_BT).astype(q_BTHA.dtype)


def _padded(x, T: int):
    """Lengthen rows to T tokens. No real token attends to these, which come last."""
    return jnp.pad(x, ((0, 0), (0, T - x.shape[1]), *((0, 0),) * (x.ndim - 2)))


def _splash(q_BTHA, k_BTKA, v_BTKA, segments_BT, interpret: bool = False):
    # Imported here, since it takes as long as the rest of the package.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    T, H, A = q_BTHA.shape[1:]
    # The kernel does not scale scores.
    q_BTHA = (q_BTHA.astype(jnp.float32) * A**-0.5).astype(q_BTHA.dtype)
    # The largest block that lengthens the row by an eighth at most.
    block = next(b for b in SPLASH_BLOCKS if b == SPLASH_BLOCKS[-1] or 8 * (-T % b) <= T)
    S = T + -T % block
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
        block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.CausalMask((S, S))] * H),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=SAVED,
        interpret=interpret,
    )

    def one_row(q_SHA, k_SKA, v_SKA, segments_S):
        segments = None if segments_S is None else splash.SegmentIds(segments_S, segments_S)
        heads_first = (x.swapaxes(0, 1) for x in (q_SHA, k_SKA, v_SKA))
        return kernel(*heads_first, segments).swapaxes(0, 1)

    arrays = (q_BTHA, k_BTKA, v_BTKA, segments_BT)
    return jax.vmap(one_row)(*jax.tree.map(lambda x: _padded(x, S), arrays))[:, :T]


def _triton(q_BTHA, k_BTKA, v_BTKA, segments_BT, interpret: bool = False):
    from jax.experimental.pallas.ops.gpu import attention as triton

    T, H, A = q_BTHA.shape[1:]
    # The kernel has as many key-value heads as query heads.
    k_BTHA, v_BTHA = (jnp.repeat(x, H // x.shape[2], axis=2) for x in (k_BTKA, v_BTKA))
    arrays = (q_BTHA, k_BTHA, v_BTHA, segments_BT)
    q, k, v, segments = jax.tree.map(lambda x: _padded(x, T + -T % TRITON_BLOCK), arrays)
    return triton.mha(q, k, v, segments, A**-0.5, True, interpret=interpret)[:, :T]


def _cudnn(q_BTHA, k_BTKA, v_BTKA, segments_BT):
    del segments_BT  # None
    return jax.nn.dot_product_attention(
        q_BTHA, k_BTKA, v_BTKA, is_causal=True, implementation="cudnn"
    )
