"""A player holds a setting, and a setting holds no outcome."""

import dataclasses
import inspect
import pickle

import numpy as np
import pytest

from autollm_jax.baselines.base import Problem
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting

SECRET = 123.456


@pytest.fixture
def secret(make):
    """An experiment whose outcomes can be recognised."""
    experiment = make(outcomes=[SECRET + place for place in range(12)])
    assert experiment.outcomes.optimum == SECRET
    assert experiment.lookup(experiment.configurations[0]) == SECRET  # cached from here on
    return experiment


def test_an_experiment_adds_outcomes_and_their_lookups_alone():
    def public(kind):
        fields = {field.name for field in dataclasses.fields(kind)}
        members = {name for name, _ in inspect.getmembers_static(kind) if name[0] != "_"}
        return fields | members

    added = {"outcomes", "setting", "lookup", "lookup_many"}
    added |= {"spread_unit", "spread_regrets_R", "uncut_spread_regrets_R"}
    assert public(Experiment) - public(Setting) == added


def test_a_setting_carries_no_outcome_anywhere(secret):
    def floats(value) -> bytes:
        return np.float64(value).tobytes()

    assert floats(SECRET) in pickle.dumps(secret)  # so that its absence below means something
    carried = pickle.dumps(secret.setting)
    assert floats(SECRET) not in carried and str(SECRET).encode() not in carried
    assert type(secret.setting) is Setting


def test_a_setting_keeps_the_whole_question(secret):
    setting = secret.setting
    for field in dataclasses.fields(Setting):
        assert getattr(setting, field.name) is getattr(secret, field.name)
    assert setting.match(setting.default) == (1, False)
    assert setting.id == "test/pretraining/small"


def test_an_observation_holds_the_setting(secret, make):
    episode = Episode(secret, [make("cheaper", flops=1e12)], budget=2)
    assert type(episode.setting) is Setting and type(episode.tell().setting) is Setting


def test_a_method_is_refused_the_answers(secret):
    with pytest.raises(TypeError, match="given a setting"):
        Problem(secret, (), 5)
    assert Problem(secret.setting, (), 5).setting is secret.setting
