import dataclasses
import functools
import types

import jax
import numpy as np
import pytest

from autollm_jax.agent import grpo_rollout, player, rollout
from autollm_jax.agent.constraint import letters
from autollm_jax.agent.dialogue import encode_turn, panel_ids
from autollm_jax.agent.distillation import encode_conversation
from autollm_jax.agent.environment_turns import Start
from autollm_jax.curriculum.teacher import turn_text
from autollm_jax.errors import UserError
from autollm_jax.evaluation.runner import Game
from autollm_jax.gym.environment import Episode
from autollm_jax.models import transformer
from autollm_jax.rl import sampler
from autollm_jax.rl.batches import GRPOLoopConfig
from autollm_jax.rl.grpo import GRPOHyperparameters
from autollm_jax.rl.logprobs import score_tokens
from autollm_jax.rl.scoring import score as score_batch
from autollm_jax.sharding.mesh import MeshShape, for_play, make_mesh
from autollm_jax.text.symbols import PANELS
from tests.families import decided, panel_of

from .conftest import BUDGET

KEY = jax.random.key(0)
CONFIG = rollout.PlayConfig(
    sampler.SamplerConfig(context=1024, cache_block=1024, chunk_sizes=(256,)), max_new_tokens=16
)
ALL = len(PANELS) - 1


def starts_of(pairs, copies=1, order=0):
    return [
        Start(Episode(p.target, p.evidence, BUDGET), panel_of(p.target.setting, p.evidence), order)
        for p in pairs
        for _ in range(copies)
    ]


def play(model, params, tokenizer, starts, config=CONFIG, **more):
    policy, layout = rollout.Policy(model, params, tokenizer), rollout.Layout(**more)
    return rollout.play(policy, config, starts, range(len(starts)), KEY, layout)


@pytest.fixture(scope="module")
def group(model, params, tokenizer, pairs):
    """Two groups of two, played by an untrained policy at temperature 1."""
    starts = starts_of(pairs[:2], copies=2)
    played = play(model, params, tokenizer, starts, group_size=2)
    return [start.episode for start in starts], played


def speak(monkeypatch, said):
    """Let each row's turns be said(row, number of the turn) in place of the policy's samples."""

    def speaking(model, params, config, state, key, turn, speakers, *_):
        number_B, start_B = np.array(state.turn_B) - 1, np.array(state.length_B)
        on_B = speakers.going_B
        chunks = [said(row, number_B[row]) if on else [] for row, on in enumerate(on_B)]
        state = sampler.append(model, params, config, state, chunks)
        turns_BS = np.array(state.turns_BS)
        for row, chunk in enumerate(chunks):
            turns_BS[row, start_B[row] : start_B[row] + len(chunk)] = number_B[row]
        silent = dataclasses.replace(speakers, going_B=np.zeros_like(on_B))
        return dataclasses.replace(state, turns_BS=turns_BS), silent

    monkeypatch.setattr(rollout.sampler, "speak", speaking)


def test_rollout_and_distillation_lay_tokens_out_alike(
    monkeypatch, model, params, tokenizer, pairs, taught
):
    said = [
        [encode_turn(tokenizer, turn, opens=False) for turn in t.turns[1::2]] for t, _ in taught[:2]
    ]
    speak(monkeypatch, lambda row, turn: said[row][turn])
    starts = [starts_of([pairs[n]], order=taught[n][1])[0] for n in range(2)]
    played = play(model, params, tokenizer, starts)
    for row, (trajectory, _) in enumerate(taught[:2]):
        tokens, mask = encode_conversation(tokenizer, trajectory.turns)
        length = played.state.length_B[row]
        np.testing.assert_array_equal(played.state.tokens_BS[row, :length], tokens)
        np.testing.assert_array_equal(played.state.loss_mask_BS[row, :length], mask)
        assert [t.text for t in played.transcripts[row]] == [t.text for t in trajectory.turns]


def test_tokens_trained_on_are_the_tokens_sampled(monkeypatch, model, params, tokenizer, pairs):
    sampled, genuine = {}, sampler.speak

    def recording(model, params, config, state, key, turn, speakers, *rest):
        start_B, number_B = np.array(state.length_B), np.array(state.turn_B) - 1
        going_B = speakers.going_B
        state, speakers = genuine(model, params, config, state, key, turn, speakers, *rest)
        for row in np.flatnonzero(going_B):
            ids = np.array(state.tokens_BS[row, start_B[row] : int(state.length_B[row])])
            sampled[row, number_B[row]] = ids.tolist()
        return state, speakers

    monkeypatch.setattr(rollout.sampler, "speak", recording)
    played = play(model, params, tokenizer, starts_of(pairs[:2]))
    batch = grpo_rollout.rollout_batch(played, BUDGET, tokenizer, CONFIG)
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


def test_recorded_logprobs_equal_those_the_trainer_recomputes(group, model, params, tokenizer):
    _, played = group
    loop_config = GRPOLoopConfig(steps=1, group_size=2, minibatch_rows=4)
    rolled = grpo_rollout.rollout_batch(played, BUDGET, tokenizer, CONFIG)
    batch, _ = score_batch(rolled, GRPOHyperparameters(), loop_config)
    x_BTD = transformer.hidden(model, params, batch.tokens_BT[:, :-1], batch.positions_BT[:, :-1])
    within, anything = (
        np.where(
            batch.mask_BT, score_tokens(model, params, x_BTD, batch.tokens_BT, 1.0, allowed)[0], 0
        )
        for allowed in (batch.allowed, None)
    )
    assert batch.mask_BT.sum() > 80
    np.testing.assert_allclose(within, batch.behaviour_BT, rtol=0, atol=1e-4)
    assert np.abs(anything - batch.behaviour_BT).max() > 1


def test_a_decision_stands_where_the_panel_is_named_last_and_pays_what_each_would_have(
    monkeypatch, model, params, tokenizer, pairs
):
    starts, said = starts_of(pairs[:1]), []

    def trusting_drift(row, turn):
        decision = decided(starts[row].episode)
        picks = list(decision.offer.picks)
        rewards_P = starts[row].episode.rewards_of(decision.offer.rows)[picks]
        said.append((2 + turn, rewards_P))
        return tokenizer.encode(turn_text(decision, 2 + turn))

    speak(monkeypatch, trusting_drift)
    played = play(model, params, tokenizer, starts)
    batch, plain = (
        grpo_rollout.rollout_batch(played, BUDGET + 1, tokenizer, CONFIG, b) for b in (True, False)
    )
    made, ids_P = batch.decisions, panel_ids(tokenizer)
    assert made.place_BJ[0, BUDGET] == 0 and (made.id_BP == ids_P).all()
    for turn, (trusted, rewards_P) in enumerate(said):
        place = made.place_BJ[0, turn]
        assert batch.tokens_BT[0, place] == ids_P[trusted] and batch.turns_BT[0, place] == turn
        named = np.isin(batch.tokens_BT[0], ids_P) & (batch.turns_BT[0] == turn)
        assert np.flatnonzero(named)[-1] == place
        np.testing.assert_allclose(made.rewards_BJP[0, turn], rewards_P, atol=1e-6)
        # The turn was paid what its panel's pick brings; the baseline is all advisers' pick.
        paid = plain.rewards_BJ[0, turn]
        np.testing.assert_allclose(paid, rewards_P[trusted], atol=1e-6)
        np.testing.assert_allclose(batch.rewards_BJ[0, turn], paid - rewards_P[ALL], atol=1e-6)
    assert np.ptp([r for _, rewards_P in said for r in rewards_P]) > 0.01


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
        play(model, params, tokenizer, starts_of(pairs[:2]), group_size=2)


def test_metrics_tell_an_untrained_policy_and_the_constraint(model, params, tokenizer, pairs):
    for constrained in (False, True):
        starts = starts_of(pairs[:2])
        config = dataclasses.replace(CONFIG, constrained=constrained)
        played = play(model, params, tokenizer, starts, config=config)
        metrics = grpo_rollout.rollout_metrics(played, [start.episode for start in starts])
        assert metrics["invalid_share"] == 1 - constrained and metrics["matched_share"] == 0
        assert (metrics["regret"] == 1) == (not constrained)
        if not constrained:
            np.testing.assert_allclose(metrics["reward"], -BUDGET * 0.05, rtol=1e-6)
        assert 0 < metrics["idle_ratio"] < 1


def test_the_mean_regret_counts_every_trial(model, params, tokenizer, pairs):
    starts, mesh = starts_of(pairs[:3]), make_mesh(MeshShape(data=2), jax.devices()[:2])
    config = dataclasses.replace(CONFIG, temperature=0.0)
    policy = rollout.Policy(model, params, tokenizer)
    found = player.mean_regret(policy, config, starts, 2, mesh)  # the third waits
    regrets = [
        pair.target.outcomes.regrets_R[[trial.row for trial in start.episode.trials]]
        for pair, start in zip(pairs, starts, strict=False)
    ]
    assert found == pytest.approx(np.minimum.accumulate(regrets, axis=1).mean())


def test_a_prompt_that_does_not_fit_is_a_users_error(model, params, tokenizer, pairs):
    small = dataclasses.replace(CONFIG, sampler=dataclasses.replace(CONFIG.sampler, context=64))
    with pytest.raises(UserError, match="context of 64 tokens has no room"):
        play(model, params, tokenizer, starts_of(pairs[:1]), config=small)


def test_saying_done_ends_the_episode_without_a_trial(monkeypatch, model, params, tokenizer, pairs):
    ids = tokenizer.encode('<exec>{"done": true}</exec><end>')
    speak(monkeypatch, lambda row, turn: ids)
    starts = starts_of(pairs[:1])
    played = play(model, params, tokenizer, starts)
    assert starts[0].episode.done and not starts[0].episode.trials
    assert played.rewards == [[0]]


def test_what_the_thinking_states_is_checked_in_the_state_in_which_it_was_said(
    monkeypatch, model, params, tokenizer, pairs
):
    (start,) = starts_of(pairs[:1])
    decision = decided(start.episode)
    ids = tokenizer.encode(turn_text(decision, ALL))
    speak(monkeypatch, lambda row, turn: ids)
    made = player.policy_player(model, params, tokenizer, CONFIG, rows=1)
    (said,) = made([Game(start.episode, seed=0)])
    assert len(said["claims"]) == len(start.episode.trials) == BUDGET
    # Said again, the panel's letter of the first state is another's in some later one.
    assert said["claims"][0] | {"words": 0} == {
        "n": 1, "true": 1, "numbers": 0, "unchecked": 0, "words": 0, "unread": 0
    }  # fmt: skip
    later = [found["true"] for found in said["claims"][1:]]
    state, expected = Episode(pairs[0].target, pairs[0].evidence, BUDGET), []
    for trial in start.episode.trials:
        expected.append(decided(state).offer.picks[ALL] == decision.offer.picks[ALL])
        state.exec_config(trial.config)
    assert [1, *later] == expected


def test_only_what_is_scored_is_checked_and_only_what_is_trained_on_knows_hindsight(group):
    _, played = group
    assert played.audits == [[]] * 4
    assert [len(row) for row in played.hindsight] == [BUDGET] * 4


def test_a_player_plays_a_game_alike_in_any_batch(model, params, tokenizer, pairs):
    def texts(chosen, rows):
        games = [Game(start.episode, seed=5) for start in starts_of(chosen)]
        made = player.policy_player(model, params, tokenizer, CONFIG, rows=rows)
        transcripts = made(games)
        assert all(game.episode.done for game in games)
        return [transcript["text"] for transcript in transcripts]

    together, last_alone = texts(pairs[:3], rows=4), texts(pairs[2:3], rows=2)
    assert together[2] == last_alone[0]
    assert len(set(together)) == 3


@pytest.mark.parametrize("ended_share", [1.0, 0.3])
def test_waiting_groups_take_the_rows_of_finished_ones_and_play_alike(
    monkeypatch, model, params, tokenizer, pairs, ended_share
):
    config = dataclasses.replace(CONFIG, max_new_tokens=8)
    starts = starts_of(pairs[:3], copies=2)
    whole = play(model, params, tokenizer, starts, config, group_size=2)
    again = starts_of(pairs[:3], copies=2)
    config = dataclasses.replace(config, ended_share=ended_share)
    shares, genuine = [], sampler.speak

    def speaking(*arguments):
        shares.append(arguments[-1])
        return genuine(*arguments)

    monkeypatch.setattr(rollout.sampler, "speak", speaking)
    queued = play(model, params, tokenizer, again, config, group_size=2, rows=2)
    for name in ("tokens_BS", "turns_BS", "length_B", "turn_B", "seeds_B", "truncated_B"):
        np.testing.assert_array_equal(getattr(queued.state, name), getattr(whole.state, name), name)
    np.testing.assert_allclose(queued.state.logprobs_BS, whole.state.logprobs_BS, atol=1e-4)
    assert queued.rewards == whole.rewards and len(set(map(str, whole.rewards))) > 1
    assert all(start.episode.done for start in again) and set(shares) == {ended_share}
    sampled = (whole.state.turns_BS >= 0).sum()
    assert sampled == queued.readings <= queued.row_passes < whole.row_passes
    metrics = grpo_rollout.rollout_metrics(queued, [start.episode for start in again])
    assert metrics["idle_rows"] == pytest.approx(1 - sampled / queued.row_passes)


def test_a_players_identity_names_its_parameters(model, params, tokenizer):
    other = jax.tree.map(lambda x: x * 1.01, params)
    identities = {
        player.policy_player(model, p, tokenizer, CONFIG).identity for p in (params, params, other)
    }
    assert len(identities) == 2


def test_rollouts_of_a_step_are_reproducible(model, params, tokenizer, pairs):
    roll = grpo_rollout.make_rollout(
        model, tokenizer, CONFIG,
        lambda step: [functools.partial(lambda n: starts_of(pairs[n : n + 1])[0], step)],
        rollout.Layout(group_size=2),
    )  # fmt: skip
    (a, _), (b, _), (c, _) = (roll(params, jax.random.fold_in(KEY, s), s) for s in (0, 0, 1))
    np.testing.assert_array_equal(a.tokens_BT, b.tokens_BT)
    assert (a.tokens_BT != c.tokens_BT).any()
    assert a.rewards_BJ.shape == (2, BUDGET)
    assert a.allowed.token_BTK.shape[-1] >= len(letters(tokenizer).length_R)


def test_groups_of_equal_returns_are_replaced_by_those_of_further_rounds(
    monkeypatch, model, params, tokenizer, pairs
):
    """In round 0 no group differs, in round 1 the second does, in round 2 both."""
    genuine, rounds, config = grpo_rollout.play, [], dataclasses.replace(CONFIG, max_new_tokens=8)
    returns = [[0, 0, 0, 0], [0, 0, 0, 1], [0, 2, 0, 3], [0, 9, 0, 9]]

    def playing(*arguments, **options):
        played = genuine(*arguments, **options)
        paid = [[float(r)] + [0.0] * (BUDGET - 1) for r in returns[len(rounds) - 1]]
        return dataclasses.replace(played, rewards=paid)

    def starts_of_round(number):
        rounds.append(number)
        return [functools.partial(lambda p: starts_of([p])[0], pair) for pair in pairs[:2]]

    monkeypatch.setattr(grpo_rollout, "play", playing)
    layout = rollout.Layout(group_size=2)
    roll = grpo_rollout.make_rollout(model, tokenizer, config, starts_of_round, layout, refills=3)
    batch, metrics = roll(params, KEY, 1)
    assert rounds == [4, 5, 6] and metrics["groups_that_differ"] == 0
    # The first free place takes round 1's group, the second the first useful one of round 2.
    assert batch.rewards_BJ.sum(1).tolist() == [0, 1, 0, 2]


def test_a_round_is_exchanged_for_what_the_loss_learns_from(
    monkeypatch, model, params, tokenizer, pairs
):
    """Returns differ in each group; one differs in a turn that is not learned, one is cut."""
    genuine, layout = grpo_rollout.rollout_batch, rollout.Layout(group_size=2)
    earned = {0: [[1, 0], [0, 0], [0, 1], [0, 0]], 1: [[0, 3], [0, 2], [5, 0], [5, 1]]}
    cut, rounds = {0: [False, False, True, True], 1: [False] * 4}, []

    def laid_out(*arguments):
        number = len(rounds) - 1
        rewards_BJ, rows_B = np.zeros((4, BUDGET), np.float32), np.array(cut[number])
        rewards_BJ[:, :2] = earned[number]
        taken_BJ = np.ones((4, BUDGET), bool)
        return dataclasses.replace(
            genuine(*arguments), rewards_BJ=rewards_BJ, truncated_B=rows_B, turn_mask_BJ=taken_BJ
        )

    def starts_of_round(number):
        rounds.append(number)
        return [functools.partial(lambda p: starts_of([p])[0], pair) for pair in pairs[:2]]

    monkeypatch.setattr(grpo_rollout, "rollout_batch", laid_out)
    hp = GRPOHyperparameters(first_turn=2, mask_truncated=True)
    config = dataclasses.replace(CONFIG, max_new_tokens=8)
    roll = grpo_rollout.make_rollout(
        model, tokenizer, config, starts_of_round, layout, refills=3, hp=hp
    )
    batch, metrics = roll(params, KEY, 0)
    assert metrics["groups_that_differ"] == 0 and metrics["rounds"] == 2
    assert batch.rewards_BJ[:, :2].tolist() == earned[1]


def test_a_turn_that_ended_at_its_limit_cuts_its_row(tokenizer):
    stop, turns_BT = tokenizer.stop_id, np.array([[-1, 0, 0, -1, 1, 1]] * 3)
    tokens_BT = np.full((3, 6), 9)
    tokens_BT[[0, 0, 1, 2, 2], [2, 5, 5, 2, 4]] = stop
    state = types.SimpleNamespace(tokens_BS=tokens_BT, turns_BS=turns_BT)
    assert grpo_rollout._unfinished(state, stop).tolist() == [False, True, True]


def test_play_within_the_grammar_has_no_turn_that_is_cut(group, tokenizer):
    _, played = group
    batch = grpo_rollout.rollout_batch(played, BUDGET, tokenizer, CONFIG)
    assert CONFIG.constrained and not batch.truncated_B.any()


def test_play_on_a_mesh_is_the_same(model, params, tokenizer, pairs, group):
    mesh = make_mesh(MeshShape(data=2), jax.devices()[:2])
    starts = starts_of(pairs[:2], copies=2)
    split = play(model, params, tokenizer, starts, group_size=2, mesh=mesh)
    np.testing.assert_array_equal(split.state.tokens_BS, group[1].state.tokens_BS)


def test_play_leaves_the_trainers_mesh_for_its_own(model, params, tokenizer, pairs, group):
    mesh = make_mesh(MeshShape(data=1, fsdp=2), jax.devices()[:2])
    starts = starts_of(pairs[:2], copies=2)
    policy = rollout.Policy(model, params, tokenizer)
    with jax.set_mesh(mesh):
        layout = rollout.Layout(group_size=2, mesh=for_play(mesh, 2))
        key = jax.random.key(0)
        played = rollout.play(policy, CONFIG, starts, range(len(starts)), key, layout)
    np.testing.assert_array_equal(played.state.tokens_BS, group[1].state.tokens_BS)


def test_a_second_rollout_on_a_mesh_compiles_nothing(model, params, tokenizer, pairs):
    mesh = make_mesh(MeshShape(data=2), jax.devices()[:2])
    for _ in range(2):
        compiled = sampler.jit_append._cache_size(), sampler.jit_decode._cache_size()
        play(model, params, tokenizer, starts_of(pairs[:2], copies=2), group_size=2, mesh=mesh)
    assert (sampler.jit_append._cache_size(), sampler.jit_decode._cache_size()) == compiled
