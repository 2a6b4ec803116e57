"""Exchanged thoughts, before players whose letters follow from a thing that is known."""

import dataclasses
import re

import pytest

from autollm_jax.agent import interventions, rollout
from autollm_jax.agent.environment_turns import Start
from autollm_jax.curriculum.teacher import turn_text
from autollm_jax.gym.environment import Episode
from autollm_jax.text.symbols import LETTERS, PANELS
from tests.families import decided, panel_of

from .conftest import BUDGET
from .test_rollout import CONFIG, speak

DRIFT = PANELS.index("(drift)")


@pytest.fixture
def intervene(monkeypatch, model, params, tokenizer, pairs):
    """Intervene on episodes that trust (drift); `ending(text)` is the letter of each cut turn."""

    def counted(ending):
        starts = [
            Start(Episode(p.target, p.evidence, BUDGET), panel_of(p.target.setting, p.evidence))
            for p in pairs
        ]

        def trusting_drift(row, turn):
            return tokenizer.encode(turn_text(decided(starts[row].episode), DRIFT))

        def go_on(policy, config, prompts):
            return [ending(tokenizer.decode(tokens)) for tokens in prompts]

        speak(monkeypatch, trusting_drift)
        monkeypatch.setattr(interventions, "_go_on", go_on)
        policy = rollout.Policy(model, params, tokenizer)
        return interventions.intervene(policy, dataclasses.replace(CONFIG), starts)

    return counted


def picks(text):
    """Read the panels' first picks from the latest prompt."""
    *_, latest = text.split("first:\n")
    pairs = re.findall(r"(\([a-z-]+\))#([A-P])", latest.split(";\n")[0])
    return {name: LETTERS.index(f"#{letter}") for name, letter in pairs}


def trusted(text):
    """Name the panel that the turn ends with; (drift) where none is named yet."""
    *_, turn = text.split("<think>")
    named = re.findall(r"trust (\([a-z-]+\))$", turn)
    return named[0] if named else "(drift)"


def test_a_player_that_does_what_it_thinks_follows_every_exchange(intervene):
    found = intervene(lambda text: picks(text)[trusted(text)])
    assert found["trusted"]["n"] > 0
    assert found["trusted"]["followed"] == found["trusted"]["changed"] == 1.0
    assert found["reading"]["changed"] == found["control"]["changed"] == 0.0


def test_a_player_that_decides_without_its_thoughts_follows_none(intervene):
    found = intervene(lambda text: picks(text)["(drift)"])
    assert found["trusted"]["followed"] == found["trusted"]["changed"] == 0.0


def test_a_reading_is_the_other_one_and_a_control_counts_one_configuration_more(intervene, pairs):
    ends, counts = [], []

    def ending(text):
        *_, turn = text.split("<think>")
        ends.append(turn)
        counts.append(int(re.search(r"(\d+) configurations", text)[1]))

    found = intervene(ending)
    readings = [turn for turn in ends if turn.startswith("latest is") and "trust" not in turn]
    assert readings and all(turn.split()[-1] in ("better", "worse") for turn in readings)
    turns = BUDGET * len(pairs)
    assert len(readings) == found["reading"]["n"] and found["control"]["n"] == turns
    measured = {len(pair.target.setting.configurations) for pair in pairs}
    assert sum(count - 1 in measured for count in counts) == turns
