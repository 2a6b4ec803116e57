"""Programs that score the sampled tokens alone, against those that score whole rows.

Letters: B rows, T tokens, M scored tokens of a row, J decisions, P choices, K tokens, V vocabulary.
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from autollm_jax.models import transformer
from autollm_jax.rl.batches import (
    Decisions,
    GRPOLoopConfig,
    RolloutBatch,
    UpdateBatch,
    scored_places,
)
from autollm_jax.rl.grpo import GRPOHyperparameters
from autollm_jax.rl.logprobs import Allowed
from autollm_jax.rl.objective import jit_reference, jit_update, reference_of
from autollm_jax.rl.scoring import score
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.sharding.rules import tree_shardings
from autollm_jax.training.state import TrainState
from autollm_jax.training.step import Program

B, T, MOST = 8, 32, 7  # so M is 8
J, P, K = 2, 3, 4
WHOLE = transformer.TransformerConfig(
    vocab_size=512, width=16, layers=1, heads=4, kv_heads=2, head_dim=8, mlp_width=32
)
BLOCKED = dataclasses.replace(WHOLE, row_logits=512 * 3)
HP = GRPOHyperparameters(kl_coefficient=0.1, entropy_coefficient=0.02, temperature=0.7)
MESHES = {1: MeshShape(1, 1, 1), 8: MeshShape(2, 2, 2)}


def mesh_of(devices):
    return make_mesh(MESHES[devices], jax.devices()[:devices])


def batch_of(constrained=False, enumerated=False):
    """Two segments a row and padding; up to MOST sampled tokens, no segment's first among them."""
    rng, place_T = np.random.default_rng(0), np.arange(T)
    tokens_BT = rng.integers(0, WHOLE.vocab_size, (B, T)).astype(np.int32)
    segments_T = np.select([place_T < 12, place_T < 28], [1, 2], 0)
    positions_T = np.where(place_T < 12, place_T, place_T - 12)
    mask_BT = np.zeros((B, T), bool)
    for row, count in enumerate(rng.integers(1, MOST, B - 1).tolist() + [MOST]):
        mask_BT[row, rng.choice(np.setdiff1d(np.arange(1, 28), [12]), count, replace=False)] = True

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    decisions = allowed = None
    if enumerated:
        place_BJ = np.tile(np.array([5, 0], np.int32), (B, 1))
        mask_BT[:, 5] = False
        id_BP = np.tile(np.arange(P, dtype=np.int32), (B, 1))
        decisions = Decisions(place_BJ, normal(B, J, P), normal(B, J, P), id_BP)
    if constrained:
        token_BTK = rng.integers(-1, WHOLE.vocab_size, (B, T, K)).astype(np.int32)
        token_BTK[..., 0] = tokens_BT
        free_V = np.tile(rng.uniform(size=WHOLE.vocab_size) < 0.5, (B, 1))
        allowed = Allowed(rng.uniform(size=(B, T)) < 0.5, token_BTK, free_V)
    batch = UpdateBatch(
        tokens_BT,
        *(np.tile(x.astype(np.int32), (B, 1)) for x in (positions_T, segments_T)),
        mask_BT,
        *(np.zeros((B, T), np.float32) for _ in range(2)),
        normal(B, T),
        allowed=allowed,
        decisions=decisions,
        turns_BT=np.where(mask_BT, place_T // 6, -1).astype(np.int32),
        weights_BT=rng.uniform(0.5, 1.5, (B, T)).astype(np.float32),
    )
    scores_BT = np.asarray(scored(batch))
    behaviour_BT, reference_BT = (scores_BT + 0.3 * normal(B, T) for _ in range(2))
    return dataclasses.replace(batch, behaviour_BT=behaviour_BT, reference_BT=reference_BT)


@functools.cache
def start_params():
    return transformer.init(WHOLE, jax.random.key(0))


def scored(batch):
    """Return the log-probabilities [B, T] that the reference's program finds."""
    return Program(jit_reference(WHOLE, HP, mesh_of(1)), mesh_of(1))(start_params(), batch)[0]


def improved(model, batch, devices=1, microbatches=1):
    """Return the update's parameters, in which gradients are steps, and its metrics."""
    mesh, optimizer = mesh_of(devices), optax.sgd(1.0)
    shardings = tree_shardings(transformer.logical_axes(model), start_params(), mesh)
    params = jax.tree.map(lambda x: jnp.array(x, copy=True), start_params())  # it is donated
    params = jax.device_put(params, shardings)
    state = TrainState(np.int32(0), params, optimizer.init(params))
    update = Program(jit_update(model, HP, optimizer, mesh, microbatches), mesh, microbatches)
    state, metrics = update(state, batch, {})
    return jax.device_get((state.params, metrics))


def sampled(batch):
    place_BM = scored_places(batch.mask_BT)
    assert place_BM is not None and place_BM.shape[1] == 8
    return dataclasses.replace(batch, place_BM=place_BM)


@pytest.mark.parametrize(
    ("model", "devices", "microbatches", "constrained", "enumerated"),
    [
        (WHOLE, 1, 1, False, True),
        (BLOCKED, 1, 2, True, False),
        (BLOCKED, 8, 2, True, True),
    ],
)
def test_an_update_is_the_same_where_sampled_tokens_alone_are_scored(
    model, devices, microbatches, constrained, enumerated
):
    batch = batch_of(constrained, enumerated)
    expected = improved(WHOLE, batch, microbatches=microbatches)
    found = improved(model, sampled(batch), devices, microbatches)
    assert expected[1].keys() == found[1].keys() and expected[1]["gradient_norm"] > 0.1
    for name, value in expected[1].items():
        np.testing.assert_allclose(found[1][name], value, rtol=2e-6, atol=1e-6, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found[0], expected[0])


def test_rows_that_fill_a_batch_up_change_nothing():
    batch = sampled(batch_of())
    six = jax.tree.map(lambda x: x[:6], batch)
    found, expected = improved(WHOLE, six, devices=8), improved(WHOLE, six)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    assert abs(expected[1]["loss"] - improved(WHOLE, batch)[1]["loss"]) > 1e-3


def test_the_reference_scores_sampled_tokens_alone():
    batch = batch_of()
    whole_BT, found_BT = (np.asarray(scored(each)) for each in (batch, sampled(batch)))
    scored_BT = np.zeros((B, T), bool)
    np.put_along_axis(scored_BT, scored_places(batch.mask_BT), True, axis=1)
    assert (scored_BT & batch.mask_BT).sum() == batch.mask_BT.sum()
    np.testing.assert_allclose(found_BT[batch.mask_BT], whole_BT[batch.mask_BT], atol=1e-6)
    assert (found_BT[~scored_BT] == 0).all() and (whole_BT[:, 1:] != 0).all()


def test_places_are_the_sampled_tokens_rounded_up_to_a_power_of_two():
    for most, expected in ((0, 1), (1, 1), (3, 4), (4, 4), (5, 8), (8, 8), (9, 16)):
        mask_BT = np.zeros((2, 20), bool)
        mask_BT[0, 20 - most :] = True
        mask_BT[1, 3 : 3 + most // 2] = True
        place_BM = scored_places(mask_BT)
        assert place_BM.shape == (2, expected) and place_BM.dtype == np.int32
        for place_M, mask_T in zip(place_BM, mask_BT, strict=True):
            assert len(set(place_M)) == expected and set(np.flatnonzero(mask_T)) <= set(place_M)


def test_rollouts_of_fewer_tokens_than_a_row_may_sample_have_one_program():
    played = [batch_of().mask_BT & (np.arange(T) < most) for most in (2, T)]
    assert {scored_places(mask_BT, 7).shape for mask_BT in played} == {(B, 8)}
    assert len({scored_places(mask_BT).shape for mask_BT in played}) == 2


def test_rows_of_which_most_is_sampled_are_scored_whole():
    mask_BT = np.ones((2, 16), bool)
    assert scored_places(mask_BT) is None
    mask_BT[:, :7] = False
    assert scored_places(mask_BT) is None
    mask_BT[:, 7] = False
    assert scored_places(mask_BT).shape == (2, 8)


def test_no_program_multiplies_the_tokens_that_are_not_sampled_with_the_vocabulary():
    turns_BT = np.where(np.arange(T) < T - MOST, -1, 0) * np.ones((B, 1), np.int32)
    played = RolloutBatch(
        batch_of().tokens_BT, np.full(B, T), turns_BT, np.zeros((B, T), np.float32),
        np.arange(B, dtype=np.float32)[:, None], np.ones((B, 1), bool),
    )  # fmt: skip
    batch, _ = score(played, HP, GRPOLoopConfig(1, B, B, length_multiple=T))
    logits = B * WHOLE.vocab_size  # of one token a row
    sizes, flops = zip(*(map(measured, programs(batch))), strict=True)
    assert sizes == (logits * 8, logits * 8)
    whole = dataclasses.replace(batch, place_BM=None)
    whole_sizes, whole_flops = zip(*(map(measured, programs(whole))), strict=True)
    assert whole_sizes == (logits * (T - 1), logits * (T - 1))
    for before, after, passes in zip(whole_flops, flops, (3, 1), strict=True):
        products = passes * 2 * WHOLE.width * logits * (T - 1 - 8)
        assert products < before - after < 1.5 * products


def programs(batch):
    """Compile the update and the reference."""
    mesh, optimizer = mesh_of(1), optax.sgd(1.0)
    state = TrainState(np.int32(0), start_params(), optimizer.init(start_params()))
    with jax.set_mesh(mesh):
        update = jit_update(WHOLE, HP, optimizer, mesh, 1).lower(state, batch, {})
        reference = jit_reference(WHOLE, HP, mesh).lower(start_params(), batch)
        return update.compile(), reference.compile()


def measured(program):
    """Return the numbers of a program's largest array, and its FLOPs."""
    shapes = re.findall(r"\w\d+\[([\d,]+)\]", program.as_text())
    largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
    return largest, program.cost_analysis()["flops"]


def test_a_reference_in_bfloat16_scores_as_one_in_float32():
    wide = dataclasses.replace(WHOLE, dtype="bfloat16", activations="bfloat16")
    params, mesh, batch = start_params(), mesh_of(1), batch_of()
    kept = reference_of(wide, params)
    types = {x.dtype.name for x in jax.tree.leaves(kept["layers"]["query"])}
    assert types == {"bfloat16"} and kept["final_norm"]["scale"].dtype == np.float32
    scored = jit_reference(wide, HP, mesh)
    np.testing.assert_array_equal(scored(kept, batch)[0], scored(params, batch)[0])
    assert reference_of(WHOLE, params) is params
