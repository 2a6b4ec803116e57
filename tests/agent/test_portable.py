"""An agent in a folder, and one answer of it."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from autollm_jax.agent import portable, rollout
from autollm_jax.agent.answering import answer
from autollm_jax.agent.environment_turns import Start
from autollm_jax.errors import UserError
from autollm_jax.gym.environment import Episode
from autollm_jax.text.prompts import render
from autollm_jax.text.symbols import PANELS
from tests.families import panel_of

from .conftest import BUDGET
from .test_rollout import CONFIG


@pytest.fixture
def agent(model, params, tokenizer):
    policy = rollout.Policy(model, params, tokenizer)
    return portable.PortableAgent(policy, 1024, 16, BUDGET, False, {"commit": "abc"})


def test_what_is_saved_is_read_again(agent, tmp_path):
    portable.save(tmp_path / "agent", agent)
    read = portable.load(tmp_path / "agent")
    for name in ("context", "turn_tokens", "budget", "full", "provenance"):
        assert getattr(read, name) == getattr(agent, name)
    assert read.policy.model == agent.policy.model
    assert read.policy.tokenizer.model == agent.policy.tokenizer.model
    jax.tree.map(np.testing.assert_array_equal, read.policy.params, agent.policy.params)


def test_a_damaged_folder_and_other_advisers_are_refused(agent, tmp_path):
    portable.save(tmp_path, agent)
    fields = json.loads((tmp_path / "agent.json").read_text())
    (tmp_path / "agent.json").write_text(json.dumps(fields | {"panels": ["(nobody)"]}))
    with pytest.raises(UserError, match="other advisers"):
        portable.load(tmp_path)
    portable.save(tmp_path, agent)
    (tmp_path / "params.safetensors").write_bytes(b"12")
    with pytest.raises(UserError, match="no agent"):
        portable.load(tmp_path)
    with pytest.raises(UserError, match="no agent"):
        portable.load(tmp_path / "nowhere")


def test_an_answer_is_what_the_policy_plays_greedily(agent, pairs):
    policy, pair = agent.policy, pairs[0]
    start = Start(
        Episode(pair.target, pair.evidence, BUDGET), panel_of(pair.target.setting, pair.evidence)
    )
    config = dataclasses.replace(CONFIG, temperature=0.0, constrained=False)
    played = rollout.play(policy, config, [start], [0], jax.random.key(0), rollout.Layout())
    opening, said, *_ = played.transcripts[0]
    found = answer(policy, [opening], agent.context, config.max_new_tokens)
    assert render([said]) == found.text
    assert found.chances.shape in ((0,), (len(PANELS),))


def test_chances_are_the_policys_own_at_the_panel_that_it_names(agent, pairs, monkeypatch):
    tokenizer = agent.policy.tokenizer
    panel, letter = tokenizer.encode(PANELS[3])[0], tokenizer.encode("#B")[0]
    words = iter([panel, letter, tokenizer.stop_id])

    def logits(model, params, row, place):
        made = np.zeros(tokenizer.vocab_size)
        made[next(words)] = 2.0
        return made

    monkeypatch.setattr("autollm_jax.agent.answering._next", logits)
    found = answer(agent.policy, [], 64, 8)
    rest = np.exp(0) / (np.exp(2) + len(PANELS) - 1)
    assert found.chances[3] == pytest.approx(
        np.exp(2) * rest
    ) and found.chances.sum() == pytest.approx(1)
    assert found.text.startswith(PANELS[3])


def test_a_conversation_longer_than_the_context_is_refused(agent, pairs):
    with pytest.raises(UserError, match="fewer trials"):
        answer(agent.policy, [], 8, 16)
