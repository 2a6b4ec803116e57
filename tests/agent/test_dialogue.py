"""Turns as tokens of own and published vocabularies, and play with a published one."""

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from autollm_jax.agent import constraint, dialogue, grpo_rollout, rollout
from autollm_jax.agent.distillation import choices_of, encode_conversation
from autollm_jax.agent.environment_turns import Start
from autollm_jax.curriculum.pairs import Pair
from autollm_jax.curriculum.teacher import SimulationConfig, Trajectory, simulate
from autollm_jax.gym.environment import Episode
from autollm_jax.models import transformer
from autollm_jax.published.tokenizer import PretrainedTokenizer
from autollm_jax.published.vocabularies import BytePairs
from autollm_jax.rl.sampler import SamplerConfig
from autollm_jax.text import parsing, prompts
from autollm_jax.text.symbols import END_OF_TURN, PANELS
from tests.families import panel_of

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
BUDGET = 2


@pytest.fixture(scope="module")
def published():
    """One token a byte, and two that open and close turns."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    control = ("<|im_start|>", "<|im_end|>")
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in control])
    return PretrainedTokenizer(BytePairs(made), CHATML, {})


@pytest.fixture
def trajectory(family, recipe):
    pair = Pair(family[3], tuple(family[:3]), recipe)
    return simulate(pair, SimulationConfig(budget=BUDGET, episodes=1))[0]


def test_a_conversation_stands_in_the_template_and_only_agents_turns_are_learned(
    published, trajectory
):
    chat = dialogue.ChatTokenizer(published)
    tokens, mask = encode_conversation(chat, trajectory.turns)
    whole = published.decode(tokens.tolist(), control=True)
    said = [turn.text.removesuffix(END_OF_TURN) for turn in trajectory.turns]
    assert whole.startswith(f"<|im_start|>user\n{dialogue.INSTRUCTIONS}{said[0]}<|im_end|>\n")
    assert f"<|im_start|>assistant\n{said[1]}<|im_end|>\n<|im_start|>user\n{said[2]}" in whole
    assert END_OF_TURN not in whole
    assert chat.decode(tokens[mask].tolist()) == "".join(said[1::2])
    assert (tokens[mask] == chat.stop_id).sum() == BUDGET


def test_a_panel_is_one_token_of_an_own_vocabulary_and_several_of_a_published_one(
    published, tokenizer, trajectory
):
    chat = dialogue.ChatTokenizer(published)
    assert dialogue.panel_ids(chat) is None and choices_of(chat, trajectory.turns) == []
    ids_P = dialogue.panel_ids(tokenizer)
    assert [tokenizer.decode([token]) for token in ids_P] == list(PANELS)


def test_examples_are_the_shortest_first_turns_each_of_another_task(recipe):
    made = []
    for task, length in (("grpo", 9), ("grpo", 3), ("pretraining", 5), ("architecture", 7)):
        turns = (
            prompts.environment_turn(f"task {task}:\n{'x' * length};\n"),
            prompts.agent_turn("<think>a</think><exec>#B</exec><end>"),
        )
        made.append(Trajectory(recipe, turns, ()))
    text = dialogue.examples(made, 2)
    shown = [part for part in text.split("Example:\n") if part]
    # One text begins each kind's key, its task.
    assert [part.partition(";")[0] for part in shown] == [
        "task grpo:\nxxx",
        "task pretraining:\nxxxxx",
    ]
    assert text.endswith("Now the experiment:\n") and END_OF_TURN not in text
    assert parsing.parse_action(shown[0]).letter == 1


@pytest.mark.parametrize("constrained", [False, True])
def test_a_policy_of_a_published_vocabulary_plays(published, family, constrained):
    chat = dialogue.ChatTokenizer(published)
    model = transformer.TransformerConfig(
        vocab_size=chat.vocab_size + 6, width=16, layers=1, heads=2, kv_heads=1, head_dim=8,
        mlp_width=16,
    )  # fmt: skip
    params = jax.jit(transformer.init, static_argnums=0)(model, jax.random.key(0))
    panel = panel_of(family[3].setting, tuple(family[:3]))
    starts = [Start(Episode(family[3], family[:3], BUDGET), panel) for _ in range(2)]
    sizes = SamplerConfig(context=4096, cache_block=4096, chunk_sizes=(1024,))
    config = rollout.PlayConfig(sizes, 120, 1.0, constrained=constrained)
    played = rollout.play(
        rollout.Policy(model, params, chat), config, starts, [0, 1], jax.random.key(1)
    )
    trials = [trial for start in starts for trial in start.episode.trials]
    if constrained:
        assert all(trial.valid and not trial.matched for trial in trials)
        assert parsing.parse_action(played.transcripts[0][1].text).letter is not None
        assert constraint.letters(chat).opening == len("<think>")
        batch = grpo_rollout.rollout_batch(played, BUDGET, chat, config)
        assert batch.decisions is None and batch.allowed is not None
    else:
        assert not any(trial.valid for trial in trials)
    assert all(len(start.episode.trials) == BUDGET for start in starts)
    assert np.all(played.state.length_B > 0)
