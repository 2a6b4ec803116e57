import dataclasses
import functools

import jax
import numpy as np
import pytest

from autollm_jax.agent import rollout
from autollm_jax.agent.dialogue import PolicyTokenizer, encode_turn
from autollm_jax.agent.distillation import encode_conversation
from autollm_jax.curriculum import synthetic
from autollm_jax.curriculum.pairs import CurationConfig, curate
from autollm_jax.curriculum.teacher import SimulationConfig, respond, simulate
from autollm_jax.data.tokenizer import train_tokenizer
from autollm_jax.errors import UserError
from autollm_jax.evaluation.runner import Game
from autollm_jax.gym.environment import Episode
from autollm_jax.rl import sampler
from autollm_jax.rl.grpo import GRPOHyperparameters
from autollm_jax.rl.logprobs import token_logprobs
from autollm_jax.rl.loop import GRPOLoopConfig
from autollm_jax.rl.loop import score as score_batch
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.text import prompts
from tests.families import observed

BUDGET = 3
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def pairs():
    return curate([], CurationConfig(seed=1, pairs=12, synthetic=1.0, pairs_per_family=4))


@pytest.fixture(scope="module")
def trajectories(pairs):
    config = SimulationConfig(budget=BUDGET, perturbed=0.0)
    return [simulate(pair, n, BUDGET, config) for n, pair in enumerate(pairs)]


@pytest.fixture(scope="module")
def tokenizer(trajectories):
    made = train_tokenizer(
        [t.text for t in trajectories],
        len(prompts.SYMBOLS) + 400,
        user_defined_symbols=prompts.SYMBOLS,
    )
    return PolicyTokenizer(made.model)


CONFIG = rollout.PlayConfig(
    sampler.SamplerConfig(context=2048, cache_block=2048, chunk_sizes=(256,)), max_new_tokens=16
)


def episodes_of(pairs, copies=1):
    return [Episode(p.target, p.evidence, BUDGET) for p in pairs for _ in range(copies)]


def play(model, params, tokenizer, episodes, config=CONFIG, **more):
    policy, layout = rollout.Policy(model, params, tokenizer), rollout.Layout(**more)
    return rollout.play(policy, config, episodes, range(len(episodes)), KEY, layout)


@pytest.fixture(scope="module")
def group(model, params, tokenizer, pairs):
    """Two groups of two, played by an untrained policy at temperature 1."""
    episodes = episodes_of(pairs[:2], copies=2)
    return episodes, play(model, params, tokenizer, episodes, group_size=2)


def speak(monkeypatch, said):
    """Let each row's turns be said(row, number of the turn) in place of the policy's samples."""

    def generate(model, params, config, state, key, turn, active_B, grammar):
        number_B, start_B = np.array(state.turn_B), np.asarray(state.length_B)
        chunks = [said(row, number_B[row]) if on else [] for row, on in enumerate(active_B)]
        state = sampler.append(model, params, config, state, chunks)
        turns_BS = np.array(state.turns_BS)
        for row, chunk in enumerate(chunks):
            turns_BS[row, start_B[row] : start_B[row] + len(chunk)] = number_B[row]
        return dataclasses.replace(state, turns_BS=turns_BS, turn_B=number_B + active_B)

    monkeypatch.setattr(rollout.sampler, "generate", generate)


def test_rollout_and_distillation_lay_tokens_out_alike(
    monkeypatch, model, params, tokenizer, pairs, trajectories
):
    said = [
        [encode_turn(tokenizer, turn, opens=False) for turn in t.turns if turn.role == "agent"]
        for t in trajectories[:2]
    ]

    speak(monkeypatch, lambda row, turn: said[row][turn])
    played = play(model, params, tokenizer, episodes_of(pairs[:2]))
    for row, trajectory in enumerate(trajectories[:2]):
        tokens, mask = encode_conversation(tokenizer, trajectory.turns)
        length = played.state.length_B[row]
        np.testing.assert_array_equal(played.state.tokens_BS[row, :length], tokens)
        np.testing.assert_array_equal(played.state.loss_mask_BS[row, :length], mask)
        assert played.transcripts[row] == list(trajectory.turns)


def test_tokens_trained_on_are_the_tokens_sampled(monkeypatch, model, params, tokenizer, pairs):
    sampled, genuine = {}, sampler.generate

    def recording(model, params, config, state, key, turn, active_B, grammar):
        start_B, number_B = np.array(state.length_B), np.array(state.turn_B)
        state = genuine(model, params, config, state, key, turn, active_B, grammar)
        for row in np.flatnonzero(active_B):
            ids = np.array(state.tokens_BS[row, start_B[row] : int(state.length_B[row])])
            sampled[row, number_B[row]] = ids.tolist()
        return state

    monkeypatch.setattr(rollout.sampler, "generate", recording)
    played = play(model, params, tokenizer, episodes_of(pairs[:2]))
    batch = rollout.rollout_batch(played, BUDGET)
    assert len(sampled) == 2 * BUDGET
    for (row, turn), ids in sampled.items():
        assert batch.tokens_BT[row][batch.turns_BT[row] == turn].tolist() == ids
    # Encoding what was decoded would have given other tokens.
    assert any(tokenizer.encode(tokenizer.decode(ids)) != ids for ids in sampled.values())


def test_environment_tokens_are_those_of_the_transcript(group, tokenizer):
    _, played = group
    for row, turns in enumerate(played.transcripts):
        expected = []
        for number, turn in enumerate(turns):
            if turn.role == "environment":
                expected += encode_turn(tokenizer, turn, opens=number == 0)
        length = played.state.length_B[row]
        given = played.state.tokens_BS[row, :length][played.state.turns_BS[row, :length] < 0]
        assert given.tolist() == expected


def test_recorded_logprobs_equal_those_the_trainer_recomputes(group, model, params):
    _, played = group
    loop_config = GRPOLoopConfig(steps=1, group_size=2, minibatch_rows=4)
    batch, _ = score_batch(
        rollout.rollout_batch(played, BUDGET), GRPOHyperparameters(), loop_config
    )
    recomputed, _ = jax.jit(functools.partial(token_logprobs, model))(
        params, batch.tokens_BT, batch.segments_BT, batch.positions_BT
    )
    assert batch.mask_BT.sum() > 100
    np.testing.assert_allclose(
        np.where(batch.mask_BT, recomputed, 0), batch.behaviour_BT, rtol=0, atol=1e-4
    )


def test_every_episode_is_played_to_its_end_and_pays_its_rewards(group):
    episodes, played = group
    assert all(episode.done for episode in episodes)
    for episode, rewards in zip(episodes, played.rewards, strict=True):
        assert rewards == episode.rewards and len(rewards) == BUDGET


def test_members_of_a_group_share_the_prompt_and_differ_in_their_samples(group):
    _, played = group
    first, second = played.transcripts[:2]
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_members_of_a_group_play_one_experiment(model, params, tokenizer, pairs):
    with pytest.raises(ValueError, match="different experiments"):
        play(model, params, tokenizer, episodes_of(pairs[:2]), group_size=2)


def test_metrics_tell_an_untrained_policy(group):
    episodes, played = group
    metrics = rollout.rollout_metrics(played, episodes)
    assert metrics["invalid_share"] == 1 and metrics["regret"] == 1
    np.testing.assert_allclose(metrics["reward"], -BUDGET * 0.05, rtol=1e-6)
    assert 0 < metrics["idle_ratio"] < 1


def test_a_prompt_that_does_not_fit_is_a_users_error(model, params, tokenizer, pairs):
    small = dataclasses.replace(CONFIG, sampler=dataclasses.replace(CONFIG.sampler, context=64))
    with pytest.raises(UserError, match="context of 64 tokens has no room"):
        play(model, params, tokenizer, episodes_of(pairs[:1]), config=small)


def test_an_episode_that_outgrows_the_context_ends(model, params, tokenizer, pairs):
    prompt = prompts.describe(observed(episodes_of(pairs[:1])[0]))
    size = len(tokenizer.encode_opening(prompt)) + CONFIG.max_new_tokens + 4
    sizes = dataclasses.replace(CONFIG.sampler, context=size, cache_block=size)
    config = dataclasses.replace(CONFIG, sampler=sizes)
    episodes = episodes_of(pairs[:1])
    played = play(model, params, tokenizer, episodes, config=config)
    assert played.state.truncated_B.tolist() == [True]
    assert episodes[0].done and len(episodes[0].trials) == 1


def test_saying_done_ends_the_episode_without_a_trial(monkeypatch, model, params, tokenizer, pairs):
    ids = tokenizer.encode('<exec>{"done": true}</exec><end>')
    speak(monkeypatch, lambda row, turn: ids)
    episodes = episodes_of(pairs[:1])
    played = play(model, params, tokenizer, episodes)
    assert episodes[0].done and not episodes[0].trials
    assert played.rewards == [[0]]


def test_what_the_thinking_states_is_checked_in_the_state_in_which_it_was_said(
    monkeypatch, model, params, tokenizer, pairs
):
    (episode,) = episodes_of(pairs[:1])
    first = respond(observed(episode))
    ids = tokenizer.encode(first)
    speak(monkeypatch, lambda row, turn: ids)
    player = rollout.policy_player(model, params, tokenizer, CONFIG, rows=1)
    (said,) = player([Game(episode, seed=0)])
    assert len(said["claims"]) == len(episode.trials) == BUDGET
    before, after = said["claims"][:2]
    assert before["n"] == before["true"] > 0 == before["unread"]
    # What was the lowest forecast has been tried: said again, it is false.
    assert after["n"] == before["n"] and after["true"] < after["n"]


def test_only_what_is_scored_is_checked(group):
    _, played = group
    assert played.audits == [[]] * 4


def test_a_player_plays_a_game_alike_in_any_batch(model, params, tokenizer, pairs):
    def texts(chosen, rows):
        games = [Game(episode, seed=5) for episode in episodes_of(chosen)]
        player = rollout.policy_player(model, params, tokenizer, CONFIG, rows=rows)
        transcripts = player(games)
        assert all(game.episode.done for game in games)
        return [transcript["text"] for transcript in transcripts]

    together, last_alone = texts(pairs[:3], rows=4), texts(pairs[2:3], rows=2)
    assert together[2] == last_alone[0]
    assert len(set(together)) == 3


def test_a_players_identity_names_its_parameters(model, params, tokenizer):
    other = jax.tree.map(lambda x: x * 1.01, params)
    identities = {
        rollout.policy_player(model, p, tokenizer, CONFIG).identity for p in (params, params, other)
    }
    assert len(identities) == 2


def test_rollouts_of_a_step_are_reproducible(model, params, tokenizer, pairs):
    roll = rollout.make_rollout(
        model, tokenizer, CONFIG, lambda step: [functools.partial(Episode, pairs[step].target,
        pairs[step].evidence, BUDGET)], group_size=2,
    )  # fmt: skip
    (a, _), (b, _), (c, _) = (roll(params, jax.random.fold_in(KEY, s), s) for s in (0, 0, 1))
    np.testing.assert_array_equal(a.tokens_BT, b.tokens_BT)
    assert (a.tokens_BT != c.tokens_BT).any()
    assert a.rewards_BJ.shape == (2, BUDGET)


def test_synthetic_families_are_what_these_tests_play_on(pairs):
    assert {pair.provenance for pair in pairs} == {synthetic.PROVENANCE}


def test_play_on_a_mesh_is_the_same(model, params, tokenizer, pairs, group):
    mesh = make_mesh(MeshShape(data=2), jax.devices()[:2])
    episodes = episodes_of(pairs[:2], copies=2)
    split = play(model, params, tokenizer, episodes, group_size=2, mesh=mesh)
    np.testing.assert_array_equal(split.state.tokens_BS, group[1].state.tokens_BS)


def test_a_second_rollout_on_a_mesh_compiles_nothing(model, params, tokenizer, pairs):
    mesh = make_mesh(MeshShape(data=2), jax.devices()[:2])
    for _ in range(2):
        compiled = sampler.jit_append._cache_size(), sampler.jit_decode._cache_size()
        play(model, params, tokenizer, episodes_of(pairs[:2], copies=2), group_size=2, mesh=mesh)
    assert (sampler.jit_append._cache_size(), sampler.jit_decode._cache_size()) == compiled
