import dataclasses
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence

from autollm_jax.gym import gymnasium_env
from autollm_jax.gym.spaces import Dimension, Space

ADDRESS = "autollm_jax.gym.gymnasium_env:AutoLLM/Configure-v0"


@pytest.fixture
def env(make):
    evidence = [make("cheap", flops=1e14)]
    return gymnasium.make(ADDRESS, experiment=make(), evidence=evidence, budget=3)


def test_gymnasiums_own_check_passes_without_a_warning(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_an_episode_returns_the_mean_score_of_its_trials(env):
    env.reset(seed=0)
    total = 0.0
    for step, action in enumerate(([1, 1], [0, 1], [0, 0])):
        observation, reward, terminated, truncated, info = env.step(np.array(action, np.float32))
        total += reward
        assert (terminated, truncated) == (step == 2, False)
    assert info["trial"].outcome == 0.0
    # The regrets after each trial are 1, 2 / 5.5 and 0.
    np.testing.assert_allclose(total, np.mean([0, 1 - 2 / 5.5, 1]))
    np.testing.assert_allclose(observation["coordinates"], [[1, 1], [0, 1], [0, 0]])
    # The evidence's outcomes are 0 to 11: mean 5.5, standard deviation sqrt(143 / 12).
    np.testing.assert_allclose(
        observation["outcomes"], np.array([5.5, -3.5, -5.5]) / np.sqrt(143 / 12), rtol=1e-5
    )
    assert observation["budget_left"] == 0


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_copies_side_by_side_play_as_each_would_alone(env, make, mode):
    vector = gymnasium.make_vec(
        ADDRESS, num_envs=2, vectorization_mode=mode,
        experiment=make(), evidence=[make("cheap", flops=1e14)], budget=3,
    )  # fmt: skip
    actions = np.array([[[1, 1], [0, 1]], [[0, 1], [0, 0]], [[0, 0], [1, 0]]], np.float32)
    vector.reset(seed=0)
    together = [vector.step(pair) for pair in actions]
    vector.close()
    for copy in range(2):
        env.reset(seed=0)
        for (observation, reward_V, ended_V, *_), pair in zip(together, actions, strict=True):
            alone, reward, ended, *_ = env.step(pair[copy])
            assert reward_V[copy] == reward and ended_V[copy] == ended
            assert data_equivalence({k: v[copy] for k, v in observation.items()}, alone)


def test_observed_outcomes_are_lower_the_better_for_a_score_too(make):
    env = gymnasium_env.ConfigureEnv(make(minimize=False), [make("cheap")])
    observation, *_ = env.step(np.array([1, 1], np.float32))
    assert observation["outcomes"][0] < 0


def test_a_nan_action_is_an_invalid_trial(env):
    env.reset(seed=0)
    observation, reward, *_, info = env.unwrapped.step(np.array([np.nan, 0], np.float32))
    assert info["trial"].status == "invalid" and reward == pytest.approx(-0.05)
    assert observation["made"].tolist() == [1, 0, 0]
    assert env.observation_space.contains(observation)


@pytest.fixture
def mixed(make):
    """An experiment of every kind of dimension, half of it over a limit, a third diverged."""
    space = Space(
        (
            Dimension("layers", "ordinal", (1, 2)),
            Dimension("optimizer", "categorical", ("adam", "sgd")),
            Dimension("mixture", "simplex", ("web", "code")),
        )
    )
    cells = [
        {"layers": layers, "optimizer": o, "mixture": {"web": w, "code": 1 - w}}
        for layers in (1, 2)
        for o in ("adam", "sgd")
        for w in (0.2, 0.8)
    ]
    return make(
        space=space,
        configurations=cells,
        default=cells[0],
        status=["ok", "diverged", "ok", "ok"] + ["infeasible"] * 4,
        outcomes=[1.0, None, 3.0, 2.0] + [None] * 4,
        parameters=[1, 1, 1, 1, 2, 2, 2, 2],
        limit={"quantity": "parameters", "at_most": 1},
    )


def test_every_kind_of_dimension_and_status_plays(mixed):
    env = gymnasium.make(ADDRESS, experiment=mixed, budget=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    env.reset(seed=0)
    for row in range(8):
        observation, *_, info = env.step(mixed.units_RD[row].astype(np.float32))
        assert info["trial"].config == mixed.configurations[row]
        assert env.observation_space.contains(observation)
    assert observation["succeeded"].tolist() == [1, 0, 1, 1, 0, 0, 0, 0]
    # Random actions are answered by the nearest measured configuration, always.
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(8):
        assert env.step(env.action_space.sample())[-1]["trial"].valid


def test_steps_without_an_outcome_are_equal_to_gymnasium(mixed):
    def step():
        env = gymnasium_env.ConfigureEnv(mixed, budget=2)
        env.reset(seed=0)
        return env.step(mixed.units_RD[1].astype(np.float32))

    first, second = step(), step()
    assert first[-1]["trial"].status == "diverged"
    first[-1]["trial"] = dataclasses.replace(first[-1]["trial"], outcome=float("nan"))
    assert data_equivalence(first, second)


def test_reset_begins_anew(env):
    first, _ = env.reset(seed=0)
    env.step(np.zeros(2, np.float32))
    again, _ = env.reset(seed=0)
    assert all((first[name] == again[name]).all() for name in first)


def test_registering_again_changes_nothing():
    before = gymnasium.registry[gymnasium_env.ENVIRONMENT_ID]
    gymnasium_env.register()
    assert gymnasium.registry[gymnasium_env.ENVIRONMENT_ID] is before


def test_the_gym_and_the_sources_import_neither_jax_nor_models():
    code = (
        "import sys\n"
        "import autollm_jax.gym.environment, autollm_jax.gym.splits, autollm_jax.sources\n"
        "import autollm_jax.gym.gymnasium_env\n"
        "print(sorted({'jax', 'flax', 'autollm_jax.models'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
