"""Groups whose common beginning is computed once, against rows that are computed one by one.

Letters: N groups, G members, B rows, T tokens, K allowed tokens.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from autollm_jax.models import lora, transformer
from autollm_jax.models.shared_prefix import SharedPrefix
from autollm_jax.rl.batches import GRPOLoopConfig, RolloutBatch, minibatches
from autollm_jax.rl.grpo import GRPOHyperparameters
from autollm_jax.rl.logprobs import Allowed, hidden_states
from autollm_jax.rl.objective import jit_reference, jit_update, with_reference
from autollm_jax.rl.prefixes import Aligner
from autollm_jax.rl.scoring import score
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.sharding.rules import tree_shardings
from autollm_jax.training.flops import count
from autollm_jax.training.state import TrainState
from autollm_jax.training.step import Program

N, G, T, K = 4, 4, 64, 2
B = N * G
PLAIN = transformer.TransformerConfig(
    vocab_size=48, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=32
)
CONVOLVED = dataclasses.replace(PLAIN, short_conv=4, rope_fraction=0.5, attention_block=12)
REMATERIALISED = dataclasses.replace(PLAIN, remat="outputs", row_logits=48 * 5, scan_unroll=2)
ADAPTED = dataclasses.replace(PLAIN, lora_rank=2, lora_targets=("query", "value", "up"))
HP = GRPOHyperparameters(kl_coefficient=0.1, entropy_coefficient=0.02)
PROMPTS = (20, 31, 17, 31)  # tokens that a group has in common


def conversations(allowed=False):
    """Return rows of unequal lengths, whose groups have unequal prompts in common."""
    rng = np.random.default_rng(0)
    tokens_BT = np.zeros((B, T), np.int32)
    length_B = np.zeros(B, np.int32)
    for n, common in enumerate(PROMPTS):
        prompt = rng.integers(1, PLAIN.vocab_size, common)
        for g in range(G):
            row, own = n * G + g, int(rng.integers(5, 13))
            answer = rng.integers(1, PLAIN.vocab_size, own)
            answer[0] = 1 + g  # members differ from here on
            length_B[row] = common + own
            tokens_BT[row, : common + own] = [*prompt, *answer]
    place_BT = np.arange(T) - np.repeat(PROMPTS, G)[:, None]
    # The environment's tokens stand between those of two turns; a group differs in the second.
    turns_BT = np.select([place_BT < 0, place_BT < 3, place_BT < 5], [-1, 0, -1], 1)
    turns_BT[np.arange(T) >= length_B[:, None]] = -1
    turns_BT[:, 10] = 0  # a token that all members have sampled
    edges = None
    if allowed:
        token_BTK = rng.integers(-1, PLAIN.vocab_size, (B, T, K)).astype(np.int32)
        token_BTK[..., 0] = tokens_BT
        free_BV = np.tile(rng.uniform(size=PLAIN.vocab_size) < 0.5, (B, 1))
        edges = Allowed(rng.uniform(size=(B, T)) < 0.5, token_BTK, free_BV)
    return RolloutBatch(
        tokens_BT, length_B, turns_BT.astype(np.int32),
        rng.normal(-3, 0.1, (B, T)).astype(np.float32),
        rng.normal(size=(B, 2)).astype(np.float32), np.ones((B, 2), bool), edges,
    )  # fmt: skip


def settings(**changes):
    return GRPOLoopConfig(1, G, B, length_multiple=8, share_prefixes=True, **changes)


@functools.cache
def start_params(model):
    params = transformer.init(model, jax.random.key(0))
    # Convolutions start as the identity, which would not read a neighbour.
    noise = jax.random.normal(jax.random.key(1), (1000,))
    return jax.tree.map(lambda x: x + 0.1 * jnp.resize(noise, x.shape), params)


MESHES = {1: MeshShape(), 2: MeshShape(fsdp=2), 4: MeshShape(data=4), 8: MeshShape(2, 2, 2)}


def improved(model, share, devices=1, microbatches=1, allowed=False, cut=()):
    """Return the update's parameters, in which gradients are steps, its metrics and FLOPs.

    Rows in `cut` count as cut by the context, and do not teach.
    """
    config, hp = settings(microbatches=microbatches), dataclasses.replace(HP, mask_truncated=True)
    played = conversations(allowed)
    played = dataclasses.replace(played, truncated_B=np.isin(np.arange(B), cut))
    batch, informative_B = score(played, hp, config, Aligner(G) if share else None)
    rows = np.flatnonzero(informative_B)
    assert len(rows) == B - len(cut) and (batch.shared.tokens > 0) == share
    mesh, optimizer = make_mesh(MESHES[devices], jax.devices()[:devices]), optax.sgd(1.0)
    reference = Program(jit_reference(model, hp, mesh), mesh)
    batch = with_reference(batch, rows, reference, start_params(model), config)
    assert np.abs(batch.reference_BT - batch.behaviour_BT)[batch.mask_BT].min() > 1e-4
    (minibatch,) = minibatches(batch, rows, config, seed=0)
    shardings = tree_shardings(transformer.logical_axes(model), start_params(model), mesh)
    params = jax.tree.map(lambda x: jnp.array(x, copy=True), start_params(model))
    frozen, params = lora.split(model, jax.device_put(params, shardings))
    state = TrainState(np.int32(0), params, optimizer.init(params))
    update = Program(jit_update(model, hp, optimizer, mesh, microbatches), mesh, microbatches)
    state, metrics = update(state, minibatch, frozen)
    return *jax.device_get((state.params, metrics)), update.flops


@pytest.mark.parametrize(
    ("model", "devices", "microbatches", "allowed", "cut"),
    [
        (CONVOLVED, 1, 2, True, ()),
        (REMATERIALISED, 2, 2, True, (1,)),
        (CONVOLVED, 4, 1, False, (3, 4, 5, 6, 7)),
        (PLAIN, 8, 1, True, ()),
        (ADAPTED, 1, 1, False, (0, 15)),
    ],
)
def test_an_update_is_the_same_where_prompts_are_read_once(
    model, devices, microbatches, allowed, cut
):
    expected, of_rows, flops = improved(model, False, allowed=allowed, cut=cut)
    params, metrics, fewer = improved(model, True, devices, microbatches, allowed, cut)
    assert of_rows["gradient_norm"] > 0.05 and of_rows.keys() == metrics.keys()
    for name, value in of_rows.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), params, expected)
    assert fewer < 0.85 * flops


def test_what_rows_share_changes_no_hidden_state_and_costs_less():
    batch, _ = score(conversations(), HP, settings(), Aligner(G))
    rows = batch.tokens_BT, batch.positions_BT, batch.segments_BT
    there_BT = batch.segments_BT[:, :-1] > 0
    params = start_params(CONVOLVED)

    def hidden(params, shared):
        return hidden_states(CONVOLVED, params, *rows, shared)

    apart, together = hidden(params, SharedPrefix()), hidden(params, batch.shared)
    np.testing.assert_allclose(together[there_BT], apart[there_BT], atol=1e-5)
    assert count(jax.make_jaxpr(lambda p: hidden(p, batch.shared))(params)) < count(
        jax.make_jaxpr(lambda p: hidden(p, SharedPrefix()))(params)
    )


def test_rows_move_to_where_the_shared_part_ends():
    played = conversations()
    aligned, start_B, shared = Aligner(G)(played)
    P = shared.tokens
    assert shared.members == G and 0 < P <= max(PROMPTS)
    assert aligned.tokens_BT.shape[1] < T
    for row in range(B):
        common, start, length = PROMPTS[row // G], start_B[row], played.length_B[row]
        assert start == P - min(common, P)
        for name in ("tokens_BT", "turns_BT", "behaviour_BT"):
            before, after = getattr(played, name), getattr(aligned, name)
            np.testing.assert_array_equal(after[row, start : start + length], before[row, :length])
        assert (aligned.turns_BT[row, :start] == -1).all()
        assert (aligned.turns_BT[row, start + length :] == -1).all()
        first = row // G * G
        np.testing.assert_array_equal(aligned.tokens_BT[row, :P], aligned.tokens_BT[first, :P])


def test_a_rollout_takes_the_sizes_of_the_one_before_where_they_cost_little_more():
    played, aligner = conversations(), Aligner(G)
    first, _, shared = aligner(played)
    shorter = dataclasses.replace(played, length_B=played.length_B - 1)
    same, start_B, again = aligner(shorter)
    assert again == shared and same.tokens_BT.shape == first.tokens_BT.shape
    assert Aligner(G)(shorter)[0].tokens_BT.shape != first.tokens_BT.shape
    half = dataclasses.replace(played, length_B=played.length_B // 2)
    assert aligner(half)[0].tokens_BT.shape[1] < 0.8 * first.tokens_BT.shape[1]
    longer = dataclasses.replace(played, length_B=np.full_like(played.length_B, T))
    rows, start_B, _ = aligner(longer)  # the sizes before have no room
    assert (start_B + T <= rows.tokens_BT.shape[1]).all()


def test_rows_that_are_empty_stay_as_they_are():
    empty = dataclasses.replace(conversations(), length_B=np.zeros(B, np.int32))
    assert Aligner(G)(empty)[0] is empty


def test_a_token_that_another_member_lacks_is_not_shared():
    """A row that ends within the common beginning keeps a token of its own."""
    played = conversations()
    length_B = played.length_B.copy()
    length_B[0] = 12
    ended = dataclasses.replace(played, length_B=length_B)
    aligned, start_B, shared = Aligner(G)(ended)
    P = shared.tokens
    assert start_B[0] == max(P - 11, 0)
    there_BT = np.arange(aligned.tokens_BT.shape[1]) - start_B[:, None]
    there_BT = (there_BT >= 0) & (there_BT < length_B[:, None])
    for row in range(B):
        np.testing.assert_array_equal(there_BT[row, :P], there_BT[row // G * G, :P])


def test_rows_that_share_little_stay_as_they_are():
    played = conversations()
    rng = np.random.default_rng(1)
    tokens_BT = played.tokens_BT.copy()
    tokens_BT[:, 1] = rng.permutation(B)
    others = dataclasses.replace(played, tokens_BT=tokens_BT)
    aligned, start_B, shared = Aligner(G)(others)
    assert aligned is others and shared == SharedPrefix() and not start_B.any()


@pytest.mark.parametrize("microbatches", [1, 2])
def test_groups_stay_whole_in_minibatches_and_microbatches(microbatches):
    batch, _ = score(conversations(), HP, settings(), Aligner(G))
    batch = dataclasses.replace(
        batch, behaviour_BT=np.broadcast_to(np.arange(B)[:, None], batch.mask_BT.shape)
    )
    config = dataclasses.replace(
        settings(microbatches=microbatches), minibatch_rows=2 * G, epochs=2
    )
    rows = np.setdiff1d(np.arange(B), [*range(G, 2 * G), 2 * G + 1])  # one group, one row less
    seen = []
    for minibatch in minibatches(batch, rows, config, seed=3):
        for piece in range(microbatches):  # as `training.step.update` cuts it
            members = minibatch.behaviour_BT[piece::microbatches, 0].astype(int).reshape(-1, G)
            np.testing.assert_array_equal(members, members[:, :1] // G * G + np.arange(G))
            real = minibatch.mask_BT[piece::microbatches].any(1).reshape(-1, G)
            seen += [*members[real.all(1)].ravel()]
    assert sorted(seen) == sorted(2 * [*range(G), *range(2 * G, 4 * G)])
