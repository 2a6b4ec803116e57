import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autollm_jax.models import attention, decoding, transformer
from autollm_jax.models.config import FLOATS, REMATS
from autollm_jax.models.embedding import look_up
from autollm_jax.models.transformer import TransformerConfig

TINY = TransformerConfig(
    vocab_size=32, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=24
)
# Compiled, since op by op each would compile by itself.
init = jax.jit(transformer.init, static_argnums=0)
apply = jax.jit(transformer.apply, static_argnums=0)
extend = jax.jit(decoding.extend, static_argnums=0, static_argnames="last")


def tokens_of(batch=2, length=12, seed=1):
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, TINY.vocab_size)


@pytest.fixture(scope="module")
def params():
    return init(TINY, jax.random.key(0))


def test_no_gradient_flows_from_a_logit_to_later_tokens(params):
    tokens_BT = tokens_of(batch=1)
    place = 5

    def logit_sum(offset_TD):
        # The embedding of each position is moved by its own offset.
        table = params["embedding"]
        extended = jnp.concatenate([table, table[tokens_BT[0]] + offset_TD])
        wide = dataclasses.replace(TINY, vocab_size=extended.shape[0])
        own_tokens = TINY.vocab_size + jnp.arange(tokens_BT.shape[1])[None]
        changed = {**params, "embedding": extended}
        return apply(wide, changed, own_tokens)[0, place, : TINY.vocab_size].sum()

    gradient_TD = jax.jit(jax.grad(logit_sum))(jnp.zeros((tokens_BT.shape[1], TINY.width)))
    size_T = np.abs(gradient_TD).sum(axis=1)
    assert (size_T[: place + 1] > 0).all()
    np.testing.assert_array_equal(size_T[place + 1 :], 0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": False},
        {"short_conv": 3, "mimetic": True},
        {"rope_fraction": 0.25},
        {"slots_first": True, "short_conv": 3},
    ],
)
def test_decoding_token_by_token_equals_the_full_forward_pass(changes):
    config = dataclasses.replace(TINY, **changes)
    params = init(config, jax.random.key(0))
    tokens_BT = tokens_of()
    full_BTV = apply(config, params, tokens_BT)
    cache = decoding.init_cache(config, 2, 16)
    for t in range(tokens_BT.shape[1]):
        logits_B1V, cache = extend(
            config, params, tokens_BT[:, t : t + 1], jnp.ones(2, int), jnp.full(2, t), cache
        )
        np.testing.assert_allclose(logits_B1V[:, 0], full_BTV[:, t], atol=1e-4)


@pytest.mark.parametrize("short_conv", [0, 3])
@pytest.mark.parametrize("lengths", [(3, 7), (0, 1)])
def test_rows_of_different_lengths_extend_as_if_alone(lengths, short_conv):
    config = dataclasses.replace(TINY, short_conv=short_conv, mimetic=True)
    params, tokens_BT, chunk = init(config, jax.random.key(0)), tokens_of(length=20), 8
    cache = decoding.init_cache(config, 2, 32)
    _, cache = extend(
        config, params, tokens_BT[:, :chunk], jnp.array(lengths), jnp.zeros(2, int), cache
    )
    rest_BC = jnp.stack([tokens_BT[b, n : n + chunk] for b, n in enumerate(lengths)])
    logits_BCV, _ = extend(config, params, rest_BC, jnp.full(2, chunk), jnp.array(lengths), cache)
    full_BTV = apply(config, params, tokens_BT)
    for b, n in enumerate(lengths):
        np.testing.assert_allclose(logits_BCV[b], full_BTV[b, n : n + chunk], atol=1e-4)


def test_last_returns_each_rows_last_real_logits(params):
    tokens_BC, lengths_B = tokens_of(), jnp.array([4, 9])
    arguments = (TINY, params, tokens_BC, lengths_B, jnp.zeros(2, int))
    all_BCV, _ = extend(*arguments, decoding.init_cache(TINY, 2, 16))
    last_BV, _ = extend(*arguments, decoding.init_cache(TINY, 2, 16), last=True)
    np.testing.assert_allclose(last_BV, all_BCV[jnp.arange(2), lengths_B - 1], atol=1e-5)


@pytest.mark.parametrize("short_conv", [0, 3])
def test_segments_do_not_see_each_other(short_conv):
    config = dataclasses.replace(TINY, short_conv=short_conv, mimetic=True)
    params, tokens_BT = init(config, jax.random.key(0)), tokens_of(batch=1)
    segments_BT = jnp.array([[1] * 5 + [2] * 7])
    positions_BT = jnp.array([[*range(5), *range(7)]])
    packed = apply(config, params, tokens_BT, positions_BT, segments_BT)
    alone = apply(config, params, tokens_BT[:, 5:])
    np.testing.assert_allclose(packed[:, 5:], alone, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_block": 5},
        {"attention_block": 9},
        {"scan_unroll": 2},
        *({"remat": name} for name in REMATS[1:]),
    ],
    ids=str,
)
def test_equivalent_programs_give_equal_losses_and_gradients(params, changes):
    other = dataclasses.replace(TINY, **changes)
    assert other != TINY

    def loss(params, config):
        return apply(config, params, tokens_of())[..., 0].var()

    value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    ours, theirs = (value_and_grad(params, c) for c in (TINY, other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


def test_grouped_heads_equal_full_heads_with_repeated_kernels(params):
    full = dataclasses.replace(TINY, kv_heads=TINY.heads)
    layers = dict(params["layers"])
    for name in ("key", "value"):
        layers[name] = jnp.repeat(layers[name], TINY.heads // TINY.kv_heads, axis=2)
    expected = apply(full, {**params, "layers": layers}, tokens_of())
    np.testing.assert_allclose(apply(TINY, params, tokens_of()), expected, atol=1e-4)


def test_bfloat16_accumulates_in_float32_and_stays_near(params):
    half = dataclasses.replace(TINY, dtype="bfloat16")
    logits, exact = (apply(c, params, tokens_of()) for c in (half, TINY))
    assert logits.dtype == jnp.float32
    assert not np.array_equal(logits, exact)
    np.testing.assert_allclose(logits, exact, atol=0.15)


@pytest.mark.parametrize(("width", "expected"), [(88, "float32"), (96, "bfloat16")])
def test_layers_pass_on_bfloat16_from_a_width_of_96(width, expected):
    half = dataclasses.replace(TINY, dtype="bfloat16", width=width)
    assert (
        half.stream == expected and dataclasses.replace(half, dtype="float32").stream == "float32"
    )
    made = init(half, jax.random.key(0))
    assert jax.jit(transformer.hidden, static_argnums=0)(half, made, tokens_of()).dtype == expected


def test_bfloat16_activations_stay_near_and_have_float32_gradients():
    half = dataclasses.replace(TINY, dtype="bfloat16", activations="bfloat16", short_conv=3)
    params = init(half, jax.random.key(0))
    wide, exact = (dataclasses.replace(half, activations="float32", dtype=d) for d in FLOATS[::-1])

    def loss(params, config):
        return (apply(config, params, tokens_of()) * jnp.cos(jnp.arange(32.0))[None, None]).mean()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    ours, wider, theirs = (gradient(params, c) for c in (half, wide, exact))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(ours)} == {"float32"}
    assert not np.array_equal(ours["embedding"], wider["embedding"])
    for mine, right in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        scale = np.abs(right).max()
        np.testing.assert_allclose(mine, right, rtol=0, atol=0.08 * scale)


def test_bfloat16_gradients_of_matrices_are_float32_ones_rounded():
    half = dataclasses.replace(TINY, dtype="bfloat16")
    params = init(half, jax.random.key(0))

    def gradient(config):
        return jax.jit(jax.grad(lambda p: apply(config, p, tokens_of()).var()))(params)

    exact, rounded = (gradient(dataclasses.replace(half, gradients=kind)) for kind in FLOATS)
    for name, leaf in rounded["layers"].items():
        if isinstance(leaf, dict):  # a norm
            continue
        wanted = exact["layers"][name]
        assert leaf.dtype == wanted.dtype == "float32" and not np.array_equal(leaf, wanted)
        np.testing.assert_array_equal(leaf, wanted.astype("bfloat16").astype("float32"))


def test_a_bfloat16_layer_keeps_no_float32_activation():
    half = dataclasses.replace(TINY, dtype="bfloat16", remat="attention", short_conv=3)

    def kept(config):
        def pull(params):
            return jax.vjp(lambda p: transformer.hidden(config, p, tokens_of()), params)[1]

        leaves = jax.tree.leaves(jax.eval_shape(pull, transformer.parameter_shapes(config)))
        of_layers = [leaf for leaf in leaves if leaf.shape[:3] == (TINY.layers, *tokens_of().shape)]
        return {leaf.dtype.name for leaf in of_layers if leaf.dtype.name.endswith(("16", "32"))}

    assert kept(dataclasses.replace(half, activations="bfloat16")) == {"bfloat16"}
    assert "float32" in kept(half)


def test_a_frequent_tokens_gradient_is_summed_in_float32():
    table_VD, tokens_BT = jnp.ones((4, 8)), jnp.zeros((1, 1000), int)
    summed_VD = jax.grad(lambda t: look_up(t, tokens_BT, "bfloat16").astype(float).sum())(table_VD)
    np.testing.assert_array_equal(summed_VD[0], 1000)
    np.testing.assert_array_equal(summed_VD[1:], 0)


def test_untied_embeddings_have_their_own_table():
    untied = dataclasses.replace(TINY, tied_embeddings=False)
    extra = transformer.parameter_count(untied) - transformer.parameter_count(TINY)
    assert extra == TINY.vocab_size * TINY.width
    params = init(untied, jax.random.key(0))
    gradient = jax.jit(jax.grad(lambda p: apply(untied, p, tokens_of()).var()))(params)
    assert np.abs(gradient["unembedding"]).max() > 0


def test_kernels_start_with_variance_one_over_fan_in():
    config = dataclasses.replace(TINY, width=256, heads=8, kv_heads=8, head_dim=32, mlp_width=128)
    layers = init(config, jax.random.key(0))["layers"]
    for name, fan_in in {"query": 256, "output": 256, "gate": 256, "down": 128}.items():
        np.testing.assert_allclose(layers[name].var() * fan_in, 1.0, rtol=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        *({"kv_heads": 3}, {"head_dim": 7}, {"dtype": "float16"}, {"activations": "float16"}),
        *({"remat": "all"}, {"attention": "flash"}),
    ],
    ids=str,
)
def test_impossible_shapes_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"qk_norm": False}, {"tied_embeddings": False}, {"short_conv": 3, "mimetic": True}],
)
def test_the_formula_counts_the_parameters_that_init_makes(changes):
    config = TransformerConfig(
        vocab_size=64, width=24, layers=3, heads=4, kv_heads=2, head_dim=6, mlp_width=40, **changes
    )
    shapes = jax.tree.leaves(transformer.parameter_shapes(config))
    assert transformer.parameter_count(config) == sum(leaf.size for leaf in shapes)


COPIER = dataclasses.replace(
    TINY, width=64, kv_heads=2, head_dim=32, vocab_size=512, rope_fraction=0.25, mimetic=True
)


def mean_rank(config, tokens_T):
    """Of 512 tokens, the rank of what comes next when `tokens_T` are read again, untrained."""
    again_1T, T = jnp.concatenate([tokens_T, tokens_T])[None], len(tokens_T)
    logits_TV = apply(config, init(config, jax.random.key(0)), again_1T)[0, T : 2 * T - 1]
    right_T1 = jnp.take_along_axis(logits_TV, tokens_T[1:, None], axis=1)
    return float((logits_TV > right_T1).sum(1).mean())


def test_mimetic_attention_starts_by_copying():
    """Before any training a token that comes again is followed by what followed it before."""
    tokens_T = jax.random.permutation(jax.random.key(1), 512)[:40]
    started, random = (
        mean_rank(dataclasses.replace(COPIER, short_conv=2, mimetic=m), tokens_T)
        for m in (True, False)
    )
    assert started < 0.5 * random


def test_mimetic_attention_copies_what_follows_a_run_of_tokens():
    """Each token comes with several successors: which it is, the token before it tells."""
    tokens_T = jax.random.randint(jax.random.key(1), (80,), 0, 12) * 40
    one, two, seven = (
        mean_rank(dataclasses.replace(COPIER, short_conv=taps, head_dim=64), tokens_T)
        for taps in (2, 3, 8)
    )
    assert two < 0.7 * one and seven < 0.6 * two


@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_the_rest_of_a_head_does_not_turn_with_the_position(fraction):
    x_BTHA = jax.random.normal(jax.random.key(0), (1, 5, 2, 16))
    positions_BT = jnp.arange(5)[None] + 3
    angles = attention.rotations(positions_BT, 16, 10_000.0, fraction)
    turned = attention.rotate(x_BTHA, *angles)
    kept = int(16 * fraction)
    np.testing.assert_array_equal(turned[..., kept:], x_BTHA[..., kept:])
    assert (np.abs(turned - x_BTHA)[..., :kept] > 1e-3).any()
