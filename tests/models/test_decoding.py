"""How parameters are laid out for decoding, and what a decoding loop says between devices."""

import functools

import jax
import numpy as np
import pytest

from autollm_jax.models import transformer
from autollm_jax.models.decoding import for_decoding
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl import sampler
from autollm_jax.rl.sampler import SamplerConfig, Taking
from autollm_jax.sharding.mesh import MeshShape, for_play, make_mesh
from autollm_jax.sharding.rules import tree_shardings
from tests.collectives import COLLECTIVE

MODEL = TransformerConfig(
    vocab_size=320, width=48, layers=2, heads=8, kv_heads=4, head_dim=8, mlp_width=72, short_conv=2
)
# Dimensions that only a parameter has: a collective over one of them moves parameters.
OF_PARAMETERS = ("48", "320", "72")
SIZES = SamplerConfig(context=16, cache_block=16, chunk_sizes=(8,))
ROWS = 8


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshShape(data=1, fsdp=4, tensor=2))


@pytest.fixture(scope="module")
def params(mesh):
    shapes = transformer.parameter_shapes(MODEL)
    shardings = tree_shardings(transformer.logical_axes(MODEL), shapes, mesh)
    init = functools.partial(transformer.init, MODEL)
    return jax.jit(init, out_shardings=shardings)(jax.random.key(0))


def split_over(tree, axis):
    """Return the names of the leaves that a mesh axis splits."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        path[-1].key
        for path, leaf in leaves
        if any(axis in (entry or ()) for entry in leaf.sharding.spec)
    }


def decode_text(mesh, params):
    """Compile the sampler's decoding loop; return its text."""
    state = sampler.abstract_state(MODEL, SIZES, ROWS, mesh)
    each_B = np.zeros(ROWS, np.int32)
    arguments = (MODEL, params, state, jax.random.key(0), Taking(each_B > 0, each_B), 0, 1.0)
    with jax.set_mesh(mesh):
        return sampler.jit_decode.lower(*arguments, greedy=False).compile().as_text()


def gathers_of_parameters(text):
    """Return the lines in which devices gather a dimension of a parameter."""
    sizes = [f"[{n}," for n in OF_PARAMETERS] + [f",{n}]" for n in OF_PARAMETERS]
    sizes += [f",{n}," for n in OF_PARAMETERS]
    lines = [line for line in text.splitlines() if COLLECTIVE.search(line)]
    gathers = [line for line in lines if "all-gather" in line or "all-to-all" in line]
    return [line for line in gathers if any(n in line.split("(")[0] for n in sizes)]


def test_parameters_for_decoding_are_whole_over_fsdp_and_split_over_tensor(mesh, params):
    assert "query" in split_over(params, "fsdp")
    with jax.set_mesh(mesh):
        laid_out = for_decoding(MODEL, params)
    assert not split_over(laid_out, "fsdp")
    assert split_over(laid_out, "tensor") == split_over(params, "tensor")
    for layer, leaves in enumerate(laid_out["layers"]):
        for name, axes in (("query", (1, 2, 0)), ("output", (2, 0, 1)), ("down", (1, 0))):
            matrix = params["layers"][name][layer]
            np.testing.assert_array_equal(leaves[name], matrix.transpose(axes))  # contracted last


def test_a_mesh_of_fsdp_alone_lays_parameters_out_over_tensor_for_play(params):
    mesh = make_mesh(MeshShape(1, 4, 1), jax.devices()[:4])
    axes = transformer.logical_axes(MODEL)
    trained = jax.device_put(params, tree_shardings(axes, params, mesh))
    assert not split_over(trained, "tensor")
    with jax.set_mesh(for_play(mesh, 2)):
        laid_out = for_decoding(MODEL, trained)
    assert not split_over(laid_out, "fsdp") and "query" in split_over(laid_out, "tensor")
    query = params["layers"]["query"][0]
    np.testing.assert_array_equal(laid_out["layers"][0]["query"], query.transpose(1, 2, 0))


def test_the_decoding_loop_gathers_no_parameter(mesh, params):
    with jax.set_mesh(mesh):
        laid_out = for_decoding(MODEL, params)
    assert not gathers_of_parameters(decode_text(mesh, laid_out))
    # As they are trained, some are gathered: the pattern finds what it is there to find.
    by_fsdp = jax.NamedSharding(mesh, jax.P("fsdp"))
    stored = jax.tree.map(
        lambda x: jax.device_put(x, by_fsdp) if x.shape[0] == MODEL.width else x, laid_out
    )
    assert gathers_of_parameters(decode_text(mesh, stored))
