import numpy as np

from autollm_jax.gym.outcomes import Objective
from autollm_jax.gym.pooling import pool_outcomes, seed_effects


def runs(rows=40, repeated=12, effect=0.3, noise=0.01, seed=0):
    """All rows under seed 0, the first `repeated` under seed 1 too, which is better by `effect`."""
    random = np.random.default_rng(seed)
    truth_R = random.permutation(np.linspace(2.0, 3.0, rows))
    row_N = np.concatenate([np.arange(rows), np.arange(repeated)])
    seed_N = np.concatenate([np.zeros(rows, int), np.ones(repeated, int)])
    value_N = truth_R[row_N] - effect * seed_N + noise * random.normal(size=len(row_N))
    return truth_R, row_N, seed_N, value_N


def pooled(row_N, seeds, value_N, rows=40):
    blank = [None] * len(row_N)
    return pool_outcomes(row_N, rows, value_N, ["ok"] * len(row_N), blank, seeds, Objective())


def test_a_seed_that_is_lucky_everywhere_moves_no_configuration():
    truth_R, row_N, seed_N, value_N = runs()
    outcomes = pooled(row_N, seed_N, value_N)
    away_R = outcomes.values_R - truth_R
    # All lie at the level of the mean seed: as far apart as they are in truth.
    np.testing.assert_allclose(away_R, -0.15, atol=0.04)
    assert away_R.std() < 0.015
    plain = pooled(row_N, None, value_N)
    assert (plain.values_R - truth_R).std() > 0.05


def test_the_noise_is_what_seeds_leave_open():
    _, row_N, seed_N, value_N = runs(rows=200, repeated=200, noise=0.02)
    outcomes = pooled(row_N, seed_N, value_N, rows=200)
    assert 0.016 < outcomes.noise < 0.024
    assert pooled(row_N, None, value_N, rows=200).noise > 0.15


def test_few_repeats_tell_no_effect():
    _, row_N, seed_N, value_N = runs(repeated=5)
    usable_N = np.ones(len(row_N), bool)
    effect_N, spent = seed_effects(row_N, seed_N, value_N, usable_N, Objective())
    assert not effect_N.any() and spent == 0


def test_an_outlier_does_not_move_a_seeds_effect():
    _, row_N, seed_N, value_N = runs(noise=0.0)
    value_N[-1] += 100.0
    usable_N = np.ones(len(row_N), bool)
    effect_N, spent = seed_effects(row_N, seed_N, value_N, usable_N, Objective())
    np.testing.assert_allclose(effect_N[seed_N == 1], -0.15, atol=1e-6)
    np.testing.assert_allclose(effect_N[seed_N == 0], 0.15, atol=1e-6)
    assert spent == 1


def test_a_diverged_run_does_not_count_towards_an_effect():
    _, row_N, seed_N, value_N = runs(noise=0.0)
    value_N[0] = 1e6
    usable_N = np.arange(len(row_N)) > 0
    effect_N, _ = seed_effects(row_N, seed_N, value_N, usable_N, Objective())
    np.testing.assert_allclose(effect_N[seed_N == 0], 0.15, atol=1e-6)
