import dataclasses
import functools
import gc
import json
import os
import re
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.cluster import preemption
from autollm_jax.errors import UserError
from autollm_jax.models import transformer
from autollm_jax.rl import sampler
from autollm_jax.rl.ahead import load_rollout, save_rollout
from autollm_jax.rl.batches import Decisions, GRPOLoopConfig, RolloutBatch, minibatches
from autollm_jax.rl.grpo import GRPOHyperparameters, decision_loss
from autollm_jax.rl.logprobs import Allowed
from autollm_jax.rl.loop import Selection, train_grpo
from autollm_jax.rl.objective import policy_loss, with_weights
from autollm_jax.rl.scoring import score
from autollm_jax.sharding.mesh import MeshShape, make_mesh, split_mesh
from autollm_jax.training.loop import Site
from autollm_jax.training.optimizer import OptimizerConfig, make_optimizer

MODEL = transformer.TransformerConfig(
    vocab_size=12, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp_width=32
)
SAMPLER = sampler.SamplerConfig(context=8, cache_block=8, chunk_sizes=(4,))
HP = GRPOHyperparameters(kl_coefficient=0.01)
GROUPS, G, STOP = 4, 8, 0


def config(steps, **changes):
    settings = dict(group_size=G, minibatch_rows=16, epochs=2, length_multiple=8, save_every=2)
    return GRPOLoopConfig(steps=steps, **{**settings, **changes})


def even_tokens_pay(params, key, step):
    """Single turns of up to 4 tokens; the reward is the share of even ones."""
    state = sampler.init_state(MODEL, SAMPLER, np.arange(GROUPS * G))
    prompts = np.random.default_rng(step).integers(1, 12, (GROUPS, 2))
    chunks = np.repeat(prompts, G, axis=0).tolist()
    state = sampler.append(MODEL, params, SAMPLER, state, chunks)
    state = sampler.generate(
        MODEL, params, SAMPLER, state, key, sampler.TurnConfig(STOP, max_new_tokens=4)
    )
    state = jax.tree.map(np.asarray, state)
    sampled = state.turns_BS >= 0
    rewards = ((state.tokens_BS % 2 == 0) & sampled).sum(1) / sampled.sum(1)
    batch = RolloutBatch(
        state.tokens_BS, state.length_B, state.turns_BS, state.logprobs_BS,
        rewards[:, None].astype(np.float32), np.ones((GROUPS * G, 1), bool),
    )  # fmt: skip
    return batch, {"reward": rewards.mean()}


@functools.cache
def start_params():
    return jax.jit(functools.partial(transformer.init, MODEL))(jax.random.key(0))


def mesh():
    return make_mesh(MeshShape(data=1), jax.devices()[:1])


def train(path, loop_config, rollout=even_tokens_pay, learning_rate=1e-2, **others):
    given = {"hp": HP, "first": start_params, "selection": None} | others
    optimizer = make_optimizer(
        OptimizerConfig(learning_rate=learning_rate, decay="constant", weight_decay=0.0), 100
    )
    checkpoints = Checkpoints(path / "checkpoints")
    return train_grpo(
        MODEL, given["hp"], loop_config, optimizer, rollout, given["first"],
        Site(mesh(), checkpoints, path), jax.random.key(7), given["selection"],
    )  # fmt: skip


def test_every_row_says_how_well_the_devices_were_used(whole_run):
    rows = metrics_of(whole_run[0])
    updated = [row for row in rows if row["updates"]]
    assert updated and all(0 < row["mfu"] < 1 for row in updated)
    for row in rows:
        assert row["tokens_per_second_per_device"] > 0 and row["peak_memory_bytes"] > 1e8
        seconds = row["rollout_seconds"] + row["update_seconds"]
        tokens = row["tokens_per_second_per_device"] * seconds
        assert tokens > GROUPS * G  # each conversation has more than a token
    compiling = [row["compile_seconds"] for row in rows]
    assert 0 < compiling[0] and compiling == sorted(compiling)


def metrics_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    return path, train(path, config(steps=12))


def test_reward_rises(whole_run):
    rewards = [row["reward"] for row in metrics_of(whole_run[0])]
    assert len(rewards) == 12
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.2


def test_sampler_and_trainer_agree_in_every_steps_first_update(whole_run):
    gaps = [row["logprob_gap"] for row in metrics_of(whole_run[0])]
    assert max(gaps) < 1e-4


def test_a_policy_learns_the_same_where_prompts_are_read_once(tmp_path, capsys):
    settings = {"minibatch_rows": GROUPS * G, "epochs": 1, "share_prefixes": True}
    apart = train(tmp_path / "apart", config(2, **settings | {"share_prefixes": False}))
    together = train(tmp_path / "together", config(2, **settings))
    rows = metrics_of(tmp_path / "together")
    assert all(row["computed_share"] < 0.9 and row["updates"] == 1 for row in rows)
    assert "computed_share" not in metrics_of(tmp_path / "apart")[0]
    assert not any(map(np.array_equal, *map(jax.tree.leaves, (together.params, start_params()))))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), together.params, apart.params
    )
    assert "prompts once a row" not in capsys.readouterr().out
    train(tmp_path / "cut", config(1, **settings | {"microbatches": 8}))  # half a group in each
    told = "minibatch_rows=32 rows do not give each of 8 parts .* whole groups of 8"
    assert re.search(told, capsys.readouterr().out)
    assert "computed_share" not in metrics_of(tmp_path / "cut")[0]


def test_minibatches_that_cut_groups_say_that_nothing_is_shared(tmp_path, capsys):
    train(tmp_path, config(1, minibatch_rows=12, share_prefixes=True))
    assert "minibatch_rows=12 rows are no whole groups of 8" in capsys.readouterr().out
    assert "computed_share" not in metrics_of(tmp_path)[0]


def test_the_first_parameters_stay_in_memory_for_a_reference_alone(tmp_path):
    shape, held = start_params()["embedding"].shape, {}

    def first_params():
        return jax.tree.map(lambda x: jnp.array(x, copy=True), start_params())

    for kl in (0.0, 0.01):

        def rollout(params, key, step, kl=kl):
            gc.collect()
            held[kl] = sum(x.shape == shape for x in jax.live_arrays())
            return even_tokens_pay(params, key, step)

        hp = GRPOHyperparameters(kl_coefficient=kl)
        train(tmp_path / str(kl), config(1), rollout, hp=hp, first=first_params)
    assert held[0.01] == held[0.0] + 1


def test_interrupted_equals_uninterrupted(whole_run, tmp_path):
    train(tmp_path, config(steps=6))
    resumed = train(tmp_path, config(steps=12))
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole_run[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    steps = [row["step"] for row in metrics_of(tmp_path)]
    assert steps == list(range(12))


@pytest.mark.usefixtures("listening")
def test_a_stop_in_a_rollout_saves_what_its_step_began_with(whole_run, tmp_path):
    # In the first step; behind one that has no checkpoint; behind one that has (save_every=2).
    for stopped_at, saved in ((0, None), (3, 3), (5, 5), (6, 6)):

        def stopped(params, key, step, at=stopped_at):
            batch = even_tokens_pay(params, key, step)
            if step == at:
                os.kill(os.getpid(), signal.SIGTERM)
                raise AssertionError("it went on")
            return batch

        with pytest.raises(preemption.Preempted):
            train(tmp_path, config(steps=12), rollout=stopped)
        assert Checkpoints(tmp_path / "checkpoints").latest() == saved
        preemption._asked.clear()
    resumed = train(tmp_path, config(steps=12))
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole_run[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [row["step"] for row in metrics_of(tmp_path)] == list(range(12))


def test_a_finished_run_is_not_run_again(whole_run):
    def never(params, key, step):
        raise AssertionError("rolled out")

    state = train(whole_run[0], config(steps=12), rollout=never)
    np.testing.assert_array_equal(state.step, whole_run[1].step)


def test_equal_rewards_leave_the_policy_as_it_is(tmp_path):
    def flat(params, key, step):
        batch, metrics = even_tokens_pay(params, key, step)
        batch.rewards_BJ[:] = 1.0
        return batch, metrics

    state = train(tmp_path, config(steps=1), rollout=flat)
    jax.tree.map(np.testing.assert_array_equal, state.params, start_params())
    assert metrics_of(tmp_path)[0]["informative_share"] == 0


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    def broken(params, key, step):
        batch, metrics = even_tokens_pay(params, key, step)
        never = np.full_like(batch.behaviour_BT, -np.inf)
        return dataclasses.replace(batch, behaviour_BT=never), metrics

    with pytest.raises(UserError, match="grpo: the loss is .* at step 0"):
        train(tmp_path, config(steps=1), rollout=broken)


def test_a_reward_that_is_not_finite_is_an_error(tmp_path):
    played = RolloutBatch(
        *(np.zeros((2, 4), np.int32), np.array([4, 4]), np.zeros((2, 4), np.int32)),
        *(np.zeros((2, 4)), np.array([[np.nan], [1.0]]), np.ones((2, 1), bool)),
    )
    with pytest.raises(ValueError, match="reward is not finite"):
        score(played, HP, config(1, group_size=2))


def scored_batch():
    B, T = 4, 12
    tokens = np.arange(B * T, dtype=np.int32).reshape(B, T)
    turns = np.full((B, T), -1, np.int32)
    turns[:, 3:5] = 0
    rewards = np.array([[1.0], [1.0], [0.0], [1.0]], np.float32)
    played = RolloutBatch(
        tokens, np.array([5, 5, 6, 5]), turns, np.zeros((B, T), np.float32), rewards,
        np.ones((B, 1), bool),
    )  # fmt: skip
    return score(played, HP, config(1, group_size=2))


def test_rows_are_cut_to_a_multiple_of_the_longest():
    batch, _ = scored_batch()
    assert batch.tokens_BT.shape == (4, 8)
    assert batch.segments_BT is None  # causal attention alone keeps a row from what is behind it


def test_only_groups_with_differences_are_informative():
    _, informative = scored_batch()
    np.testing.assert_array_equal(informative, [False, False, True, True])


def test_every_epoch_sees_each_row_once_and_fill_up_rows_are_masked():
    batch, _ = scored_batch()
    rows = np.array([1, 2, 3])
    pieces = list(minibatches(batch, rows, config(1, minibatch_rows=2, epochs=2), seed=0))
    assert [piece.tokens_BT.shape[0] for piece in pieces] == [2] * 4
    for epoch in (pieces[:2], pieces[2:]):
        real = [p.tokens_BT[p.mask_BT.any(1), 0] // 12 for p in epoch]
        assert sorted(np.concatenate(real).tolist()) == [1, 2, 3]


def test_rows_that_the_context_cut_do_not_count_where_they_are_masked():
    B, T = 4, 8
    turns = np.full((B, T), -1, np.int32)
    turns[:, 3:5] = 0
    cut = np.array([False, True, False, False])
    rewards = np.array([[1.0], [0.0], [1.0], [0.0]], np.float32)
    played = RolloutBatch(
        np.ones((B, T), np.int32), np.full(B, 5), turns, np.zeros((B, T), np.float32), rewards,
        np.ones((B, 1), bool), truncated_B=cut,
    )  # fmt: skip
    masking, settings = dataclasses.replace(HP, mask_truncated=True), config(1, group_size=2)
    batch, informative_B = score(played, masking, settings)
    plain, all_B = score(played, HP, settings)
    assert all_B.all() and informative_B.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(batch.mask_BT, plain.mask_BT & ~cut[:, None])
    # The other member still is compared with it.
    np.testing.assert_array_equal(batch.advantages_BT, plain.advantages_BT)
    with pytest.raises(ValueError, match="which rows were cut"):
        score(dataclasses.replace(played, truncated_B=None), masking, settings)


def noisy(params, key, step):
    """A sampler whose log-probabilities are a little off the trainer's."""
    batch, metrics = even_tokens_pay(params, key, step)
    off = np.random.default_rng(step).normal(0, 0.5, batch.behaviour_BT.shape)
    behaviour_BT = np.where(batch.turns_BT >= 0, batch.behaviour_BT + off, 0)
    return dataclasses.replace(batch, behaviour_BT=behaviour_BT.astype(np.float32)), metrics


def test_truncated_importance_weights_correct_a_sampler_that_is_off(tmp_path):
    rows, states = {}, {}
    for cap in (0.0, 1.5):
        hp = dataclasses.replace(HP, importance_cap=cap)
        folder = tmp_path / str(cap)
        states[cap] = train(folder, config(1, epochs=1, minibatch_rows=32), noisy, hp=hp)
        (rows[cap],) = metrics_of(folder)
    # The ratio starts from the trainer's own log-probabilities, so that nothing is clipped yet.
    assert rows[0.0]["clip_share"] > 0.2 and rows[1.5]["clip_share"] == 0
    assert abs(rows[1.5]["logprob_gap"] - rows[0.0]["logprob_gap"]) < 0.05
    key, _ = jax.random.split(jax.random.fold_in(jax.random.key(7), 0))
    played, genuine = (rollout(start_params(), key, 0)[0] for rollout in (noisy, even_tokens_pay))
    batch, informative_B = score(played, HP, config(1))
    counted = batch.mask_BT & informative_B[:, None]
    ratio = np.exp(genuine.behaviour_BT - played.behaviour_BT)[counted]
    weight = np.minimum(ratio, 1.5)
    expected = {
        "importance_mean": ratio.mean(), "importance_max": ratio.max(),
        "importance_truncated": (ratio > 1.5).mean(),
        "importance_sample_size": weight.sum() ** 2 / (weight**2).sum() / weight.size,
        "logprob_gap": np.abs(np.log(ratio)).mean(),
    }  # fmt: skip
    assert 0 < expected["importance_truncated"] < 1 and expected["importance_sample_size"] < 0.95
    for name, value in expected.items():
        assert rows[1.5][name] == pytest.approx(value, rel=1e-3), name
    assert "importance_mean" not in rows[0.0]
    moved = [np.asarray(state.params["embedding"]) for state in states.values()]
    assert (moved[0] != moved[1]).any()


def test_weights_are_those_of_the_tokens_or_of_whole_turns():
    played, _ = even_tokens_pay(start_params(), jax.random.key(3), 0)

    def scores(params, piece):
        return piece.behaviour_BT + np.float32(0.3) * (np.arange(8) % 2), None

    for ratio in ("token", "sequence"):
        hp = dataclasses.replace(HP, importance_cap=2.0, ratio=ratio)
        batch, _ = score(played, hp, config(1))
        rows = np.arange(GROUPS * G)
        weighted, _ = with_weights(batch, rows, scores, None, hp, config(1))
        for weights_T, mask_T in zip(weighted.weights_BT, batch.mask_BT, strict=True):
            gaps = 0.3 * (np.flatnonzero(mask_T) % 2)
            expected = np.exp(gaps if ratio == "token" else np.full(len(gaps), gaps.mean()))
            np.testing.assert_allclose(weights_T[mask_T], expected, rtol=1e-4)


def test_ratios_of_sequences_the_second_clip_and_weights_reach_the_loss():
    played, _ = noisy(start_params(), jax.random.key(3), 0)
    changes = {"plain": {}, "sequence": {"ratio": "sequence"}, "dual": {"dual_clip": 1.05}}
    losses = {}
    for name, change in changes.items():
        hp = dataclasses.replace(HP, **change)
        batch, _ = score(played, hp, config(1))
        losses[name], _, _ = policy_loss(MODEL, hp, start_params(), batch)
    weighted = dataclasses.replace(batch, weights_BT=np.full_like(batch.behaviour_BT, 0.5))
    losses["weighted"], _, _ = policy_loss(MODEL, HP, start_params(), weighted)
    assert len({float(loss) for loss in losses.values()}) == 4


def ahead_meshes():
    return split_mesh(make_mesh(MeshShape(data=2), jax.devices()[:2]), 1)


def train_ahead(path, rollout=even_tokens_pay, steps=6, selection=None):
    players, trainers = ahead_meshes()
    optimizer = make_optimizer(
        OptimizerConfig(learning_rate=1e-2, decay="constant", weight_decay=0.0), 100
    )
    site = Site(trainers, Checkpoints(path / "grpo"), path)
    settings = config(steps, epochs=1, minibatch_rows=32)
    return train_grpo(
        MODEL, HP, settings, optimizer, rollout, start_params, site, jax.random.key(7),
        selection, players,
    )  # fmt: skip


def weights(params):
    return np.asarray(params["embedding"]).tobytes()


@pytest.fixture(scope="module")
def ahead_run(tmp_path_factory):
    """Six steps, the policies that played them and the policies before their updates."""
    path, played, before, looked = tmp_path_factory.mktemp("ahead"), {}, [], threading.Event()

    def rollout(params, key, step):
        played[step] = weights(params), params["embedding"].devices()
        # Step 0's update has not begun, nor will it before the look that follows this rollout's
        # start: a rollout in turn with the updates would wait in vain.
        assert step == 0 or looked.wait(120)
        return even_tokens_pay(params, key, step)

    def look(params):
        before.append(weights(params))
        looked.set()
        return 1.0 - len(before) / 100

    selection = Selection(look, 1, Checkpoints(path / "best"))
    state = train_ahead(path, rollout, selection=selection)
    return path, state, played, before


def test_a_rollout_one_step_off_is_played_beside_the_update_by_the_policy_before_it(ahead_run):
    path, _, played, before = ahead_run
    assert len(set(before)) == len(before) == 7
    assert [played[step][0] for step in range(6)] == [before[max(step - 1, 0)] for step in range(6)]
    players, trainers = ahead_meshes()
    assert all(devices == set(players.devices.flat) for _, devices in played.values())
    assert not set(players.devices.flat) & set(trainers.devices.flat)
    rows = [row for row in metrics_of(path) if "rollout_wait_seconds" in row]
    assert len(rows) == 6 and max(row["logprob_gap"] for row in rows[1:]) > 1e-3


@pytest.mark.usefixtures("listening")
def test_rollouts_one_step_off_resume_as_if_nothing_had_happened(ahead_run, tmp_path):
    def stopped(params, key, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return even_tokens_pay(params, key, step)

    def killed(params, key, step):
        if step == 5:
            raise RuntimeError("killed")
        return even_tokens_pay(params, key, step)

    with pytest.raises(preemption.Preempted):
        train_ahead(tmp_path, stopped)
    preemption._asked.clear()
    saved = Checkpoints(tmp_path / "grpo").latest()
    assert (tmp_path / "grpo_ahead" / f"{saved}.npz").exists() and 2 <= saved <= 4
    with pytest.raises(RuntimeError, match="killed"):
        train_ahead(tmp_path, killed)
    resumed = train_ahead(tmp_path)
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(ahead_run[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(list((tmp_path / "grpo_ahead").iterdir())) <= 2


def test_a_saved_rollout_reads_back_whole(tmp_path):
    plain = decided_batch()
    free_BV = np.arange(48).reshape(4, 12) % 2 == 0
    allowed = Allowed(plain.turns_BT > 0, np.ones((4, 8, 2), np.int32), free_BV)
    full = dataclasses.replace(plain, allowed=allowed, truncated_B=np.arange(4) > 2)
    for batch in (full, dataclasses.replace(plain, decisions=None)):
        save_rollout(tmp_path / "1.npz", batch, {"reward": np.float32(0.5)})
        read, metrics = load_rollout(tmp_path / "1.npz")
        assert metrics == {"reward": 0.5}
        assert jax.tree.structure(read) == jax.tree.structure(batch)
        jax.tree.map(np.testing.assert_array_equal, read, batch)


def test_a_mesh_that_cannot_be_split_is_a_users_error():
    mesh = make_mesh(MeshShape(data=2), jax.devices()[:2])
    with pytest.raises(UserError, match="player_replicas=2 of 2 replicas"):
        split_mesh(mesh, 2)


ENUMERATED = dataclasses.replace(HP, members="enumerated")
CHOICES = np.array([5, 6, 7])


def decided_batch():
    """Four rows with two turns: three have decisions; of one no choice is better than others."""
    tokens = np.random.default_rng(0).integers(1, 12, (4, 8)).astype(np.int32)
    turns = np.full((4, 8), -1, np.int32)
    turns[:, 2:4], turns[:, 5:7] = 0, 1
    place_BJ = np.array([[3, 6], [3, 0], [2, 5], [0, 0]], np.int32)
    tokens[np.arange(4)[:, None], place_BJ] = 6
    rewards_BJP = np.zeros((4, 2, 3), np.float32)
    rewards_BJP[0, 1], rewards_BJP[1], rewards_BJP[2] = [0.1, 0.0, 0.5], [0, 0, 1], 0.25
    rewards_BJP[1, 0] = 0.3  # of the row's other turn, without a decision, choices differ
    made = Decisions(
        place_BJ, rewards_BJP, np.zeros((4, 2, 3), np.float32), np.tile(CHOICES, (4, 1))
    )
    return RolloutBatch(
        tokens, np.full(4, 8), turns, -np.ones((4, 8), np.float32),
        np.arange(8, dtype=np.float32).reshape(4, 2), np.ones((4, 2), bool), decisions=made,
    )  # fmt: skip


def test_enumerated_groups_leave_out_rows_without_differing_rewards():
    played = decided_batch()
    batch, informative_B = score(played, ENUMERATED, config(1, group_size=2, length_multiple=8))
    assert informative_B.tolist() == [True, False, False, False]
    assert not batch.advantages_BT.any() and batch.decisions is played.decisions
    # A decision's token leaves the mask; the other sampled tokens stay.
    gone = (played.turns_BT >= 0) & ~batch.mask_BT
    assert [np.flatnonzero(row).tolist() for row in gone] == [[3, 6], [3], [2, 5], []]
    assert not (batch.mask_BT & (played.turns_BT < 0)).any()
    plain, informative_B = score(played, HP, config(1, group_size=2, length_multiple=8))
    assert plain.decisions is None and informative_B.all() and plain.advantages_BT.any()
    np.testing.assert_array_equal(plain.mask_BT, played.turns_BT >= 0)
    with pytest.raises(ValueError, match="need decisions"):
        score(dataclasses.replace(played, decisions=None), ENUMERATED, config(1, group_size=2))


def test_decisions_before_the_first_learned_turn_are_held_to_the_reference():
    later = dataclasses.replace(ENUMERATED, first_turn=2)
    batch, informative_B = score(decided_batch(), later, config(1, group_size=2, length_multiple=8))
    assert informative_B.tolist() == [True, False, False, False]
    made = dataclasses.replace(decided_batch().decisions, place_BJ=np.array([[3, 0]] * 4, np.int32))
    early = dataclasses.replace(decided_batch(), decisions=made)
    assert not score(early, later, config(1, group_size=2, length_multiple=8))[1].any()
    plain, _ = score(
        decided_batch(), dataclasses.replace(HP, first_turn=2), config(1, group_size=2)
    )
    turns_BT = decided_batch().turns_BT[:, : plain.advantages_BT.shape[1]]
    assert not plain.advantages_BT[turns_BT == 0].any() and plain.advantages_BT[turns_BT == 1].any()

    def slope(hp, turn):
        def loss(logits_BJP):
            rewards_BJP = jnp.array([[[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]])
            mask_BJ = jnp.arange(2)[None] == turn
            return decision_loss(logits_BJP, jnp.zeros((1, 2, 3)), rewards_BJP, mask_BJ, hp)[0]

        return jax.grad(loss)(jnp.array([[[0.5, 0.0, 0.0]] * 2]))[0, turn]

    assert slope(ENUMERATED, 0)[2] < 0 and slope(later, 1)[2] < 0  # towards the choice that pays
    assert slope(later, 0)[0] > 0 > slope(later, 0)[2]  # back to the reference, reward or none
    np.testing.assert_allclose(slope(later, 0)[1], slope(later, 0)[2], rtol=1e-5)


def test_rows_that_fill_a_minibatch_up_have_no_decision():
    batch, _ = score(decided_batch(), ENUMERATED, config(1, group_size=2, length_multiple=8))
    (piece,) = minibatches(batch, np.array([0, 2]), config(1, minibatch_rows=3, epochs=1), seed=0)
    assert (piece.decisions.place_BJ > 0).sum(1).tolist() == [2, 2, 0]


def test_enumerated_groups_raise_the_chance_of_the_choice_that_pays(tmp_path):
    def decide(params, key, step):
        return decided_batch(), {}

    settings = config(8, group_size=2, minibatch_rows=4, epochs=1)
    train(tmp_path, settings, rollout=decide, hp=ENUMERATED)
    rows = metrics_of(tmp_path)
    rewards = [row["decision_reward"] for row in rows]
    assert all(row["informative_share"] == 0.25 for row in rows)
    assert rewards[-1] > rewards[0] + 0.05
    assert abs(rows[0]["decision_kl"]) < 1e-5 < 1e-3 < rows[-1]["decision_kl"]


def test_the_speech_coefficient_holds_the_tokens_that_decide_nothing(tmp_path):
    batch = decided_batch()
    spoken_BT = (batch.turns_BT >= 0) & (batch.tokens_BT != 6)

    def moved(coefficient):
        hp = dataclasses.replace(ENUMERATED, speech_coefficient=coefficient)
        settings = config(8, group_size=2, minibatch_rows=4, epochs=1)
        train(tmp_path / str(coefficient), settings, rollout=lambda *_: (batch, {}), hp=hp)
        return metrics_of(tmp_path / str(coefficient))[-1]["kl"]

    assert spoken_BT.any() and moved(5.0) < 0.75 * moved(0.0)


def test_the_best_policy_is_kept_and_not_a_later_worse_one(tmp_path):
    looks, regrets = [], iter([0.9, 0.4, 0.6, 0.4, 0.5])

    def regret(params):
        looks.append(np.array(params["embedding"]))
        return next(regrets)

    best = Checkpoints(tmp_path / "best")
    state = train(tmp_path, config(steps=7), selection=Selection(regret, 2, best))
    assert len(looks) == 5  # before steps 0, 2, 4 and 6, and after the last one
    assert best.latest() == 2 and best.extra(2) == {"step": 2, "regret": 0.4}
    kept = [row["kept_out_regret"] for row in metrics_of(tmp_path) if "kept_out_regret" in row]
    assert kept == [0.9, 0.4, 0.6, 0.4, 0.5]
    saved, _ = best.restore(jax.eval_shape(lambda: state))
    np.testing.assert_array_equal(saved.params["embedding"], looks[1])
    assert saved.step < state.step and (looks[1] != looks[-1]).any()
