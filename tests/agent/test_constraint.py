import dataclasses
import itertools
import re

import jax
import numpy as np
import pytest

from autollm_jax.agent import constraint, rollout
from autollm_jax.agent.dialogue import PolicyTokenizer
from autollm_jax.curriculum.teacher import respond
from autollm_jax.data.tokenizer import train_tokenizer
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.gym.splits import split
from autollm_jax.rl import grammar
from autollm_jax.rl.sampler import SamplerConfig
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.text import prompts
from autollm_jax.text.parsing import THINK_END
from autollm_jax.text.playing import act
from tests.families import observed

BUDGET = 3
KEY = jax.random.key(0)
CONFIG = rollout.PlayConfig(
    SamplerConfig(context=1536, cache_block=1536, chunk_sizes=(256,)),
    max_new_tokens=16,
    constrained=True,
)


@pytest.fixture(scope="module")
def own():
    """One experiment of each task of the committed tables, and cheap ones as its evidence."""
    training = split(load_experiments(["gym_data"]), "dev").training
    tasks = sorted({e.task for e in training})
    of_task = [[e for e in training if e.task == task] for task in tasks]
    return [(members[-1], tuple(members[:-1][:2])) for members in of_task]


def researched(target, evidence, budget=BUDGET):
    """Play the researcher; return his turns, and what the environment said."""
    episode, said = Episode(target, evidence, budget), []
    while not episode.done:
        observation = observed(episode)
        said += [prompts.describe(observation), respond(observation)]
        act(episode, said[-1])
    return said[1::2], said[::2]


@pytest.fixture(scope="module")
def tokenizer(own):
    texts = [text for pair in own for part in researched(*pair) for text in part]
    made = train_tokenizer(
        texts, len(prompts.SYMBOLS) + 500, user_defined_symbols=prompts.SYMBOLS, split_digits=False
    )
    return PolicyTokenizer(made.model)


def play(model, params, tokenizer, episodes, config=CONFIG, mesh=None):
    policy, layout = rollout.Policy(model, params, tokenizer), rollout.Layout(mesh=mesh)
    return rollout.play(policy, config, episodes, range(len(episodes)), KEY, layout)


def assert_own_untried(episodes):
    for episode in episodes:
        rows = [episode.setting.cells.find(trial.config) for trial in episode.trials]
        assert all(t.valid and not t.matched and t.status != "infeasible" for t in episode.trials)
        assert len(set(rows)) == len(rows)


@pytest.fixture(scope="module")
def large(bowl):
    """An experiment of the largest public tables' size: 2,200 rates and batches."""
    return bowl(
        "large", 4e7, 1e9, (2e-3, 256),
        learning_rates=tuple(float(f"{r:.3g}") for r in np.geomspace(1e-5, 1e-1, 50)),
        batch_sizes=tuple(range(16, 16 + 44 * 24, 24)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def played(model, params, tokenizer, own, large):
    """An untrained policy's episodes on all tasks and the large space, at temperature 1."""
    pairs = [*own, (large, ())]
    episodes = [Episode(*pair, BUDGET) for pair in pairs for _ in range(2)]
    return episodes, play(model, params, tokenizer, episodes)


def test_an_untrained_policy_tries_measured_untried_configurations_only(played):
    episodes, _ = played
    assert {e.setting.task for e in episodes} == {
        "architecture", "data_mixture", "grpo", "pretraining",
    }  # fmt: skip
    assert len(episodes[-1].setting.cells) > 2000
    assert [len(episode.trials) for episode in episodes] == [BUDGET] * len(episodes)
    assert_own_untried(episodes)


def test_without_the_constraint_it_runs_nothing(model, params, tokenizer, own):
    episodes = [Episode(*pair, BUDGET) for pair in own]
    play(model, params, tokenizer, episodes, dataclasses.replace(CONFIG, constrained=False))
    assert not any(trial.valid for episode in episodes for trial in episode.trials)


def test_play_on_eight_devices_is_the_same(model, params, tokenizer, own, large, played):
    mesh = make_mesh(MeshShape(data=2, tensor=4), jax.devices())
    episodes = [Episode(*pair, BUDGET) for pair in [*own, (large, ())] for _ in range(2)]
    split_up = play(model, params, tokenizer, episodes, mesh=mesh)
    np.testing.assert_array_equal(split_up.state.tokens_BS, played[1].state.tokens_BS)


def test_endings_are_the_tokens_that_training_turns_end_with(tokenizer, own):
    close = tokenizer.id_of(THINK_END)
    for target, evidence in own:
        built = constraint.endings_of(tokenizer, target.cells).automaton
        for text in researched(target, evidence)[0]:
            tokens = tokenizer.encode_agent(text)
            thought = tokens[1 : tokens.index(close)]
            assert thought and constraint.free_tokens(tokenizer)[thought].all()
            node = grammar.ROOT
            for token in tokens[tokens.index(close) + 1 :]:
                edges = range(built.first_N[node], built.first_N[node] + built.count_N[node])
                node = next(built.child_E[e] for e in edges if built.token_E[e] == token)
            assert built.count_N[node] == 0  # an ending's end


def test_tokens_end_where_numbers_end(tokenizer, own):
    """A number that shared a token with the sign behind it would not be the same everywhere."""
    found = 0
    for target, evidence in own:
        for text in itertools.chain(*researched(target, evidence)):
            ends = set(
                itertools.accumulate(len(tokenizer.decode([i])) for i in tokenizer.encode(text))
            )
            for number in re.finditer(r"(?<![\w.^-])\d+(?:\.\d+)?(?:e-\d)?[kMB%]?(?!\w)", text):
                assert number.end() in ends, text[number.start() - 20 : number.end() + 20]
                found += 1
    assert found > 500


def test_every_configuration_is_an_ending(tokenizer, own, large):
    for target in (*(target for target, _ in own), large):
        rows_R = constraint.endings_of(tokenizer, target.cells).rows_R
        assert rows_R.tolist() == list(range(len(target.cells)))


def test_configurations_over_the_limit_are_not_allowed(tokenizer, own):
    target, evidence = next(pair for pair in own if pair[0].task == "architecture")
    rows_R = constraint.endings_of(tokenizer, target.cells).rows_R
    may_R = constraint.allowed_endings(Episode(target, evidence, 1), rows_R)
    assert 0 < may_R.sum() < len(rows_R)
    np.testing.assert_array_equal(may_R, target.feasible_R[rows_R])


def test_tried_configurations_are_allowed_once_there_are_no_others(model, params, tokenizer, bowl):
    few = bowl("few", 1e7, 2e8, (1e-3, 64), learning_rates=(1e-3, 2e-3), batch_sizes=(32, 64))
    episodes = [Episode(few, (), 5)]
    play(model, params, tokenizer, episodes)
    rows = [few.cells.find(trial.config) for trial in episodes[0].trials]
    assert set(rows[:4]) == {0, 1, 2, 3} and rows[4] in rows[:4]
    assert not any(trial.matched for trial in episodes[0].trials)


def test_of_mixtures_that_are_spelled_alike_one_is_allowed(tokenizer, own):
    target = next(target for target, _ in own if target.task == "data_mixture")
    ((name, weights),) = target.configurations[0].items()
    heaviest, next_one = sorted(weights, key=weights.get)[:-3:-1]
    moved = {heaviest: weights[heaviest] + 2e-3, next_one: weights[next_one] - 2e-3}
    twin = {name: weights | moved}
    cells = dataclasses.replace(
        target.cells, configurations=(*target.configurations, target.space.validate(twin))
    )
    assert len(cells) == len(target.cells) + 1
    rows_R = constraint.endings_of(tokenizer, cells).rows_R
    assert rows_R.tolist() == list(range(len(target.cells)))


def test_an_episode_that_outgrows_the_context_ends_without_an_invalid_trial(
    model, params, tokenizer, own
):
    prompt = prompts.describe(observed(Episode(*own[0], BUDGET)))
    for spare in (20, 70):
        size = len(tokenizer.encode_opening(prompt)) + spare
        sizes = dataclasses.replace(CONFIG.sampler, context=size, cache_block=size)
        episodes = [Episode(*own[0], BUDGET)]
        play(model, params, tokenizer, episodes, dataclasses.replace(CONFIG, sampler=sizes))
        assert episodes[0].done and len(episodes[0].trials) < BUDGET
        assert_own_untried(episodes)


def test_free_text_cannot_spell_a_symbol(tokenizer):
    free_V = constraint.free_tokens(tokenizer)
    for symbol in prompts.CONTROL_SYMBOLS:
        assert not free_V[tokenizer.id_of(symbol)]
        assert not free_V[tokenizer.encode(symbol, allow_symbols=False)].all()
    assert free_V.mean() > 0.9
    assert not free_V[[tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id]].any()


def test_grpo_refuses_constrained_rollouts(model, tokenizer):
    with pytest.raises(ValueError, match="constrained must be False"):
        rollout.make_rollout(model, tokenizer, CONFIG, lambda step: [], group_size=2)
