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


def plain_loss(f, hp, turns=None, weights=None):
    """The loss and its count in plain numpy, without KL and entropy."""
    gap = np.where(f["mask_BT"], f["logprobs_BT"] - f["behaviour_BT"], 0).astype(np.float64)
    share = f["mask_BT"].astype(np.float64)
    if turns is not None:
        for b in range(len(gap)):
            for turn in np.unique(turns[b]):
                own = f["mask_BT"][b] & (turns[b] == turn)
                if own.any():
                    gap[b, own], share[b, own] = gap[b, own].mean(), 1 / own.sum()
    ratio, advantage = np.exp(gap), f["advantages_BT"]
    clipped = np.clip(ratio, 1 - hp.clip_low, 1 + hp.clip_high)
    objective = np.minimum(ratio * advantage, clipped * advantage)
    if hp.dual_clip:
        bounded = np.maximum(objective, hp.dual_clip * advantage)
        objective = np.where(advantage < 0, bounded, objective)
    return -(objective * share * (1 if weights is None else weights)).sum(), share.sum()


BARE = dataclasses.replace(HP, kl_coefficient=0.0, entropy_coefficient=0.0)


def test_a_second_clip_bounds_the_loss_of_negative_advantages():
    f, hp = random_fields(B=8), dataclasses.replace(BARE, dual_clip=1.5)
    expected, without = plain_loss(f, hp), plain_loss(f, BARE)
    np.testing.assert_allclose(grpo_loss(**f, hp=hp)[:2], expected, rtol=1e-5)
    np.testing.assert_allclose(grpo_loss(**f, hp=BARE)[:2], without, rtol=1e-5)
    assert abs(expected[0] - without[0]) > 0.1


@pytest.mark.parametrize(("gap", "pushed"), [(0.1, True), (1.0, False), (200.0, False)])
def test_beyond_the_second_clip_a_bad_token_has_no_gradient(gap, pushed):
    hp = dataclasses.replace(BARE, dual_clip=2.0)
    loss, gradient = jax.value_and_grad(lambda x: one_token(x, -1.0 - gap, -1.0, hp))(-1.0)
    assert loss == pytest.approx(min(np.exp(gap), 2.0)) and (gradient > 0) == pushed
    assert np.isfinite(gradient)
    # Good tokens are held by the first clip, as ever.
    gradient, without = (jax.grad(one_token)(-1.0, -1.0 - gap, 1.0, h) for h in (hp, BARE))
    assert gradient == without


TURNS = np.repeat([[0, 0, 0, 1, 1], [0, 1, 1, 1, 2], [0, 0, 0, 0, 0]], 3, axis=1).astype(np.int32)


def test_a_sequence_is_a_turn_that_counts_once_and_has_one_ratio():
    f, hp = random_fields(T=15), dataclasses.replace(BARE, ratio="sequence")
    f["advantages_BT"] = np.array([[1.0, -2.0, 0.5], [-1, 0.7, 2], [1, 0, 0]], np.float32)[
        np.arange(3)[:, None], TURNS
    ]
    loss, count, metrics = grpo_loss(**f, hp=hp, turns_BT=TURNS)
    expected = plain_loss(f, hp, TURNS)
    np.testing.assert_allclose((loss, count), expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["policy_loss"], expected, rtol=1e-5)
    turns = {(b, TURNS[b, t]) for b, t in zip(*np.nonzero(f["mask_BT"]), strict=True)}
    assert count == pytest.approx(len(turns)) and len(turns) < f["mask_BT"].sum()
    assert abs(expected[0] / count - plain_loss(f, hp)[0] / f["mask_BT"].sum()) > 0.05


def test_the_tokens_of_a_sequence_share_its_gradient_and_its_clip():
    behaviour, mask = jnp.array([[-1.0, -2.0, -1.0]]), jnp.array([[True, True, True]])
    turns, hp = jnp.zeros((1, 3), jnp.int32), dataclasses.replace(BARE, ratio="sequence")

    def gradient(*logprobs):
        def loss(x):
            zero = jnp.zeros_like(x)
            return grpo_loss(x, zero, behaviour, zero, zero + 1, mask, hp, turns)[0]

        return np.asarray(jax.grad(loss)(jnp.array([logprobs])))[0]

    # One token's ratio is far above its clip, and the turn's is 1.
    np.testing.assert_allclose(gradient(-0.5, -3.0, -0.5), [-1 / 3] * 3, rtol=1e-5)
    assert not gradient(-0.5, -1.5, -0.5).any()


def test_weights_are_factors_of_the_objective_alone():
    f = random_fields()
    weights = np.random.default_rng(1).uniform(0, 2, f["mask_BT"].shape).astype(np.float32)
    expected = plain_loss(f, BARE, weights=weights)
    np.testing.assert_allclose(grpo_loss(**f, hp=BARE, weights_BT=weights)[:2], expected, rtol=1e-5)
    others = [grpo_loss(**f, hp=HP, weights_BT=w)[0] for w in (0 * weights, None)]
    bare = grpo_loss(**f, hp=BARE)[0]
    np.testing.assert_allclose(others[0], others[1] - bare, rtol=1e-4)


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
