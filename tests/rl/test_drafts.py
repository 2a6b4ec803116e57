"""Decoding with tokens that are read ahead, against decoding token by token."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autollm_jax.models import transformer
from autollm_jax.rl import grammar, sampler
from autollm_jax.rl.decoding import MOST_DRAFTS, look_up
from autollm_jax.rl.sampler import SamplerConfig, TurnConfig
from autollm_jax.sharding.mesh import MeshShape, make_mesh

MODEL = transformer.TransformerConfig(
    vocab_size=40, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp_width=32
)
CONFIG = SamplerConfig(context=64, cache_block=24, chunk_sizes=(8,))
STOP = 3
PROMPTS = [[5, 6, 7], list(range(4, 24)), [9], [30, 31, 32, 30, 31, 32, 30, 31]]
REPLIES = [[10, 11], [12] * 9, [], [13]]
OPEN, CLOSE = 1, 2
ENDINGS = [[20, 21, 22, STOP], [20, 21, 23, STOP], [24, STOP]]
FREE_V = np.arange(40) > 24


@pytest.fixture(scope="module")
def params():
    # Large weights, so that distributions are far from uniform, and that a greedy model repeats.
    make = jax.jit(functools.partial(transformer.init, MODEL))
    return jax.tree.map(lambda x: 3 * x, make(jax.random.key(0)))


def play(params, drafts, temperature=0.0, config=CONFIG, mesh=None, rules=None, most=18):
    """Prompt, turn, reply, turn; also returns passes and readings of both turns."""
    rows = np.arange(len(PROMPTS))
    state = sampler.init_state(MODEL, config, rows, mesh)
    turn, spent = TurnConfig(STOP, most, temperature, drafts), []
    for chunks in (PROMPTS, REPLIES):
        state = sampler.append(MODEL, params, config, state, chunks)
        state, speakers = sampler.begin_turns(config, state, turn, rows >= 0, rules)
        state, speakers = sampler.speak(
            MODEL, params, config, state, jax.random.key(4), turn, speakers, rules
        )
        spent.append((speakers.passes, speakers.readings))
    return jax.tree.map(np.asarray, state), *np.sum(spent, 0)


def assert_same(found, expected):
    for name in ("tokens_BS", "turns_BS", "length_B", "turn_B", "stopped_B", "truncated_B"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
    np.testing.assert_allclose(found.logprobs_BS, expected.logprobs_BS, atol=1e-3)
    np.testing.assert_allclose(found.logits_BV, expected.logits_BV, atol=1e-2)


@pytest.mark.parametrize(
    ("drafts", "temperature"), [(1, 0.5), (3, 1.0), (MOST_DRAFTS, 0.5), (MOST_DRAFTS, 0.0)]
)
def test_drafts_change_no_token_and_save_passes(params, drafts, temperature):
    expected, *each = play(params, 0, temperature)
    found, passes, readings = play(params, drafts, temperature)
    assert_same(found, expected)
    said = (expected.turns_BS >= 0).sum()
    assert each[1] == said and len(set(expected.length_B)) > 1
    assert passes <= each[0] and readings < said
    if temperature == 0:
        assert readings < 0.85 * said


@pytest.mark.parametrize(("block", "temperature"), [(5, 0.0), (9, 0.3)])
def test_drafts_in_a_cache_that_grows_and_a_context_that_ends(params, block, temperature):
    """No token is sampled from the logits of a draft that the cache had no room for."""
    small = dataclasses.replace(CONFIG, cache_block=block, context=40)
    expected, *_ = play(params, 0, temperature, config=small, most=30)
    found, *_ = play(params, MOST_DRAFTS, temperature, config=small, most=30)
    assert expected.truncated_B.any() and (expected.length_B == 40).any()
    assert_same(found, expected)


def test_drafts_on_a_mesh(params):
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    expected, *_ = play(params, 0, 0.5)
    with jax.set_mesh(mesh):
        found, *_ = play(params, 3, 0.5, mesh=mesh)
    assert_same(found, expected)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_rows_with_drafts_are_answered_while_others_speak_on(params, temperature):
    """A row begins its second turn as soon as its first has ended (`ended_share` below 1)."""
    expected, *_ = play(params, 0, temperature)
    turn, turns_B, calls = TurnConfig(STOP, 18, temperature, drafts=3), np.ones(4, int), 0
    state = sampler.init_state(MODEL, CONFIG, np.arange(4))
    state = sampler.append(MODEL, params, CONFIG, state, PROMPTS)
    state, speakers = sampler.begin_turns(CONFIG, state, turn, turns_B > 0)
    while speakers.going_B.any():
        before_B, calls = speakers.going_B, calls + 1
        state, speakers = sampler.speak(
            MODEL, params, CONFIG, state, jax.random.key(4), turn, speakers, ended_share=0.25
        )
        answered_B = before_B & ~speakers.going_B & (turns_B < 2)
        chunks = [reply if now else [] for reply, now in zip(REPLIES, answered_B, strict=True)]
        state = sampler.append(MODEL, params, CONFIG, state, chunks)
        state, speakers = sampler.begin_turns(CONFIG, state, turn, answered_B, speakers=speakers)
        turns_B += answered_B
    assert_same(jax.tree.map(np.asarray, state), expected)
    assert calls > 2 and (turns_B == 2).all()


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_drafts_keep_to_the_grammar(params, temperature):
    automaton = grammar.build(ENDINGS, [OPEN], [CLOSE])
    every = np.ones(len(ENDINGS), bool)
    rules = grammar.join([(automaton, every), (automaton, every), None, None], FREE_V)
    expected, *_ = play(params, 0, temperature, rules=rules)
    found, *_ = play(params, 3, temperature, rules=rules)
    assert_same(found, expected)
    said = [t[m >= 0].tolist() for t, m in zip(found.tokens_BS, found.turns_BS, strict=True)]
    assert any(ending == said[0][-len(ending) :] for ending in ENDINGS)


def followers(tokens, length, count):
    """What `look_up` returns for one row, by its definition."""
    best, place = -1, length - 2
    for end in range(length - 1):
        alike = 0
        while alike < 3 and alike <= end and tokens[end - alike] == tokens[length - 1 - alike]:
            alike += 1
        if alike >= best:
            best, place = alike, end
    return tokens[place + 1 : place + 1 + count]


def test_a_draft_is_what_followed_the_longest_and_latest_like():
    rng = np.random.default_rng(0)
    tokens_BS = rng.integers(0, 3, (50, 24)).astype(np.int32)
    length_B = rng.integers(4, 20, 50).astype(np.int32)
    found = np.asarray(look_up(jnp.asarray(tokens_BS), jnp.asarray(length_B), 4))
    wanted = [followers(t.tolist(), n, 4) for t, n in zip(tokens_BS, length_B, strict=True)]
    np.testing.assert_array_equal(found, wanted)


def test_convolutions_have_no_drafts(params):
    convolved = dataclasses.replace(MODEL, short_conv=2)
    params = transformer.init(convolved, jax.random.key(0))
    state = sampler.init_state(convolved, CONFIG, [0])
    state = sampler.append(convolved, params, CONFIG, state, [[4, 5]])
    with pytest.raises(ValueError, match="short convolutions"):
        sampler.generate(
            convolved, params, CONFIG, state, jax.random.key(0), TurnConfig(STOP, 4, drafts=2)
        )
