"""Constrained turns: a policy names offered candidates, and nothing else."""

import dataclasses

import jax
import numpy as np
import pytest

from autollm_jax.agent import constraint, rollout
from autollm_jax.agent.environment_turns import Start
from autollm_jax.gym.environment import Episode
from autollm_jax.rl import grammar
from autollm_jax.rl.sampler import SamplerConfig
from autollm_jax.text import prompts
from autollm_jax.text.parsing import parse_action
from autollm_jax.text.symbols import CONTROL, LETTERS, PANELS, PERCENTS, SYMBOLS, THINK_END
from tests.families import decided, panel_of

from .conftest import BUDGET

KEY = jax.random.key(0)
CONFIG = rollout.PlayConfig(
    SamplerConfig(context=1024, cache_block=1024, chunk_sizes=(256,)), max_new_tokens=16
)


@pytest.fixture(scope="module")
def few(bowl):
    """An experiment of four configurations."""
    return bowl("few", 1e7, 2e8, (1e-3, 64), learning_rates=(1e-3, 2e-3), batch_sizes=(32, 64))


@pytest.fixture
def starts(pairs, few):
    """Fresh episodes: two on a pair of each kind, and two on four configurations."""
    games = [(pair.target, pair.evidence) for pair in pairs] + [(few, ())]
    return [
        Start(Episode(*game, BUDGET + 3 * (game[0] is few)), panel_of(game[0].setting, game[1]))
        for game in games
        for _ in range(2)
    ]


def play(model, params, tokenizer, starts, config=CONFIG):
    policy = rollout.Policy(model, params, tokenizer)
    return rollout.play(policy, config, starts, range(len(starts)), KEY)


def test_every_symbol_is_one_token_wherever_it_stands(tokenizer):
    assert {*CONTROL, *LETTERS, *PANELS, *(f"{p:g}%" for p in PERCENTS)} < {*SYMBOLS}
    ids = [tokenizer.encode(symbol) for symbol in SYMBOLS]
    assert all(len(each) == 1 for each in ids) and len({each[0] for each in ids}) == len(SYMBOLS)
    for symbol, (token,) in zip(SYMBOLS, ids, strict=True):
        assert token in tokenizer.encode(f"trust{symbol}trials")
        assert tokenizer.decode([token]) == symbol


def test_an_untrained_policy_names_offered_untried_candidates_only(
    model, params, tokenizer, starts
):
    played = play(model, params, tokenizer, starts)
    counts = [[len(offer.rows) for offer in offers] for offers in played.offers]
    for start, offered, turns in zip(starts, counts, played.transcripts, strict=True):
        trials, letters = start.episode.trials, []
        assert all(t.valid and not t.matched and t.status != "infeasible" for t in trials)
        assert len({trial.row for trial in trials}) == len(trials) == len(offered)
        for turn, count in zip(turns[1::2], offered, strict=True):
            letters.append(parse_action(turn.text).letter)
            assert letters[-1] < count
    # The last two episodes end with the fourth configuration, before their budget does.
    assert counts[-2:] == [[4, 3, 2, 1]] * 2 and starts[-1].episode.budget == 6
    assert all(start.episode.done for start in starts)


def test_without_the_constraint_it_runs_nothing(model, params, tokenizer, starts):
    play(model, params, tokenizer, starts[:8], dataclasses.replace(CONFIG, constrained=False))
    assert not any(trial.valid for start in starts[:8] for trial in start.episode.trials)


def test_the_teachers_turns_are_within_the_grammar(tokenizer, taught):
    close, automaton = tokenizer.id_of(THINK_END), constraint.letters(tokenizer)
    for trajectory, _ in taught:
        for turn in trajectory.turns[1::2]:
            tokens = tokenizer.encode_agent(turn.text)
            thought = tokens[1 : tokens.index(close)]
            assert thought and constraint.free_tokens(tokenizer)[thought].all()
            may_R = np.ones(len(LETTERS), bool)
            free_T, token_TK = grammar.steps(automaton, may_R, tokens, len(tokens) + 9)
            free_V = constraint.free_tokens(tokenizer)
            for token, free, token_K in zip(tokens, free_T, token_TK, strict=True):
                assert token in token_K or (free and free_V[token])


def test_an_episode_that_outgrows_the_context_ends_without_an_invalid_trial(
    model, params, tokenizer, starts
):
    for start, spare in zip(starts, (20, 70), strict=False):
        prompt = prompts.describe(decided(start.episode), full=False)
        size = len(tokenizer.encode_opening(prompt)) + spare
        sizes = dataclasses.replace(CONFIG.sampler, context=size, cache_block=size)
        play(model, params, tokenizer, [start], dataclasses.replace(CONFIG, sampler=sizes))
        assert start.episode.done and 0 < len(start.episode.trials) < BUDGET
        assert all(trial.valid for trial in start.episode.trials)


def test_free_text_cannot_spell_a_symbol_of_the_turn(tokenizer):
    free_V = constraint.free_tokens(tokenizer)
    for symbol in CONTROL:
        assert not free_V[tokenizer.id_of(symbol)]
        assert not free_V[tokenizer.encode(symbol, allow_symbols=False)].all()
    assert free_V.mean() > 0.4 and all(free_V[tokenizer.id_of(name)] for name in PANELS)
    assert not free_V[[tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id]].any()
