import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from autollm_jax.agent import distillation
from autollm_jax.agent.dialogue import encode_turn, panel_ids
from autollm_jax.agent.distillation import (
    PackedRows,
    batch_order,
    choices_of,
    distill,
    encode_conversation,
    imitation_loss,
    pack,
    select,
)
from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.errors import UserError
from autollm_jax.models import transformer
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.text.prompts import agent_turn, environment_turn
from autollm_jax.training.loop import LoopConfig, Site
from autollm_jax.training.optimizer import OptimizerConfig, make_optimizer
from autollm_jax.training.profiling import Window

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
    environment_turn("fgh"),
    agent_turn("i"),
    environment_turn("j"),
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


def test_the_loss_mask_is_on_agents_turns_alone():
    tokens, mask = encode_conversation(Letters(), TURNS)
    assert tokens.tolist() == [1, *Letters().encode("abcdefghij")]
    assert mask.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 0]


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


def test_learned_tokens_alone_are_scored_with_the_loss_and_gradient_of_whole_rows():
    some = pack(conversations(12), 64, pad_id=0)
    whole = dataclasses.replace(some, place_NM=None)
    assert some.place_NM.shape[1] == 32
    both = jax.jit(jax.value_and_grad(lambda p, rows: imitation_loss(MODEL, p, rows)[0]))
    found = [both(start_params(), rows) for rows in (some, whole)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *found)
    flops = [
        both.lower(start_params(), rows).compile().cost_analysis()["flops"]
        for rows in (some, whole)
    ]
    left_out = whole.tokens_NT.size - some.place_NM.size
    assert flops[1] - flops[0] > 6 * left_out * MODEL.width * MODEL.vocab_size


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


def train(path, steps, rows=None, traced=None, **more):
    rows = pack(conversations(40), 32, pad_id=0) if rows is None else rows
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, decay="constant"), 100)
    config = LoopConfig(steps=steps, save_every=10, report_every=5)
    return distill(
        MODEL, config, 4, optimizer, rows,
        Site(mesh(), Checkpoints(path / "checkpoints"), path, traced), jax.random.key(0), **more,
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


def test_every_row_says_how_well_the_devices_were_used(whole_run):
    rows = metrics_of(whole_run[0])
    for row in rows:
        assert 0 < row["mfu"] < 1
        assert row["tokens_per_second_per_device"] == pytest.approx(row["tokens_per_second"])
        assert row["peak_memory_bytes"] > 1e8
    compiling = [row["compile_seconds"] for row in rows]
    assert 0 < compiling[0] and compiling == sorted(compiling)


def test_a_windows_steps_are_traced(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))

    def stream(rows, chosen):
        calls.append("batch")
        return select(rows, chosen)

    monkeypatch.setattr(distillation, "select", stream)
    train(tmp_path, 6, traced=Window(2, 4, tmp_path / "profile"))
    assert calls == ["batch"] * 2 + ["start"] + ["batch"] * 2 + ["stop"] + ["batch"] * 2


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


def test_a_turns_choice_is_the_panel_that_it_names_last(tokenizer, taught):
    ids_P = panel_ids(tokenizer)
    for trajectory, _ in taught:
        found, start = choices_of(tokenizer, trajectory.turns), 0
        expected = []
        for number, turn in enumerate(trajectory.turns):
            tokens = encode_turn(tokenizer, turn, opens=number == 0)
            if turn.role == "agent":
                named = [n for n, token in enumerate(tokens) if token in ids_P]
                expected.append((start + named[-1], turn.chances))
            start += len(tokens)
        assert [(place, tuple(chance_P)) for place, chance_P in found] == expected
    assert choices_of(tokenizer, [dataclasses.replace(t, chances=()) for t in TURNS]) == []


ID_P = np.array([20, 21, 22])


def chosen_conversations():
    """Two conversations of one row, with two choices and one; each at the place of a panel."""
    tokens = [np.array([1, 5, 6, 20, 7, 8, 22]), np.array([1, 9, 21, 6])]
    masks = [np.isin(np.arange(7), [3, 4, 6]), np.array([False, False, True, True])]
    chances = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.7, 0.1]])
    choices = [[(3, chances[0]), (6, chances[1])], [(2, chances[2])]]
    return list(zip(tokens, masks, strict=True)), choices, chances


def test_choices_move_with_their_conversations_and_leave_the_loss_mask():
    made, choices, chances = chosen_conversations()
    rows = pack(made, 12, 0, choices, ID_P)
    assert rows.chances.place_NJ.tolist() == [[3, 6, 7 + 2]]
    assert rows.tokens_NT[0, rows.chances.place_NJ[0]].tolist() == [20, 22, 21]
    np.testing.assert_allclose(rows.chances.chance_NJP[0], chances, rtol=1e-6)
    assert np.flatnonzero(rows.loss_mask_NT[0]).tolist() == [4, 10]
    assert pack(made, 12, 0).loss_mask_NT.sum() == 5
    # A choice behind the end of a row is none; a row with fewer is filled up with place 0.
    cut = pack(made, 5, 0, choices, ID_P)
    assert cut.chances.place_NJ.tolist() == [[3], [2]]


def test_a_choices_loss_is_the_cross_entropy_of_its_whole_distribution():
    made, choices, chances = chosen_conversations()
    rows = pack(made, 12, 0, choices, ID_P)
    loss, count, metrics = loss_of(start_params(), rows)
    apart = [pack([one], 12, 0) for one in made]
    of_choices = of_others = 0.0
    for one, places in zip(apart, choices, strict=True):
        logits_TV = np.asarray(transformer.apply(MODEL, start_params(), one.tokens_NT), float)[0]
        logits_TV -= logits_TV.max(-1, keepdims=True)
        log_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
        at = [place for place, _ in places]
        for place, chance_P in places:
            of_choices -= (chance_P * log_TV[place - 1, ID_P]).sum()
        for place in set(np.flatnonzero(one.loss_mask_NT[0]).tolist()) - set(at):
            of_others -= log_TV[place - 1, one.tokens_NT[0, place]]
    np.testing.assert_allclose(metrics["decision_loss"], (of_choices, 3), rtol=1e-4)
    np.testing.assert_allclose((loss, count), (of_choices + of_others, 5), rtol=1e-4)
