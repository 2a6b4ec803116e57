"""Extrapolation over fidelities: no farther than the evidence can bear."""

import numpy as np
import pytest

from autollm_jax.forecasts.advisers import FORECASTS
from autollm_jax.forecasts.gathering import REACH, extrapolate, within_reach
from autollm_jax.gym.experiments import make_experiment
from autollm_jax.gym.settings import Fidelity
from autollm_jax.gym.spaces import Dimension, Space

RATES = tuple(2.0**n for n in range(-12, -2))
SIZES = (16, 32, 64, 128)
SPACE = Space((Dimension("rate", "log-ordinal", RATES), Dimension("batch", "log-ordinal", SIZES)))
CONFIGURATIONS = [{"rate": rate, "batch": batch} for rate in RATES for batch in SIZES]


def made(name, parameters, tokens, octaves):
    """Make an experiment whose best rate is 2^-7 moved down by some octaves."""
    losses = [
        3 + 0.05 * (np.log2(c["rate"]) + 7 + octaves) ** 2 + 0.02 * (np.log2(c["batch"]) - 5) ** 2
        for c in CONFIGURATIONS
    ]
    return make_experiment(
        source="mine", task="pretraining", name=name, space=SPACE,
        fidelity=Fidelity("low", parameters, tokens, 6 * parameters * tokens),
        configurations=CONFIGURATIONS, outcomes=losses, default=CONFIGURATIONS[0],
        default_origin="the first",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["boosted_trees", "gaussian_process"])
def test_a_quantity_that_hardly_varied_carries_no_forecast_away(name):
    # Recipes of a fixed duration: three of nearly the same tokens, asked about far fewer.
    evidence = [
        made("a", 11.5e6, 776e6, 0.0), made("b", 24.6e6, 803e6, 0.8), made("c", 26.3e6, 778e6, 0.2)
    ]  # fmt: skip
    target = made("t", 47e6, 579e6, 0.5)
    forecast = FORECASTS[name](target.setting, evidence)
    mean_R, deviation_R, _ = forecast.scored()
    first = int(forecast.costs(()).argmin())
    assert target.outcomes.regrets_R[first] < 0.35  # of a wrong one: 1
    assert np.ptp(mean_R) > 0.5 and deviation_R.mean() < 1


def test_within_reach_nothing_moves():
    features_EF = np.array([[0.0, 0.0], [1.0, 2.0], [3.0, 1.0]])
    for at_F in (np.array([2.0, 1.0]), np.array([6.0, 1.0])):
        np.testing.assert_allclose(within_reach(features_EF, at_F), at_F)


def test_beyond_reach_a_point_moves_along_the_direction_alone():
    features_EF = np.array([[-2.0, 0.1], [0.0, -0.1], [0.0, -0.1], [2.0, 0.1]])
    found = within_reach(features_EF, np.array([5.0, 4.0]))
    np.testing.assert_allclose(found, [5.0, REACH * 0.1])


def test_one_experiment_and_missing_sizes_stay_as_they_are():
    one_EF = np.array([[1.0, 2.0]])
    np.testing.assert_array_equal(within_reach(one_EF, np.array([9.0, 9.0])), [9.0, 9.0])
    missing_EF = np.array([[np.nan, 0.0], [np.nan, 1.0]])
    found = within_reach(missing_EF, np.array([7.0, 100.0]))
    np.testing.assert_allclose(found, [7.0, 0.5 + REACH * 0.5])


def test_a_law_is_followed_as_far_as_the_reach():
    features_EF, values_ED = np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]])
    np.testing.assert_allclose(extrapolate(features_EF, values_ED, np.array([1.9])), [3.8])
    np.testing.assert_allclose(extrapolate(features_EF, values_ED, np.array([9.0])), [4.0])
