import dataclasses
import functools
import json
import os
import signal

import jax
import numpy as np
import pytest

from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.cluster import preemption
from autollm_jax.errors import UserError
from autollm_jax.models import transformer
from autollm_jax.rl import sampler
from autollm_jax.rl.grpo import GRPOHyperparameters
from autollm_jax.rl.loop import GRPOLoopConfig, RolloutBatch, minibatches, score, train_grpo
from autollm_jax.sharding.mesh import MeshShape, make_mesh
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


def train(path, loop_config, rollout=even_tokens_pay, learning_rate=1e-2):
    optimizer = make_optimizer(
        OptimizerConfig(learning_rate=learning_rate, decay="constant", weight_decay=0.0), 100
    )
    checkpoints = Checkpoints(path / "checkpoints")
    return train_grpo(
        MODEL, HP, loop_config, optimizer, rollout, start_params(),
        Site(mesh(), checkpoints, path), jax.random.key(7),
    )  # fmt: skip


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
    np.testing.assert_array_equal(batch.segments_BT.sum(1), [5, 5, 6, 5])


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
