import math

import numpy as np
import pytest

from autollm_jax.evaluation.signal import optima, signals
from autollm_jax.gym.experiments import make_experiment
from autollm_jax.gym.settings import Fidelity
from autollm_jax.gym.spaces import Dimension, Space

RATES = tuple(2.0**k for k in range(-9, 1))


def made(level, best, tokens, noise=0.01):
    """An experiment over ten rates, best at 2^best, with two seeds that differ by 2 x noise."""
    rates = [rate for rate in RATES for _ in range(2)]
    return make_experiment(
        source="mine", task="pretraining", name=f"{level}-{tokens}",
        space=Space((Dimension("rate", "log-ordinal", RATES),
                     Dimension("kind", "categorical", ("a", "b")))),
        fidelity=Fidelity(level, parameters=1e6, tokens=tokens, flops=6e6 * tokens),
        configurations=[{"rate": rate, "kind": "a"} for rate in rates],
        outcomes=[(math.log2(rate) - best) ** 2 + noise * (-1) ** n
                  for n, rate in enumerate(rates)],
        seeds=[0, 1] * len(RATES),
        default={"rate": RATES[0], "kind": "a"}, default_origin="the first",
    )  # fmt: skip


EXPERIMENTS = [made("high", -6, 4e9), made("low", -4, 1e9), made("low", -3, 2e9)]


def test_the_optimum_s_shift_is_in_octaves_from_the_lowest_level_to_the_highest():
    (optimum,) = optima(EXPERIMENTS)
    assert optimum.dimension == "rate"
    assert optimum.octaves == {"low": -3.5, "high": -6.0}
    assert optimum.shift == -2.5 and optimum.inside == 1
    (edge,) = optima([made("low", 3, 1e9), made("low", -4, 1e9)])
    assert edge.inside == 0.5


def test_a_level_s_signal_counts_settings_and_has_each_experiment_s_noise():
    low, high = signals([*EXPERIMENTS, made("low", -5, 1e9, noise=0.1)])
    assert (low.level, low.experiments, low.settings, low.configurations) == ("low", 3, 2, 10)
    assert high.level == "high" and high.noise_E.shape == (1,)
    quiet, _, loud = low.noise_E
    assert loud == pytest.approx(10 * quiet, rel=0.2) and np.isfinite(low.noise_E).all()
