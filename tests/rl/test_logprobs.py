"""Log-probabilities in blocks of time steps against those of whole rows."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autollm_jax.models import transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl.logprobs import token_logprobs
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.sharding.rules import tree_shardings
from tests.collectives import COLLECTIVE

B, T = 8, 30  # 29 predicted tokens: five blocks of six, the last one filled up
WHOLE = TransformerConfig(
    vocab_size=48, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=32
)
BLOCKED = dataclasses.replace(WHOLE, row_logits=48 * 6)
TOKENWISE = dataclasses.replace(WHOLE, row_logits=0)


@pytest.fixture(scope="module")
def batch():
    """Tokens, segments (two a row, then padding) and positions."""
    tokens_BT = jax.random.randint(jax.random.key(1), (B, T), 0, WHOLE.vocab_size)
    place_T = np.arange(T)
    segments_T = np.where(place_T < 12, 1, np.where(place_T < 27, 2, 0))
    positions_T = np.where(place_T < 12, place_T, place_T - 12)
    return tokens_BT, *(jnp.array(np.tile(x, (B, 1)), jnp.int32) for x in (segments_T, positions_T))


def objective(model, params, batch):
    """A sum in which every log-probability and entropy has its own weight."""
    scores = token_logprobs(model, params, *batch, temperature=0.7)
    weights_BT = jnp.cos(jnp.arange(B * T, dtype=jnp.float32)).reshape(B, T) * (batch[1] > 0)
    return sum((score * weights_BT).sum() * w for score, w in zip(scores, (1.0, 0.3), strict=True))


def differentiate(model):
    return jax.jit(jax.value_and_grad(functools.partial(objective, model)))


def same(a, b):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5), a, b)


def whiles(jaxpr) -> int:
    return sum(equation.primitive.name == "scan" for equation in jaxpr.eqns)


@pytest.mark.parametrize(
    ("dtype", "tied"), [("float32", True), ("float32", False), ("bfloat16", False)]
)
def test_blocks_change_neither_values_nor_gradients(batch, dtype, tied):
    whole, blocked = (
        dataclasses.replace(m, tied_embeddings=tied, dtype=dtype) for m in (WHOLE, BLOCKED)
    )
    params = transformer.init(whole, jax.random.key(0))
    scans = [
        whiles(jax.make_jaxpr(functools.partial(token_logprobs, m))(params, *batch).jaxpr)
        for m in (whole, blocked)
    ]
    assert scans == [1, 2]  # the layers'; and the blocks'
    expected, found = (differentiate(m)(params, batch) for m in (whole, blocked))
    assert {"embedding"} | (set() if tied else {"unembedding"}) < set(found[1])
    if dtype == "float32":
        same(found, expected)
    else:  # sums over blocks are f32, but what the products read is rounded once more or less
        scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected[1]))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=0.01 * scale), found[1], expected[1]
        )


@pytest.fixture(scope="module")
def params():
    return transformer.init(WHOLE, jax.random.key(0))


@pytest.fixture(scope="module")
def one_device(params, batch):
    return differentiate(WHOLE)(params, batch)


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2), (1, 2, 4)], ids=str)
def test_eight_devices_agree_with_one(params, batch, one_device, shape):
    mesh = make_mesh(MeshShape(*shape))
    placed = jax.device_put(params, tree_shardings(transformer.logical_axes(WHOLE), params, mesh))
    with jax.set_mesh(mesh):
        found = differentiate(BLOCKED)(placed, batch)
    same(found, one_device)


def test_rows_that_the_mesh_does_not_divide_are_scored_too(params, batch):
    three = tuple(x[:3] for x in batch)
    score = jax.jit(token_logprobs, static_argnums=0)
    with jax.set_mesh(make_mesh(MeshShape(1, 8, 1))):
        found = score(BLOCKED, params, *three)
    same(found, score(WHOLE, params, *three))


def test_a_sweep_may_map_it(params, batch):
    several = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), params)
    temperatures = jnp.array([0.5, 1.0])

    def each(model):
        mapped = jax.vmap(lambda p, t: token_logprobs(model, p, *batch, t))
        return jax.jit(mapped)(several, temperatures)

    same(each(BLOCKED), each(WHOLE))


def test_a_limit_below_the_vocabulary_takes_token_by_token(params, batch):
    score = jax.jit(token_logprobs, static_argnums=0)
    same(score(TOKENWISE, params, *batch), score(WHOLE, params, *batch))


def compiled_gradient(model, length, mesh):
    """Compile the gradient of rows of so many tokens."""
    shapes = transformer.parameter_shapes(model)
    shardings = tree_shardings(transformer.logical_axes(model), shapes, mesh)
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    rows = jax.ShapeDtypeStruct((B, length), jnp.int32)

    def gradient(params, *batch):
        return jax.grad(lambda p: token_logprobs(model, p, *batch)[0].sum())(params)

    with jax.set_mesh(mesh):
        lowered = jax.jit(gradient, out_shardings=shardings).lower(params, rows, rows, rows)
        return lowered.compile()


def test_memory_does_not_grow_with_rows_times_vocabulary():
    one = make_mesh(MeshShape(), jax.devices()[:1])
    large = dataclasses.replace(WHOLE, vocab_size=4096, layers=1)
    blocked = dataclasses.replace(large, row_logits=4096 * 16)
    length = 257
    whole, cut = (
        compiled_gradient(m, length, one).memory_analysis().temp_size_in_bytes
        for m in (large, blocked)
    )
    logits = 4 * B * (length - 1) * 4096
    assert whole > 2 * logits and cut < logits


def test_a_vocabulary_that_devices_do_not_divide_is_filled_up(batch):
    odd = dataclasses.replace(WHOLE, vocab_size=51)
    params = transformer.init(odd, jax.random.key(0))
    expected = differentiate(odd)(params, batch)
    with jax.set_mesh(make_mesh(MeshShape(1, 4, 2))):
        found = differentiate(dataclasses.replace(odd, row_logits=51 * 6))(params, batch)
    same(found, expected)


def messages(text):
    """Return the numbers of each collective's results, and whether it is inside a loop."""
    inside, found = "", []
    for line in text.splitlines():
        if line.endswith("{"):
            inside = line.split()[0]
        collective = COLLECTIVE.search(line)
        if collective:
            shapes = re.findall(r"\w+\[([\d,]*)\]", line[: collective.start()])
            count = sum(math.prod(map(int, s.split(",") if s else ())) for s in shapes)
            found.append((count, inside != "ENTRY"))
    return found


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 4, 1)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_neither_the_table_nor_its_gradient_goes_to_every_device(shape, dtype):
    """Loss and look-up leave the vocabulary where it lies: devices exchange parts of it at most."""
    model = dataclasses.replace(BLOCKED, vocab_size=4096, row_logits=4096 * 6, dtype=dtype)
    model = dataclasses.replace(model, activations=dtype, tied_embeddings=False)
    sent = messages(compiled_gradient(model, T, make_mesh(MeshShape(*shape))).as_text())
    table = 4096 * model.width
    largest, in_loops = max(n for n, _ in sent), max(n for n, inside in sent if inside)
    assert in_loops < table / 8
    assert largest <= 2 * table / shape[1]  # both tables' parts at once, between replicas
