import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autollm_jax.models import transformer
from autollm_jax.rl import sampler
from autollm_jax.rl.logprobs import token_logprobs
from autollm_jax.rl.sampler import SamplerConfig, TurnConfig
from autollm_jax.sharding.mesh import MeshShape, make_mesh

MODEL = transformer.TransformerConfig(
    short_conv=3,
    mimetic=True,
    vocab_size=40,
    width=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=8,
    mlp_width=32,
)
CONFIG = SamplerConfig(context=64, cache_block=32, chunk_sizes=(8,))
STOP = 3
PROMPTS = [[5, 6, 7], list(range(4, 24)), [9], [30, 31, 32, 33, 34, 35, 36, 37]]
REPLIES = [[10, 11], [12] * 9, [], [13]]


@pytest.fixture(scope="module")
def params():
    # Large weights, so that distributions are far from uniform and depend on the prefix.
    make = jax.jit(functools.partial(transformer.init, MODEL))
    return jax.tree.map(lambda x: 3 * x, make(jax.random.key(0)))


def play(params, rows, temperature=0.8, key=0, mesh=None, model=MODEL):
    """Prompt, turn, reply, turn for the given rows of PROMPTS and REPLIES."""
    state = sampler.init_state(model, CONFIG, rows, mesh)
    turn = TurnConfig(STOP, 12, temperature)
    for chunks in (PROMPTS, REPLIES):
        state = sampler.append(model, params, CONFIG, state, [chunks[r] for r in rows])
        state = sampler.generate(model, params, CONFIG, state, jax.random.key(key), turn)
    return jax.tree.map(np.asarray, state)


def recompute(params, state, temperature):
    S = state.tokens_BS.shape[1]
    positions = np.broadcast_to(np.arange(S), state.tokens_BS.shape)
    segments = (positions < state.length_B[:, None]).astype(np.int32)
    return token_logprobs(MODEL, params, state.tokens_BS, segments, positions, temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_recorded_logprobs_equal_those_recomputed_over_ragged_turns(params, temperature):
    state = play(params, [0, 1, 2, 3], temperature)
    assert len(set(state.length_B.tolist())) > 1
    recomputed, _ = recompute(params, state, temperature)
    mask = np.asarray(state.loss_mask_BS)
    assert mask.sum() > 20
    # Large weights multiply f32 rounding, by how much depends on the compiler; another temperature
    # would move log-probabilities by tenths.
    np.testing.assert_allclose(np.where(mask, recomputed, 0), state.logprobs_BS, rtol=0, atol=1e-3)


def test_greedy_takes_the_likeliest_token_of_the_full_forward_pass(params):
    state = play(params, [0, 1, 2, 3], temperature=0)
    logits = transformer.apply(MODEL, params, state.tokens_BS)
    best = np.argmax(logits, axis=-1)[:, :-1]
    mask = np.asarray(state.loss_mask_BS)[:, 1:]
    np.testing.assert_array_equal(best[mask], state.tokens_BS[:, 1:][mask])


def test_a_row_does_not_depend_on_the_rows_beside_it(params):
    together = play(params, [0, 1, 2, 3])
    for row in (1, 3):
        alone = play(params, [row])
        np.testing.assert_array_equal(alone.tokens_BS[0], together.tokens_BS[row])


def test_seeds_and_keys_change_the_samples(params):
    state = sampler.init_state(MODEL, CONFIG, [0, 1])
    state = sampler.append(MODEL, params, CONFIG, state, [[5], [5]])
    one = sampler.generate(MODEL, params, CONFIG, state, jax.random.key(0), TurnConfig(-1, 20, 2.0))
    tokens = np.asarray(one.tokens_BS)
    assert (tokens[0] != tokens[1]).any()
    assert (play(params, [1]).tokens_BS != play(params, [1], key=1).tokens_BS).any()


def test_environment_tokens_stand_where_they_were_put(params):
    state = play(params, [0, 1, 2, 3])
    for row in range(4):
        tokens, turns = state.tokens_BS[row], state.turns_BS[row]
        given = tokens[: state.length_B[row]][turns[: state.length_B[row]] < 0]
        assert given.tolist() == PROMPTS[row] + REPLIES[row]
        assert set(turns.tolist()) == {-1, 0, 1}


def test_a_turn_ends_with_the_stop_token_or_at_its_limit(params):
    state = play(params, [0, 1, 2, 3])
    for row in range(4):
        for turn in range(2):
            sampled = state.tokens_BS[row][state.turns_BS[row] == turn]
            assert STOP not in sampled[:-1]
            assert sampled[-1] == STOP or len(sampled) == 12
        assert state.stopped_B[row] == (sampled[-1] == STOP)


def test_inactive_rows_do_not_change(params):
    state = sampler.init_state(MODEL, CONFIG, [0, 1])
    state = sampler.append(MODEL, params, CONFIG, state, [[5, 6], [7, 8]])
    before = jax.tree.map(np.array, state)
    state = sampler.generate(
        MODEL, params, CONFIG, state, jax.random.key(0), TurnConfig(STOP, 12), [True, False]
    )
    assert state.length_B[0] > 2
    for name in ("tokens_BS", "turns_BS", "logprobs_BS", "length_B", "turn_B", "logits_BV"):
        np.testing.assert_array_equal(getattr(state, name)[1], getattr(before, name)[1])


def test_a_row_out_of_context_stops_and_is_flagged(params):
    config = dataclasses.replace(CONFIG, context=20)
    state = sampler.init_state(MODEL, config, [0, 1])
    state = sampler.append(MODEL, params, config, state, [[5] * 15, [6] * 3])
    turn = TurnConfig(-1, 10)  # nothing is a stop token
    state = sampler.generate(MODEL, params, config, state, jax.random.key(0), turn)
    assert state.length_B.tolist() == [20, 13]
    assert state.truncated_B.tolist() == [True, False]
    state = sampler.append(MODEL, params, config, state, [[7], [8] * 8])
    assert state.length_B.tolist() == [20, 13]
    assert state.truncated_B.tolist() == [True, True]


def test_repeated_rows_continue_like_rows_that_read_the_prompt_themselves(params):
    turn = TurnConfig(STOP, 12)
    shared = sampler.init_state(MODEL, CONFIG, [0])
    shared = sampler.append(MODEL, params, CONFIG, shared, [PROMPTS[1]])
    shared = sampler.repeat(shared, 2, [8, 9])
    own = sampler.init_state(MODEL, CONFIG, [8, 9])
    own = sampler.append(MODEL, params, CONFIG, own, [PROMPTS[1]] * 2)
    shared = sampler.generate(MODEL, params, CONFIG, shared, jax.random.key(0), turn)
    own = sampler.generate(MODEL, params, CONFIG, own, jax.random.key(0), turn)
    np.testing.assert_array_equal(shared.tokens_BS, own.tokens_BS)


def test_the_cache_grows_by_blocks_or_doubles(params):
    doubling = dataclasses.replace(CONFIG, context=56, cache_block=8, cache_doubling=True)
    blocks = dataclasses.replace(doubling, cache_doubling=False)
    assert doubling.capacities == (8, 16, 32, 56)
    assert blocks.capacities == (8, 16, 24, 32, 40, 48, 56)
    sizes = {}
    for config in (doubling, blocks):
        state = sampler.init_state(MODEL, config, [0])
        state = sampler.append(MODEL, params, config, state, [[5] * 17])
        sizes[config.cache_doubling] = state.cache[0]["value"].shape[2]
    assert sizes == {True: 32, False: 24}


def test_renewed_rows_continue_like_new_ones_and_the_others_do_not_change(params):
    turn, key = TurnConfig(STOP, 12), jax.random.key(0)
    used = sampler.init_state(MODEL, CONFIG, [0, 1, 2, 3])
    used = sampler.append(MODEL, params, CONFIG, used, PROMPTS)
    used = sampler.generate(MODEL, params, CONFIG, used, key, turn)
    before, fresh_B = jax.tree.map(np.array, used), np.array([False, False, True, True])
    used = sampler.renew(used, fresh_B, np.array([7, 7, 8, 9], np.uint32))
    used = sampler.append(MODEL, params, CONFIG, used, [[], [], PROMPTS[0], []])
    used = sampler.share(used, fresh_B, 2)
    used = sampler.generate(MODEL, params, CONFIG, used, key, turn, fresh_B)
    new = sampler.init_state(MODEL, CONFIG, [8, 9])
    new = sampler.append(MODEL, params, CONFIG, new, [PROMPTS[0]] * 2)
    new = sampler.generate(MODEL, params, CONFIG, new, key, turn)
    for name in ("tokens_BS", "turns_BS", "length_B", "turn_B", "stopped_B", "seeds_B"):
        got, old = getattr(used, name), getattr(before, name)
        np.testing.assert_array_equal(got[2:], getattr(new, name), name)
        np.testing.assert_array_equal(got[:2], old[:2], name)
    np.testing.assert_allclose(used.logprobs_BS[2:], new.logprobs_BS, atol=1e-4)


def test_rows_that_speak_on_say_the_same_as_if_all_were_waited_for(params):
    key, long, short = jax.random.key(0), TurnConfig(STOP, 12), TurnConfig(STOP, 5)
    first, others = np.arange(4) < 2, np.arange(4) >= 2
    start = sampler.init_state(MODEL, CONFIG, [0, 1, 2, 3])
    start = sampler.append(MODEL, params, CONFIG, start, PROMPTS)
    state, calls = jax.tree.map(jnp.copy, start), 0
    state, speakers = sampler.begin_turns(CONFIG, state, long, first)
    state, speakers = sampler.begin_turns(CONFIG, state, short, others, speakers=speakers)
    while speakers.going_B.any():
        count, calls = speakers.going_B.sum(), calls + 1
        state, speakers = sampler.speak(
            MODEL, params, CONFIG, state, key, long, speakers, ended_share=0.25
        )
        assert speakers.going_B.sum() < count
    waited = sampler.generate(MODEL, params, CONFIG, start, key, long, first)
    waited = sampler.generate(MODEL, params, CONFIG, waited, key, short, others)
    for name in ("tokens_BS", "turns_BS", "logprobs_BS", "turn_B", "truncated_B"):
        np.testing.assert_array_equal(getattr(state, name), getattr(waited, name), name)
    lengths = np.asarray(waited.length_B) - list(map(len, PROMPTS))
    assert calls > 1 and speakers.passes == lengths.max() > lengths.min()


def test_an_empty_active_row_is_an_error(params):
    state = sampler.init_state(MODEL, CONFIG, [0])
    with pytest.raises(ValueError, match="empty"):
        sampler.generate(MODEL, params, CONFIG, state, jax.random.key(0), TurnConfig(STOP, 2))


def test_rows_split_over_a_mesh_sample_the_same_tokens(params):
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2), jax.devices())
    with jax.set_mesh(mesh):
        split = play(params, [0, 1, 2, 3], mesh=mesh)
    np.testing.assert_array_equal(split.tokens_BS, play(params, [0, 1, 2, 3]).tokens_BS)


def test_a_cache_with_its_slots_first_changes_no_token(params):
    """As TPUs keep it; it grows, and is split over a mesh."""
    expected, by_slot = play(params, [0, 1, 2, 3]), dataclasses.replace(MODEL, slots_first=True)
    assert expected.length_B.max() > CONFIG.cache_block
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2), jax.devices())
    with jax.set_mesh(mesh):
        split = play(params, [0, 1, 2, 3], mesh=mesh, model=by_slot)
    assert set(split.cache[0]) >= {"key_by_slot", "value_by_slot"}
    np.testing.assert_array_equal(split.tokens_BS, expected.tokens_BS)
    np.testing.assert_allclose(split.logprobs_BS, expected.logprobs_BS, atol=1e-3)
