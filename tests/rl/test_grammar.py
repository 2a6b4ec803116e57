import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from autollm_jax.models import transformer
from autollm_jax.rl import grammar, sampler
from autollm_jax.rl.logprobs import Allowed, score_tokens
from autollm_jax.rl.sampler import SamplerConfig
from autollm_jax.sharding.mesh import MeshShape, make_mesh

MODEL = transformer.TransformerConfig(
    vocab_size=40, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp_width=32
)
CONFIG = SamplerConfig(context=64, cache_block=16, chunk_sizes=(8,))
STOP, OPEN, CLOSE, EXEC = 3, 4, 5, 6
FREE_V = (np.arange(40) >= 20) & (np.arange(40) < 36)
ENDINGS = [[EXEC, 7, 8, STOP], [EXEC, 7, 9, 9, 9, STOP], [EXEC, 10, STOP], [EXEC, 7, 8, 8, STOP]]
SHORT = [[EXEC, 11, STOP], [EXEC, 12, STOP]]
PROMPTS = [[1, 30, 31], [1, 8, 9, 10, 11], [1], [1, 25]]


@pytest.fixture(scope="module")
def params():
    make = jax.jit(functools.partial(transformer.init, MODEL))
    return jax.tree.map(lambda x: 3 * x, make(jax.random.key(0)))


@pytest.fixture(scope="module")
def automata():
    return [grammar.build(endings, [OPEN], [CLOSE]) for endings in (ENDINGS, SHORT)]


@pytest.fixture(scope="module")
def rules(automata):
    """Two automata over four rows; the third may say anything, the fourth takes two endings."""
    long, short = automata
    every, some = np.ones(4, bool), np.array([False, True, True, False])
    return grammar.join([(long, every), (short, np.ones(2, bool)), None, (long, some)], FREE_V)


def play(params, rules, seed=0, temperature=1.0, mesh=None, config=CONFIG, new_tokens=20):
    state = sampler.init_state(MODEL, config, [10 * seed + row for row in range(4)], mesh)
    state = sampler.append(MODEL, params, config, state, PROMPTS)
    state = sampler.generate(
        MODEL, params, config, state, jax.random.key(0),
        sampler.TurnConfig(STOP, new_tokens, temperature), grammar=rules,
    )  # fmt: skip
    return jax.tree.map(np.asarray, state)


def turns(state):
    return [t[m].tolist() for t, m in zip(state.tokens_BS, state.loss_mask_BS, strict=True)]


def may_follow(said, endings, left, longest):
    """Tell the tokens that may come next, by the grammar's definition."""
    if not said:
        return {OPEN} | {e[0] for e in endings}
    if said[0] == OPEN and CLOSE not in said:
        return {CLOSE} | (set(np.flatnonzero(FREE_V).tolist()) if left > longest + 1 else set())
    said = said[said.index(CLOSE) + 1 :] if said[0] == OPEN else said
    return {e[len(said)] for e in endings if e[: len(said)] == said}


def test_every_turn_is_free_text_and_one_of_the_rows_endings(params, rules):
    allowed = [ENDINGS, SHORT, None, ENDINGS[1:3]]
    taken, thought = set(), 0
    for seed in range(40):
        state = play(params, rules, seed, temperature=3.0)
        for row, (turn, endings) in enumerate(zip(turns(state), allowed, strict=True)):
            if endings is None:
                continue
            if turn[0] == OPEN:
                end = turn.index(CLOSE)
                assert FREE_V[turn[1:end]].all()
                thought += end - 1
                turn = turn[end + 1 :]
            assert turn in endings
            taken.add((row, tuple(turn)))
            assert state.stopped_B[row] and not state.truncated_B[row]
    assert thought > 100
    assert len(taken) == 4 + 2 + 2


def test_a_row_without_a_grammar_samples_what_it_would(params, rules):
    assert turns(play(params, rules))[2] == turns(play(params, None))[2]


def test_logprobs_are_of_the_allowed_tokens_renormalised(params, rules):
    temperature, checked = 0.7, 0
    state = play(params, rules, temperature=temperature)
    logits_BSV = np.asarray(transformer.apply(MODEL, params, state.tokens_BS), float) / temperature
    for row, endings in ((0, ENDINGS), (1, SHORT), (3, ENDINGS[1:3])):
        start, turn = len(PROMPTS[row]), turns(state)[row]
        longest = max(map(len, endings))
        for n, token in enumerate(turn):
            may = sorted(may_follow(turn[:n], endings, 20 - n, longest))
            scores = logits_BSV[row, start + n - 1, may]
            total = np.log(np.exp(scores).sum())
            np.testing.assert_allclose(np.exp(scores - total).sum(), 1)
            wanted = scores[may.index(token)] - total
            np.testing.assert_allclose(state.logprobs_BS[row, start + n], wanted, atol=1e-4)
            checked += len(may) > 1
    assert checked > 5


def test_allowed_tokens_are_those_of_the_definition_along_every_path(automata):
    rules = grammar.join([(automata[0], np.array([True, True, False, True]))], FREE_V)
    endings = [ENDINGS[0], ENDINGS[1], ENDINGS[3]]
    longest = 6

    def step(node_B, left):
        token_BK, child_BK = grammar.edges(rules, node_B)
        return token_BK, child_BK, grammar.allowed(rules, node_B, token_BK, np.array([left]))

    for start, ending in itertools.product(([], [OPEN, CLOSE], [OPEN, 20, 21, CLOSE]), endings):
        node_B = np.array([grammar.START])
        turn = start + ending
        for n, token in enumerate(turn):
            token_BK, child_BK, may_BV = step(node_B, 10 - n)
            wanted = may_follow(turn[:n], endings, 10 - n, longest)
            assert set(np.flatnonzero(may_BV[0]).tolist()) == wanted
            node_B = grammar.advance(node_B, token_BK, child_BK, np.array([token]))


OF_ROWS = (
    (0, np.ones(4, bool)),
    (1, np.ones(2, bool)),
    (None, None),
    (0, [False, True, True, False]),
)


def said_again(automata, state, new_tokens=20):
    """Say again what each row of `play` could say."""
    B, T = state.tokens_BS.shape
    free_BT = np.zeros((B, T), bool)
    token_BTK = np.full((B, T, grammar.LEAST_EDGES), -1, np.int32)
    for row, (number, may_R) in enumerate(OF_ROWS):
        places = np.flatnonzero(state.loss_mask_BS[row])
        if number is not None:
            free_BT[row, places], token_BTK[row, places] = grammar.steps(
                automata[number], np.array(may_R), state.tokens_BS[row, places], new_tokens
            )
    return Allowed(free_BT, token_BTK, np.broadcast_to(FREE_V, (B, len(FREE_V))))


@pytest.mark.parametrize("new_tokens", [9, 20])
def test_the_steps_of_a_sampled_turn_are_exactly_what_the_sampler_allowed(
    params, rules, automata, new_tokens
):
    seen = set()
    for seed in range(10):
        state = play(params, rules, seed, temperature=3.0, new_tokens=new_tokens)
        told, start_B = said_again(automata, state, new_tokens), list(map(len, PROMPTS))
        node_B = np.full(4, grammar.START) + np.maximum(rules.base_B, 0)
        for n in range(new_tokens):
            token_BK, child_BK = grammar.edges(rules, node_B)
            left_B = np.full(4, new_tokens - n)
            may_BV = np.asarray(grammar.allowed(rules, node_B, token_BK, left_B))
            place_B = [min(start + n, 63) for start in start_B]
            for row in (0, 1, 3):
                if state.loss_mask_BS[row, place_B[row]]:
                    free, token_K = (x[row, place_B[row]] for x in (told.free_BT, told.token_BTK))
                    again_V = FREE_V & free
                    again_V[token_K[token_K >= 0]] = True
                    np.testing.assert_array_equal(again_V, may_BV[row])
                    in_free_text = node_B[row] - rules.base_B[row] == grammar.FREE
                    seen.add((bool(in_free_text), bool(free)))
            token_B = np.array([state.tokens_BS[row, place] for row, place in enumerate(place_B)])
            node_B = grammar.advance(node_B, token_BK, child_BK, token_B)
    assert seen == {(False, False), (True, True), (True, False)}  # the last: an ending barely fits


@pytest.mark.parametrize("row_logits", [2**24, 40 * 6])
def test_the_trainer_recomputes_the_logprobs_of_constrained_turns(
    params, rules, automata, row_logits
):
    model = dataclasses.replace(MODEL, row_logits=row_logits)
    for seed in range(3):
        state = play(params, rules, seed, temperature=0.7)
        allowed = said_again(automata, state)
        x_BTD = transformer.hidden(model, params, state.tokens_BS[:, :-1])
        within, anything = (
            np.asarray(score_tokens(model, params, x_BTD, state.tokens_BS, 0.7, limits)[0])
            for limits in (allowed, None)
        )
        sampled = state.loss_mask_BS & (np.arange(4) != 2)[:, None]
        assert sampled.sum() > 10
        np.testing.assert_allclose(within[sampled], state.logprobs_BS[sampled], atol=1e-4)
        assert np.abs(anything - state.logprobs_BS)[sampled].max() > 0.5


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_turn_that_stays_within_the_grammar_is_what_it_was_without(params, temperature):
    free = turns(play(params, None, temperature=temperature, new_tokens=6))
    rows, other = [], []
    for turn in free:
        around = [[35, 35, 35, token] for token in range(20, 30)]
        rows.append((grammar.build([turn, *around], [OPEN], [CLOSE]), np.ones(11, bool)))
        other.append((grammar.build(around, [OPEN], [CLOSE]), np.ones(10, bool)))
    within, beside = (
        turns(play(params, grammar.join(r, FREE_V), temperature=temperature, new_tokens=6))
        for r in (rows, other)
    )
    assert [turn[:6] for turn in within] == free
    assert all(turn[:6] != said for turn, said in zip(beside, free, strict=True))


@pytest.mark.parametrize("new_tokens", [1, 7, 9])
def test_a_turn_ends_in_time_however_little_is_left(params, rules, new_tokens):
    for seed in range(4):
        for row, turn in enumerate(turns(play(params, rules, seed, new_tokens=new_tokens))):
            if row != 2:
                assert turn[-1] == STOP
                assert len(turn) <= max(new_tokens, 1 + 1 + 6)


def test_a_turn_without_room_is_not_begun(params, automata):
    rules = grammar.join([(automata[0], np.ones(4, bool))] * 4, FREE_V)
    config = dataclasses.replace(CONFIG, context=12)
    # A turn takes up to 8 tokens; the prompts leave 9, 7, 11 and 10.
    state = play(params, rules, config=config, new_tokens=10)
    assert state.truncated_B.tolist() == [False, True, False, False]
    assert turns(state)[1] == [] and state.length_B[1] == len(PROMPTS[1])
    assert all(turn[-1] == STOP for turn in turns(state) if turn)


def test_rows_split_over_a_mesh_sample_the_same_tokens(params, rules):
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2), jax.devices())
    with jax.set_mesh(mesh):
        split = play(params, rules, mesh=mesh)
    np.testing.assert_array_equal(split.tokens_BS, play(params, rules).tokens_BS)


def test_other_endings_of_the_same_automata_compile_nothing(params, rules, automata):
    play(params, rules)
    compiled = sampler.jit_decode._cache_size()
    long, short = automata
    other = [(short, np.array([True, False])), (long, np.array([True, False, False, False]))]
    play(params, grammar.join([*other, None, None], FREE_V))
    assert sampler.jit_decode._cache_size() == compiled


def test_thousands_of_endings_share_their_beginnings():
    digits = list(itertools.product(range(7, 17), repeat=3))
    endings = [[EXEC, *three, STOP] for three in digits]
    built = grammar.build(endings, [OPEN], [CLOSE])
    assert len(built.count_N) == 3 + 1 + 10 + 100 + 1000 + 1000
    for ending, path in zip(endings, built.path_RL, strict=True):
        node = grammar.ROOT
        for token, child in zip(ending, path, strict=True):
            first = built.first_N[node]
            of_node = slice(first, first + built.count_N[node])
            assert (
                dict(zip(built.token_E[of_node], built.child_E[of_node], strict=True))[token]
                == child
            )
            node = child


def test_symbols_of_several_tokens_are_walked_through(params):
    """As in a published vocabulary, in which both symbols begin with the bracket of an ending."""
    bracket, opening, closing = 6, [6, 13, 14], [6, 15, 14]
    endings = [[bracket, 7, 8, STOP], [bracket, 9, STOP]]
    one = grammar.build(endings, opening, closing)
    rules = grammar.join([(one, np.ones(2, bool))] * 4, FREE_V)
    assert rules.shortest_B.tolist() == [3 + 3 + 4] * 4
    taken, thought = set(), 0
    for seed in range(10):
        for turn in turns(play(params, rules, seed, temperature=3.0)):
            assert turn[:3] == opening
            close = turn.index(bracket, 1)
            assert FREE_V[turn[3:close]].all()
            assert turn[close : close + 3] == closing and turn[close + 3 :] in endings
            thought += close - 3
            taken.add(len(turn) - close)
    assert thought and len(taken) == 2
