import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autollm_jax.rl.grpo import (
    GRPOHyperparameters,
    decision_loss,
    group_advantages,
    grpo_loss,
    token_advantages,
    turn_advantages,
)

HP = GRPOHyperparameters(clip_low=0.2, clip_high=0.3, kl_coefficient=0.1, entropy_coefficient=0.01)


def random_fields(seed=0, B=3, T=5):
    rng = np.random.default_rng(seed)
    fields = dict(
        logprobs_BT=-rng.exponential(1.0, (B, T)),
        entropy_BT=rng.uniform(0, 2, (B, T)),
        behaviour_BT=-rng.exponential(1.0, (B, T)),
        reference_BT=-rng.exponential(1.0, (B, T)),
        advantages_BT=rng.normal(size=(B, T)),
    )
    fields = {name: value.astype(np.float32) for name, value in fields.items()}
    fields["mask_BT"] = rng.uniform(size=(B, T)) < 0.6
    return fields


def one_token(logprob, behaviour, advantage, hp, reference=None):
    """The loss of one token, as a function that can be differentiated."""
    full = lambda x: jnp.full((1, 1), x, jnp.float32)  # noqa: E731
    reference = logprob if reference is None else full(reference)
    loss, count, _ = grpo_loss(
        full(logprob), full(0.0), full(behaviour), full(jax.lax.stop_gradient(reference)),
        full(advantage), jnp.ones((1, 1), bool), hp,
    )  # fmt: skip
    return loss / count


def test_advantages_are_rewards_less_the_mean_over_the_standard_deviation():
    rewards = np.array([[0.0, 1.0, 2.0, 5.0], [1.0, 0.0, 0.0, 1.0]])
    expected = (rewards - rewards.mean(1, keepdims=True)) / rewards.std(1, keepdims=True)
    np.testing.assert_allclose(group_advantages(rewards), expected, rtol=1e-5)


def test_advantages_without_normalisation_keep_their_scale():
    rewards = np.array([[0.0, 3.0]])
    got = group_advantages(rewards, normalisation="none")
    np.testing.assert_allclose(got, [[-1.5, 1.5]])


@pytest.mark.parametrize("normalisation", ["std", "none"])
def test_a_group_without_differences_scores_zero(normalisation):
    rewards = np.array([[0.1, 0.1, 0.1], [0.7, 0.7, 0.7 + 1e-7]])
    np.testing.assert_array_equal(group_advantages(rewards, normalisation=normalisation), 0)


def test_members_outside_the_mask_neither_count_nor_score():
    got = group_advantages(np.array([[1.0, 3.0, 100.0]]), np.array([[True, True, False]]))
    np.testing.assert_allclose(got, [[-1.0, 1.0, 0.0]], rtol=1e-5)


def test_turn_credit_is_the_group_normalised_return_to_go():
    rewards = np.array([[[0.5, 0.2], [0.1, 0.6]]])
    hp = dataclasses.replace(HP, normalisation="none", credit="turn")
    got = turn_advantages(rewards, np.ones((1, 2, 2), bool), hp)
    np.testing.assert_allclose(got, [[[0.0, -0.2], [0.0, 0.2]]], atol=1e-6)


def test_episode_credit_is_the_same_for_all_turns():
    rewards = np.array([[[0.5, 0.2], [0.1, 0.0]]])
    mask = np.array([[[True, True], [True, False]]])
    hp = dataclasses.replace(HP, normalisation="none", credit="episode")
    got = turn_advantages(rewards, mask, hp)
    np.testing.assert_allclose(got, [[[0.3, 0.3], [-0.3, 0.0]]], atol=1e-6)


def test_a_turn_that_only_one_member_took_scores_zero():
    mask = np.array([[[True, True], [True, False]]])
    got = turn_advantages(np.array([[[0.5, 0.9], [0.1, 0.0]]]), mask, HP)
    np.testing.assert_array_equal(got[0, :, 1], 0)


def test_tokens_take_their_turns_advantage():
    got = token_advantages(np.array([[2.0, 3.0]]), np.array([[-1, 0, 0, -1, 1]]))
    np.testing.assert_array_equal(got, [[0, 2, 2, 0, 3]])


def test_loss_equals_a_plain_numpy_computation():
    f = random_fields()
    total, kl_total, count = 0.0, 0.0, 0
    for b, t in zip(*np.nonzero(f["mask_BT"]), strict=True):
        lp, old, ref = (f[n][b, t] for n in ("logprobs_BT", "behaviour_BT", "reference_BT"))
        advantage, ratio = f["advantages_BT"][b, t], np.exp(lp - old)
        objective = min(ratio * advantage, min(max(ratio, 0.8), 1.3) * advantage)
        kl = np.exp(ref - lp) - (ref - lp) - 1
        total += -objective + 0.1 * kl - 0.01 * f["entropy_BT"][b, t]
        kl_total, count = kl_total + kl, count + 1
    loss, got_count, metrics = grpo_loss(**f, hp=HP)
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"], (kl_total, count), rtol=1e-5)
    assert got_count == count > 0


def test_tokens_outside_the_mask_change_neither_loss_nor_gradient():
    f = random_fields()
    wild = dict(f)
    for name in ("logprobs_BT", "behaviour_BT", "reference_BT", "advantages_BT"):
        wild[name] = np.where(f["mask_BT"], f[name], 300.0).astype(np.float32)

    def loss(logprobs, fields):
        return grpo_loss(**{**fields, "logprobs_BT": logprobs}, hp=HP)[0]

    for value_or_gradient in (loss, jax.grad(loss)):
        np.testing.assert_array_equal(
            value_or_gradient(f["logprobs_BT"], f), value_or_gradient(wild["logprobs_BT"], wild)
        )


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_descent_raises_the_probability_of_what_did_better(advantage):
    gradient = jax.grad(one_token)(-1.0, -1.0, advantage, HP)
    assert np.sign(-gradient) == np.sign(advantage)


@pytest.mark.parametrize("advantage, ratio", [(1.0, 1.4), (-1.0, 0.7)])
def test_clipping_stops_the_gradient(advantage, ratio):
    hp = dataclasses.replace(HP, kl_coefficient=0.0)
    assert jax.grad(one_token)(np.log(ratio) - 1.0, -1.0, advantage, hp) == 0


@pytest.mark.parametrize("advantage, ratio", [(1.0, 1.25), (1.0, 0.5), (-1.0, 1.5), (-1.0, 0.85)])
def test_inside_the_clip_range_or_on_the_wrong_side_the_gradient_stays(advantage, ratio):
    hp = dataclasses.replace(HP, kl_coefficient=0.0)
    gradient = jax.grad(one_token)(np.log(ratio) - 1.0, -1.0, advantage, hp)
    np.testing.assert_allclose(gradient, -ratio * advantage, rtol=1e-5)


def test_the_penalty_pulls_towards_the_reference():
    above = jax.grad(one_token)(-1.0, -1.0, 0.0, HP, -2.0)
    below = jax.grad(one_token)(-1.0, -1.0, 0.0, HP, -0.5)
    assert above > 0 > below


@pytest.mark.parametrize("traced", [False, True])
def test_at_coefficient_zero_a_reference_far_away_is_not_read(traced):
    """exp(reference - policy) overflows, and 0 times infinity is no number."""

    def value_and_gradient(coefficient):
        hp = dataclasses.replace(HP, kl_coefficient=coefficient)
        return jax.value_and_grad(one_token)(-200.0, -200.0, 1.0, hp, reference=0.0)

    assert value_and_gradient(0.1)[0] == np.inf
    assert (jax.jit(value_and_gradient) if traced else value_and_gradient)(0.0) == (-1, -1)


@pytest.mark.parametrize("advantage, value", [(0.0, 0.0), (1.0, -1.3)])
def test_a_ratio_that_overflows_where_it_does_not_count_changes_nothing(advantage, value):
    hp = dataclasses.replace(HP, kl_coefficient=0.0)
    got, gradient = jax.value_and_grad(one_token)(-1.0, -201.0, advantage, hp)
    np.testing.assert_allclose(got, value, rtol=1e-6)
    assert gradient == 0


def test_a_ratio_that_overflows_where_it_counts_is_no_finite_loss():
    assert one_token(-1.0, -201.0, -1.0, HP) == np.inf


def test_clip_share_counts_the_tokens_whose_gradient_is_stopped():
    mask = jnp.ones((1, 3), bool)
    zeros = jnp.zeros((1, 3))
    logprobs = jnp.log(jnp.array([[1.5, 1.5, 1.0]]))
    advantages = jnp.array([[1.0, -1.0, 1.0]])
    _, _, metrics = grpo_loss(logprobs, zeros, zeros, zeros, advantages, mask, HP)
    assert metrics["clip_share"] == (1, 3)


def random_decisions():
    """Logits of two rows' three decisions between four choices, and a mask without one."""
    rng = np.random.default_rng(0)
    logits, reference, rewards = rng.normal(size=(3, 2, 3, 4)).astype(np.float32)
    return logits, reference, rewards, np.array([[True, True, True], [True, False, True]])


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_decisions_loss_equals_a_plain_numpy_computation(temperature):
    logits, reference, rewards, mask = random_decisions()
    hp = dataclasses.replace(HP, temperature=temperature)
    total = np.zeros(3)
    for b, j in zip(*np.nonzero(mask), strict=True):
        chance, before = (softmax(x[b, j] / temperature) for x in (logits, reference))
        total += [
            (chance * rewards[b, j]).sum(),
            (chance * np.log(chance / before)).sum(),
            -(chance * np.log(chance)).sum(),
        ]
    loss, count, metrics = decision_loss(logits, reference, rewards, mask, hp)
    np.testing.assert_allclose(loss, total @ [-1, 0.1, -0.01], rtol=1e-4)
    for name, value in zip(("reward", "kl", "entropy"), total, strict=True):
        np.testing.assert_allclose(metrics[f"decision_{name}"], (value, 5), rtol=1e-4)
    assert count == 5


def test_a_decisions_gradient_raises_the_chance_of_the_better_choice():
    logits, reference, rewards, mask = random_decisions()
    hp = dataclasses.replace(HP, kl_coefficient=0.0, entropy_coefficient=0.0)
    gradient = jax.grad(lambda x: decision_loss(x, reference, rewards, mask, hp)[0])(logits)
    for b, j in np.ndindex(2, 3):
        chance = softmax(logits[b, j])
        # The group's mean is the baseline: what earns more than it gains probability.
        better = rewards[b, j] > (chance * rewards[b, j]).sum()
        assert ((np.asarray(gradient)[b, j] < 0) == better).all() or not mask[b, j]
        assert mask[b, j] or not np.asarray(gradient)[b, j].any()


def test_members_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="members='all' must be one of enumerated, sampled"):
        GRPOHyperparameters(members="all")
