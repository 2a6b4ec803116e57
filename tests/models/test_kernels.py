"""Attention's kernels, interpreted, against plain attention; and which of them a platform gets."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autollm_jax.models import kernels, transformer
from autollm_jax.models.kernels import causal_attention
from autollm_jax.sharding.mesh import MeshShape, make_mesh

B, T, H, K, A = 2, 200, 4, 2, 64  # 200 tokens fill no block of any kernel
BOUNDS = {"float32": 2e-5, "bfloat16": 3e-2}


def arrays(dtype="float32", packed=False, kv_heads=K, length=T, width=A):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (B, length, heads, width), dtype)
        for key, heads in zip(keys, (H, kv_heads, kv_heads), strict=True)
    )
    ends_BT = jnp.arange(length)[None] >= jnp.array([[length // 3], [length // 2]])
    return q, k, v, ends_BT.astype(jnp.int32) if packed else None


def reference(q, k, v, segments):
    """Attend with the whole score matrix, in f32."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    k, v = (jnp.repeat(x, H // k.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / q.shape[3] ** 0.5
    visible = jnp.tril(jnp.ones((q.shape[1],) * 2, bool))[None, None]
    if segments is not None:
        visible = visible & (segments[:, :, None] == segments[:, None, :])[:, None]
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def value_and_gradients(attend, q, k, v, segments):
    def loss(q, k, v):
        mixed = attend(q, k, v, segments)
        return (jnp.sin(jnp.arange(mixed.size)).reshape(mixed.shape) * mixed).sum(), mixed

    (_, mixed), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return mixed, *gradients


def assert_near(ours, exact, bound):
    """The largest difference is a share of the largest number."""
    for mine, theirs in zip(ours, exact, strict=True):
        mine, theirs = (np.asarray(x, np.float32) for x in (mine, theirs))
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=bound * np.abs(theirs).max())


@functools.cache
def exact(dtype, packed):
    return value_and_gradients(reference, *arrays(dtype, packed))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["splash", "triton"])
def test_a_kernel_equals_the_reference_and_its_gradients(kind, dtype):
    *given, segments = arrays(dtype, packed=True)
    attend = functools.partial(causal_attention, block=128, dtype=dtype, kind=kind)
    packed, whole = (value_and_gradients(attend, *given, kept) for kept in (segments, None))
    assert packed[0].dtype == whole[0].dtype == dtype
    assert_near(packed, exact(dtype, True), BOUNDS[dtype])
    assert_near(whole, exact(dtype, False), BOUNDS[dtype])
    assert np.abs(np.asarray(packed[0] - whole[0], np.float32)).max() > 0.1


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("kind", ["splash", "triton"])
def test_on_a_mesh_each_device_attends_with_its_own_heads(kind, kv_heads):
    given = arrays(packed=True, kv_heads=kv_heads)
    attend = functools.partial(causal_attention, block=128, dtype="float32", kind=kind)
    mesh = make_mesh(MeshShape(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        ours = value_and_gradients(attend, *given)
    assert_near(ours, value_and_gradients(reference, *given), BOUNDS["float32"])


def lowered(platform, **changes):
    """Lower "auto" attention and its gradient for a platform that need not be there."""
    shape = {"dtype": "bfloat16", "packed": True} | changes
    attend = functools.partial(causal_attention, block=128, dtype=shape["dtype"])

    def loss(q, k, v, segments):
        return attend(q, k, v, segments).astype(jnp.float32).var()

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arrays(**shape))
    return traced.lower(lowering_platforms=(platform,)).as_text()


CALLS = {"tpu": "@tpu_custom_call", "cuda": ".triton("}  # how a lowered program calls its kernel


@pytest.mark.parametrize(("platform", "call"), CALLS.items())
def test_an_accelerator_gets_its_kernel_and_keeps_no_scores(platform, call):
    def scores(text):
        """Products of the last block's queries and all keys; zeros of that shape are dropped."""
        lines = [line for line in text.splitlines() if "dot_general" in line]
        return [line for line in lines if re.search("x(72|144)x200x", line)]

    text, of_cpu = lowered(platform), lowered("cpu")
    assert call in text and not scores(text)
    assert call not in of_cpu and scores(of_cpu)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("changes", [{"dtype": "float32"}, {"width": 32}, {"length": 100}], ids=str)
def test_blocks_compute_what_no_kernel_supports(platform, changes):
    assert CALLS[platform] not in lowered(platform, **changes)


@pytest.mark.parametrize("kernel", ["splash", "triton", "cudnn"])
@pytest.mark.parametrize(("remat", "times"), [("layer", 2), ("outputs", 1), ("weights", 1)])
def test_where_its_outputs_are_kept_the_forward_kernel_runs_once(kernel, remat, times):
    if kernel == "cudnn" and not kernels._has_cudnn():
        pytest.skip("cuDNN is not installed")
    model = transformer.TransformerConfig(
        vocab_size=32, width=128, layers=1, heads=2, kv_heads=1, head_dim=64, mlp_width=64,
        dtype="bfloat16", remat=remat,
    )  # fmt: skip
    tokens_BT = np.ones((1, 256), np.int32)
    segments_BT = None if kernel == "cudnn" else tokens_BT

    def loss(params):
        return transformer.apply(model, params, tokens_BT, None, segments_BT).var()

    traced = jax.jit(jax.grad(loss)).trace(transformer.init(model, jax.random.key(0)))
    platform = "tpu" if kernel == "splash" else "cuda"
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    forward = {"splash": r"kernel_name = \"splash_mha_fwd", "triton": r"mha_forward",
               "cudnn": r"__cudnn\$fmhaSoftmax\("}[kernel]  # fmt: skip
    assert sum(bool(re.search(forward, line)) for line in text.splitlines()) == times
