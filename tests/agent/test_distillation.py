import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from autollm_jax.agent.dialogue import PolicyTokenizer
from autollm_jax.agent.distillation import (
    PackedRows,
    batch_order,
    distill,
    encode_conversation,
    imitation_loss,
    interchangeable,
    pack,
    relabel,
)
from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.data.tokenizer import train_tokenizer
from autollm_jax.errors import UserError
from autollm_jax.models import transformer
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.text import prompts
from autollm_jax.text.prompts import agent_turn, environment_turn
from autollm_jax.training.loop import LoopConfig, Site
from autollm_jax.training.optimizer import OptimizerConfig, make_optimizer

MODEL = transformer.TransformerConfig(
    vocab_size=32, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp_width=32
)


class Letters:
    """A tokenizer with one id per letter."""

    bos_id, pad_id, eos_id = 1, 0, 3

    def encode(self, text):
        return [ord(letter) - ord("a") + 4 for letter in text]

    def encode_opening(self, text):
        return [self.bos_id, *self.encode(text)]

    encode_reply = encode_agent = encode


TURNS = [
    environment_turn("abc"),
    agent_turn("de"),
    environment_turn("f"),
    agent_turn("gh", learned=False),
    environment_turn("i"),
    agent_turn("j"),
]


def conversations(count=12, seed=0):
    """Conversations in which the agent repeats the environment's letter."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        letters = [chr(ord("a") + int(n)) for n in rng.integers(0, 20, rng.integers(1, 5))]
        turns = [t for c in letters for t in (environment_turn(c * 2), agent_turn(c + "z"))]
        made.append(encode_conversation(Letters(), turns))
    return made


@functools.cache
def start_params():
    return jax.jit(functools.partial(transformer.init, MODEL))(jax.random.key(0))


loss_of = jax.jit(functools.partial(imitation_loss, MODEL))


def mesh():
    return make_mesh(MeshShape(data=1), jax.devices()[:1])


def test_the_loss_mask_is_on_learned_turns_alone():
    tokens, mask = encode_conversation(Letters(), TURNS)
    assert tokens.tolist() == [1, *Letters().encode("abcdefghij")]
    assert mask.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1]


def test_packing_keeps_every_conversation_whole():
    made = conversations(40)
    rows = pack(made, 24, pad_id=0)
    found = []
    for row in range(len(rows.tokens_NT)):
        for segment in range(1, rows.segments_NT[row].max() + 1):
            here = rows.segments_NT[row] == segment
            assert rows.positions_NT[row][here].tolist() == list(range(here.sum()))
            mask = rows.loss_mask_NT[row][here]
            found.append((rows.tokens_NT[row][here].tolist(), mask.tolist()))
    assert sorted(found) == sorted((t.tolist(), m.tolist()) for t, m in made)


def test_packing_leaves_little_padding():
    rows = pack(conversations(200), 128, pad_id=0)
    assert (rows.segments_NT > 0).mean() > 0.95


def test_a_conversation_longer_than_a_row_loses_its_end():
    rows = pack([encode_conversation(Letters(), TURNS)], 6, pad_id=0)
    assert rows.tokens_NT.tolist() == [[1, 4, 5, 6, 7, 8]]


def test_nothing_to_learn_is_a_users_error():
    with pytest.raises(UserError, match="no conversation has a turn to learn from"):
        pack([encode_conversation(Letters(), TURNS)], 4, pad_id=0)


def test_packed_rows_have_the_loss_of_rows_of_their_own():
    made = conversations(6)
    packed, alone = pack(made, 48, pad_id=0), [pack([one], 48, pad_id=0) for one in made]
    assert len(packed.tokens_NT) < len(alone)
    loss, count, _ = loss_of(start_params(), packed)
    apart = [loss_of(start_params(), rows)[:2] for rows in alone]
    np.testing.assert_allclose(
        (loss, count), np.sum(np.array(apart, np.float64), axis=0), rtol=1e-5
    )


def test_padding_with_a_token_of_the_text_changes_nothing():
    # "z" ends the agent's turns here, as an end-of-sequence token would.
    (end,) = Letters().encode("z")
    made = conversations(7)
    plain, odd = pack(made, 48, pad_id=0), pack(made, 48, pad_id=end)
    assert (plain.tokens_NT != odd.tokens_NT).any()
    assert (
        odd.loss_mask_NT[odd.tokens_NT == end].sum()
        == plain.loss_mask_NT[plain.tokens_NT == end].sum()
        > 0
    )
    gradient = jax.jit(jax.grad(lambda p, rows: imitation_loss(MODEL, p, rows)[0]))
    jax.tree.map(
        np.testing.assert_array_equal, loss_of(start_params(), plain), loss_of(start_params(), odd)
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        *(
            {k: v for k, v in gradient(start_params(), rows).items() if k != "embedding"}
            for rows in (plain, odd)
        ),
    )


def test_environment_tokens_are_read_but_not_learned():
    tokens, mask = encode_conversation(Letters(), TURNS)
    rows = pack([(tokens, mask)], 12, pad_id=0)
    _, count, _ = loss_of(start_params(), rows)
    assert count == 3
    other = dataclasses.replace(
        rows, tokens_NT=np.where(rows.positions_NT == 2, 20, rows.tokens_NT)
    )
    assert loss_of(start_params(), rows)[0] != loss_of(start_params(), other)[0]


def test_every_epoch_sees_each_row_once_in_another_order():
    order = np.concatenate([batch_order(10, 4, seed=3, step=step) for step in range(5)])
    epochs = order.reshape(2, 10)
    assert (np.sort(epochs, axis=1) == np.arange(10)).all()
    assert (epochs[0] != epochs[1]).any()


def train(path, steps, rows=None, **more):
    rows = pack(conversations(40), 32, pad_id=0) if rows is None else rows
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, decay="constant"), 100)
    config = LoopConfig(steps=steps, save_every=10, report_every=5)
    return distill(
        MODEL, config, 4, optimizer, rows, Site(mesh(), Checkpoints(path / "checkpoints"), path),
        jax.random.key(0), **more,
    )  # fmt: skip


def metrics_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    return path, train(path, 60)


def test_the_policy_learns_its_turns(whole_run):
    rows = [row for row in metrics_of(whole_run[0]) if "loss" in row]
    assert rows[-1]["loss"] < 0.4 < 2 < rows[0]["loss"]


def test_interrupted_equals_uninterrupted(whole_run, tmp_path):
    train(tmp_path, 20)
    resumed = train(tmp_path, 60)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole_run[1])


def test_a_checkpoint_of_other_rows_is_a_users_error(whole_run):
    with pytest.raises(UserError, match="trained on other data"):
        train(whole_run[0], 70, rows=pack(conversations(41), 32, pad_id=0))


def test_training_can_start_from_given_parameters(tmp_path):
    given = jax.tree.map(lambda x: x * 0.5, start_params())
    state = train(tmp_path, 0, params=given)
    jax.tree.map(np.testing.assert_array_equal, state.params, given)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    broken = jax.tree.map(lambda x: x * np.nan, start_params())
    with pytest.raises(UserError, match="distill: the loss is nan at step"):
        train(tmp_path, 10, params=broken)
    assert Checkpoints(tmp_path / "checkpoints").latest() is None


def test_rows_pass_through_jax_as_a_batch():
    rows = pack(conversations(4), 32, pad_id=0)
    assert isinstance(jax.tree.map(lambda x: x, rows), PackedRows)


NAMES = ("wiki", "code", "books", "law", "news", "chat")
CHOICE = 'lowest A 12% at {{"{0}": {1},"{2}": {3}}};\n'


def mixture_talk(count=60, seed=0):
    """Turns as they are in mixtures: a list, and one of it stated and run."""
    random, talks = np.random.default_rng(seed), []
    for _ in range(count):
        first, second = random.choice(NAMES, 2, replace=False)
        said = (first, int(random.integers(2, 40)), second, int(random.integers(2, 40)))
        line = CHOICE.format(*said)
        config = line.partition("at ")[2].removesuffix(";\n")
        talks.append(
            [
                environment_turn(f"law for mixtures:\n 0.25 {line}"),
                agent_turn(f"<think>{line}</think><exec>{config}</exec><end>"),
            ]
        )
    return talks


@pytest.fixture(scope="module")
def spoken():
    """A vocabulary of such talk, and its conversations."""
    talks = mixture_talk()
    trained = train_tokenizer(
        [turn.text for talk in talks for turn in talk],
        len(prompts.SYMBOLS) + 350,
        user_defined_symbols=prompts.SYMBOLS,
        split_digits=False,
    )
    made = PolicyTokenizer(trained.model)
    return made, [encode_conversation(made, talk) for talk in talks]


def test_numbers_and_names_of_components_may_stand_for_each_other(spoken):
    tokenizer, found = spoken
    behind_space, rest, names = (
        {tokenizer.decode([i]) for i in ids}
        for ids in interchangeable(tokenizer, [tokens for tokens, _ in found])
    )
    assert " 0" in behind_space | {t[:2] for t in behind_space} and not rest & behind_space
    assert all(text.strip(" 0123456789.-") == "" for text in behind_space | rest)
    assert "12%" not in behind_space | rest  # forecasts keep their order
    # "law" begins a line too: it is no name that could be another's.
    assert names and names <= {"wiki", "code", "books", "news", "chat"}


def test_what_is_copied_stays_a_copy(spoken):
    tokenizer, found = spoken
    sets = interchangeable(tokenizer, [tokens for tokens, _ in found])
    changed = relabel(found, sets, 1.0, seed=3)
    same = 0
    for (tokens, mask), (others, its_mask) in zip(found, changed, strict=True):
        assert mask is its_mask and len(tokens) == len(others)
        text = tokenizer.decode(others.tolist())
        stated = text.partition("<think>")[2].partition("</think>")[0]
        assert stated in text.partition("<think>")[0]
        same += np.array_equal(tokens, others)
        moved = tokens != others
        assert np.isin(tokens[moved], np.concatenate(sets)).all()
    assert same < 0.1 * len(found)


def test_a_share_is_relabelled_the_same_way_each_time(spoken):
    tokenizer, found = spoken
    sets = interchangeable(tokenizer, [tokens for tokens, _ in found])
    none, half, again = (relabel(found, sets, share, seed=3) for share in (0.0, 0.5, 0.5))
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(none, found, strict=True))
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(half, again, strict=True))
    kept = np.mean([np.array_equal(a[0], b[0]) for a, b in zip(half, found, strict=True)])
    assert 0.3 < kept < 0.7
