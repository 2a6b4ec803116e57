"""A pair of each kind of experiment, the teacher's episodes on it, and a small policy."""

import functools

import jax
import pytest

from autollm_jax.agent.dialogue import PolicyTokenizer
from autollm_jax.curriculum import teacher
from autollm_jax.curriculum.pairs import Pair, Recipe
from autollm_jax.data.tokenizer import reserved_ids, train_tokenizer
from autollm_jax.forecasts.advice import decision_of
from autollm_jax.models import transformer
from autollm_jax.text.symbols import SYMBOLS

BUDGET = 3


@pytest.fixture(scope="session")
def pairs(family, mixtures, architectures, tunings):
    made = []
    for number, (*cheap, target) in enumerate((family, mixtures, architectures, tunings)):
        recipe = Recipe("tables", "made", target.task, 0, (), False, "", 0, (), number)
        made.append(Pair(target, tuple(cheap), recipe))
    return made


@pytest.fixture(scope="session")
def taught(pairs):
    """The teacher's episode on each pair, with the seed of its candidates' order."""
    config, made, orders = teacher.SimulationConfig(budget=BUDGET, episodes=1), [], []

    def deciding(panel, seen, order):
        orders.append(order)
        return decision_of(panel, seen, order)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "decision_of", deciding)
        for pair in pairs:
            (trajectory,) = teacher.simulate(pair, config)
            made.append((trajectory, orders[-1]))
    return made


@pytest.fixture(scope="session")
def tokenizer(taught):
    made = train_tokenizer(
        [trajectory.text for trajectory, _ in taught], reserved_ids(SYMBOLS) + 60,
        user_defined_symbols=SYMBOLS, split_digits=False,
    )  # fmt: skip
    return PolicyTokenizer(made.model)


@pytest.fixture(scope="session")
def model(tokenizer):
    """A small policy over the vocabulary."""
    return transformer.TransformerConfig(
        vocab_size=tokenizer.vocab_size, width=16, layers=2, heads=2, kv_heads=1, head_dim=8,
        mlp_width=32,
    )  # fmt: skip


@pytest.fixture(scope="session")
def params(model):
    return jax.jit(functools.partial(transformer.init, model))(jax.random.key(2))
