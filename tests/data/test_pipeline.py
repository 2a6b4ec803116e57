"""Packed rows and batches as a function of the step."""

import itertools
import json

import jax
import numpy as np
import pytest

from autollm_jax.data.corpus import make_corpus
from autollm_jax.data.pipeline import Pipeline, pack, packed_corpus
from autollm_jax.data.tokenizer import train_tokenizer
from autollm_jax.errors import UserError

T = 16


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"word{i} and number {i * i}.\n" for i in range(300)], 300)


def make_documents(mark, count=30):
    return [f"{mark}{mark} word{i} " * (1 + i % 7) for i in range(count)]


@pytest.fixture(scope="module")
def packed(tokenizer):
    return pack(make_documents("a"), tokenizer, T)


def assert_same(first, second):
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)


def differs(first, second):
    return not np.array_equal(first.tokens_BT, second.tokens_BT)


def test_rows_hold_every_token_once_as_a_target(tokenizer, packed):
    documents = make_documents("a")
    stream = np.concatenate(tokenizer.encode_documents(documents))
    targets = packed.tokens_NT[:, 1:].reshape(-1)
    np.testing.assert_array_equal(targets[: len(stream) - 1], stream[1:])
    assert np.all(targets[len(stream) - 1 :] == tokenizer.pad_id)
    assert tokenizer.decode([packed.tokens_NT[0, 0], *targets]) == "".join(documents)


def test_segments_and_positions_restart_with_each_document(tokenizer):
    documents = ["abc", "de"]
    lengths = [len(ids) for ids in tokenizer.encode_documents(documents)]
    row = pack(documents, tokenizer, 20)
    padding = 21 - sum(lengths)
    expected = [1] * lengths[0] + [2] * lengths[1] + [0] * padding
    np.testing.assert_array_equal(row.segments_NT, [expected])
    positions = [*range(lengths[0]), *range(lengths[1]), *[0] * padding]
    np.testing.assert_array_equal(row.positions_NT, [positions])


def test_segments_and_positions_restart_with_each_row(packed):
    assert np.all(packed.segments_NT[:, 0] == 1)
    assert np.all(packed.positions_NT[:, 0] == 0)
    assert packed.positions_NT.max() == T


def test_targets_are_inputs_shifted_by_one(packed):
    batch = Pipeline(packed, 4, seed=0).batch(0)
    assert batch.tokens_BT.shape == batch.targets_BT.shape == (4, T)
    np.testing.assert_array_equal(batch.tokens_BT[:, 1:], batch.targets_BT[:, :-1])


def test_loss_mask_leaves_out_padding_and_the_first_token_of_a_document(tokenizer):
    rows = pack(["abc", "de"], tokenizer, 20)
    batch = Pipeline(rows, 1, seed=0).batch(0)
    masked = batch.targets_BT[~batch.loss_mask_BT]
    assert sorted(set(masked.tolist())) == [tokenizer.pad_id, tokenizer.bos_id]
    kept = batch.targets_BT[batch.loss_mask_BT]
    assert tokenizer.decode(kept) == "abcde" and np.sum(kept == tokenizer.eos_id) == 2


def test_same_seed_and_step_give_the_same_batch(packed):
    assert_same(Pipeline(packed, 4, seed=3).batch(11), Pipeline(packed, 4, seed=3).batch(11))


def test_seeds_and_steps_give_other_batches(packed):
    pipeline = Pipeline(packed, 4, seed=3)
    assert differs(pipeline.batch(0), pipeline.batch(1))
    assert differs(pipeline.batch(0), Pipeline(packed, 4, seed=4).batch(0))


def test_an_epoch_shows_every_row_once(packed):
    pipeline = Pipeline(packed, 1, seed=0)
    for epoch in range(2):
        seen = pipeline.batches(epoch * len(packed), len(packed)).tokens_BT[:, 0]
        expected = packed.tokens_NT[:, :-1]
        np.testing.assert_array_equal(
            np.unique(seen, axis=0, return_counts=True)[1],
            np.unique(expected, axis=0, return_counts=True)[1],
        )


def test_epochs_are_shuffled_differently(packed):
    pipeline = Pipeline(packed, len(packed), seed=0)
    assert differs(pipeline.batch(0), pipeline.batch(1))


def test_without_shuffling_rows_keep_their_order(packed):
    batch = Pipeline(packed, 4, seed=0, shuffle=False).batch(1)
    np.testing.assert_array_equal(batch.tokens_BT, packed.tokens_NT[4:8, :-1])


@pytest.mark.parametrize("weights", [None, {"a": 0.7, "b": 0.3}])
def test_stacked_batches_equal_single_ones(tokenizer, packed, weights):
    rows = {"a": packed, "b": pack(make_documents("b"), tokenizer, T)}
    pipeline = Pipeline(rows, 4, seed=1, weights=weights, process_index=1, process_count=2)
    # More than an epoch, from the middle.
    count = 2 * pipeline.rows // 4
    stacked = pipeline.batches(5, count)
    assert stacked.tokens_BT.shape == (count, 2, T)
    for k in range(count):
        single = pipeline.batch(5 + k)
        assert_same(jax.tree.map(lambda x, k=k: x[k], stacked), single)


def test_resuming_at_the_saved_step_equals_going_on(packed):
    uninterrupted = list(itertools.islice(Pipeline(packed, 4, seed=2).iterate(), 12))
    iterator = Pipeline(packed, 4, seed=2).iterate()
    consumed = [next(iterator) for _ in range(5)]
    state = json.loads(json.dumps({"step": len(consumed)}))
    resumed = itertools.islice(Pipeline(packed, 4, seed=2).iterate(state["step"]), 7)
    assert_same(consumed + list(resumed), uninterrupted)


def test_slices_of_two_processes_form_the_global_batch(packed):
    whole = Pipeline(packed, 4, seed=5).batch(9)
    parts = [Pipeline(packed, 4, seed=5, process_index=i, process_count=2) for i in range(2)]
    joined = jax.tree.map(lambda *xs: np.concatenate(xs), *[part.batch(9) for part in parts])
    assert_same(joined, whole)


def test_weights_set_the_shares_of_the_domains(tokenizer):
    rows = {mark: pack([mark * 5000], tokenizer, T) for mark in "abc"}
    pipeline = Pipeline(rows, 10, seed=0, weights={"a": 3.0, "c": 1.0})
    tokens = pipeline.batches(0, 40).tokens_BT.reshape(400, T)
    marks = ["".join(sorted(set(tokenizer.decode(row)))) for row in tokens]
    assert marks.count("a") == 300 and marks.count("c") == 100


def make_corpus_of_two():
    return make_corpus(
        "c",
        version="1",
        description="",
        domains={
            "code": {str(i): text for i, text in enumerate(make_documents("q"))},
            "talk": {str(i): text for i, text in enumerate(make_documents("x"))},
        },
        validation={"code": {"v": "Z" * 50}, "talk": {"v": "Y" * 50}},
    )


def test_no_row_mixes_splits_or_domains(tokenizer):
    corpus = make_corpus_of_two()
    train = packed_corpus(corpus, tokenizer, T)
    held_out = packed_corpus(corpus, tokenizer, T, split="validation")
    marks = {("code", 0): "q", ("talk", 0): "x", ("code", 1): "Z", ("talk", 1): "Y"}
    for (domain, split), mark in marks.items():
        for row in (train, held_out)[split][domain].tokens_NT:
            found = set(tokenizer.decode(row)) & set("qxZY")
            assert found <= {mark}


def test_token_cache_equals_tokenising_and_serves_every_length(tokenizer, tmp_path, monkeypatch):
    corpus = make_corpus_of_two()
    fresh = {length: packed_corpus(corpus, tokenizer, length) for length in (8, 16)}
    packed_corpus(corpus, tokenizer, 8, cache_dir=tmp_path)
    monkeypatch.setattr("autollm_jax.data.pipeline.tokenize", None)
    for length, expected in fresh.items():
        cached = packed_corpus(corpus, tokenizer, length, cache_dir=tmp_path)
        for domain, rows in expected.items():
            np.testing.assert_array_equal(cached[domain].tokens_NT, rows.tokens_NT)
            np.testing.assert_array_equal(cached[domain].positions_NT, rows.positions_NT)


def test_truncated_token_cache_is_an_explained_error(tokenizer, tmp_path):
    corpus = make_corpus_of_two()
    packed_corpus(corpus, tokenizer, T, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="damaged token cache"):
        packed_corpus(corpus, tokenizer, T, cache_dir=tmp_path)


def test_packing_nothing_gives_no_rows_and_an_explained_error(tokenizer):
    nothing = pack([], tokenizer, T)
    assert len(nothing) == 0
    with pytest.raises(UserError, match="not one row"):
        Pipeline(nothing, 4, seed=0)


@pytest.mark.parametrize("batch_size, processes", [(0, 1), (3, 2)])
def test_batch_that_does_not_divide_is_an_explained_error(packed, batch_size, processes):
    with pytest.raises(UserError, match=f"batch_size={batch_size}"):
        Pipeline(packed, batch_size, seed=0, process_count=processes)


@pytest.mark.parametrize("weights", [{"z": 1.0}, {"a": -1.0}, {"a": float("nan")}, {"a": 0.0}])
def test_unusable_weights_are_an_explained_error(packed, weights):
    with pytest.raises(UserError, match="weights"):
        Pipeline({"a": packed}, 4, seed=0, weights=weights)


def test_a_batch_passes_through_jit(packed):
    batch = Pipeline(packed, 4, seed=0).batch(0)
    total = jax.jit(lambda batch: (batch.targets_BT * batch.loss_mask_BT).sum())(batch)
    assert int(total) == int((batch.targets_BT * batch.loss_mask_BT).sum())
