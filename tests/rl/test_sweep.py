import dataclasses
import functools

import jax
import numpy as np
import pytest

from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.models import transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl import sweep
from autollm_jax.rl.grpo import GRPOHyperparameters
from autollm_jax.rl.objective import policy_loss
from autollm_jax.rl.problems import VOCAB_SIZE, Problem, ProblemSet
from autollm_jax.rl.sweep import GRPORun, GRPOSweepConfig, train_grpo_group
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.training.optimizer import OptimizerConfig, make_optimizer
from autollm_jax.training.state import TrainState
from autollm_jax.training.step import update
from tests.collectives import COLLECTIVE

MODEL = TransformerConfig(
    vocab_size=VOCAB_SIZE, width=16, layers=1, heads=2, kv_heads=2, head_dim=8, mlp_width=32
)
OPTIMIZER = OptimizerConfig(0.0, decay="constant", weight_decay=0.0)
CONFIG = GRPOSweepConfig(steps=3, rollout_rows=16, group_size=8, minibatch_rows=8, epochs=1)
RUN = GRPORun(3e-2, 0.0, 0.2, 1.0, 0)
# To say nothing is right: one token, the stop token, which a fresh model draws now and then.
SILENCE = ProblemSet(
    "silence",
    tuple(Problem(f"{number}=", "1") for number in range(10, 50)),
    tuple(Problem(f"{number}=", "1") for number in range(50, 80)),
    lambda prompt, answer: answer == "",
    temperature=0.0,
    wrong_share=0.0,
)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshShape(), jax.devices()[:2])


@pytest.fixture(scope="module")
def params():
    return transformer.init(MODEL, jax.random.key(0))


@pytest.fixture(scope="module")
def train(mesh, params):
    return functools.partial(train_grpo_group, MODEL, OPTIMIZER, params, SILENCE, mesh=mesh)


def test_a_run_learns_what_is_rewarded(train, params, mesh):
    copies = jax.tree.map(lambda x: np.stack([x] * 2), params)
    before = sweep.evaluate_policies(MODEL, copies, SILENCE, 2, mesh)[0]
    still = dataclasses.replace(RUN, learning_rate=0.0)
    config = dataclasses.replace(CONFIG, steps=12, rollout_rows=64)
    success_R, seconds = train(runs=[RUN, still], config=config)
    assert success_R[0] > 0.9 > success_R[1] == before
    assert seconds > 0


def test_held_out_answers_are_sampled_and_no_two_parts_alike(params, mesh, monkeypatch):
    # A fresh model says nothing now and then. Were it greedy, its success would be 0 or 1; were the
    # parts of 4 problems alike, a multiple of a quarter.
    monkeypatch.setattr(sweep, "EVALUATED_AT_ONCE", 4)
    sampled = dataclasses.replace(SILENCE, held_out=SILENCE.held_out[:1] * 400, temperature=1.0)
    copies = jax.tree.map(lambda x: np.stack([x] * 2), params)
    success_R = sweep.evaluate_policies(MODEL, copies, sampled, 2, mesh)
    assert 0 < success_R[0] < 0.25
    assert success_R[0] == success_R[1]


@pytest.fixture
def train_weights(train, monkeypatch):
    """train, but it returns each run's parameters [R, P]: success rates of short runs are all 0."""

    def flat(model, params_R, *_):
        leaves = jax.tree.leaves(jax.device_get(params_R))
        return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)

    monkeypatch.setattr(sweep, "evaluate_policies", flat)
    return lambda **arguments: train(**arguments)[0]


def test_a_run_does_not_depend_on_its_neighbours(train_weights):
    strong = dataclasses.replace(RUN, learning_rate=0.3, seed=5)
    weak = dataclasses.replace(RUN, learning_rate=1e-5, kl_coefficient=1.0)
    first, second = (train_weights(runs=[RUN, o, o], config=CONFIG) for o in (strong, weak))
    assert np.abs(first[0] - first[1]).max() > 0.1 and np.abs(first[1] - second[1]).max() > 0.1
    np.testing.assert_array_equal(first[0], second[0])


def test_it_resumes_to_the_same_result(train_weights, tmp_path):
    whole = train_weights(runs=[RUN], config=CONFIG)
    fewer = train_weights(runs=[RUN], config=dataclasses.replace(CONFIG, steps=2))
    assert np.abs(whole - fewer).max() > 1e-3  # the steps after the checkpoint change something
    kept = Checkpoints(tmp_path / "kept")
    stopped = False

    def stop(count):
        nonlocal stopped
        if kept.latest() == 2 and not stopped:
            stopped = True
            raise KeyboardInterrupt

    options = {"checkpoints": kept, "checkpoint_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        train_weights(runs=[RUN], config=CONFIG, on_steps=stop, **options)
    kept.close()
    options["checkpoints"] = Checkpoints(tmp_path / "kept")
    assert 0 < options["checkpoints"].latest() < CONFIG.steps
    resumed = train_weights(runs=[RUN], config=CONFIG, **options)
    np.testing.assert_array_equal(resumed, whole)


def test_an_update_is_the_loops_loss_and_the_train_steps_update(params, mesh):
    """The sweep's compiled update against the agent's own pieces, put together by hand."""
    seeds_R = np.zeros(2, np.int32)
    answer = sweep.make_answer(MODEL, 5, 2, False, mesh)
    prompts = [sweep._draw(SILENCE, 0, 0, CONFIG)] * 2
    prompt_RBC, length_RB = sweep._lay_out(prompts, 3)
    state = sweep.make_start(OPTIMIZER, mesh)(params, seeds_R)
    ones_R = np.ones(2, np.float32)
    played = answer(state.params, seeds_R, np.int32(0), ones_R, prompt_RBC, length_RB)
    batch = sweep._score(jax.device_get(played), prompts, SILENCE, CONFIG)
    # The first rows, whether or not they are informative: what is compared is arithmetic.
    batch = dataclasses.replace(
        batch,
        mask_BT=np.asarray(played.turns_BS) >= 0,
        advantages_BT=np.random.default_rng(0).normal(size=batch.tokens_BT.shape).astype("f4"),
    )
    order_RUM = np.arange(16, dtype=np.int32).reshape(1, 2, 8).repeat(2, axis=0)
    hp_R = {
        "learning_rate": np.array([1e-2, 1e-3], np.float32),
        "kl_coefficient": np.array([0.1, 0.0], np.float32),
        "clip_range": np.array([0.2, 0.1], np.float32),
        "temperature": ones_R,
    }
    improve = sweep.make_improve(MODEL, OPTIMIZER, mesh)
    improved = jax.device_get(improve(state, params, hp_R, np.int32(6), batch, order_RUM))

    optimizer = make_optimizer(OPTIMIZER, 6, 1e-2)
    expected = TrainState(np.int32(0), params, optimizer.init(params))
    hp = GRPOHyperparameters(clip_low=0.2, clip_high=0.2, kl_coefficient=0.1)
    loss_fn = functools.partial(policy_loss, MODEL, hp)
    for rows in (slice(0, 8), slice(8, 16)):
        piece = jax.tree.map(lambda x, rows=rows: x[0, rows], batch)
        expected, _ = update(loss_fn, optimizer, expected, piece)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[0], b, atol=2e-5),
        improved.params,
        jax.device_get(expected.params),
    )


def test_no_device_speaks_to_another_inside_a_rollout_or_an_update(params):
    mesh, seeds_R, ones_R = make_mesh(MeshShape()), np.arange(8), np.ones(8, np.float32)
    seeds_R = seeds_R.astype(np.int32)
    prompt_RBC, length_RB = sweep._lay_out([sweep._draw(SILENCE, 0, 0, CONFIG)] * 8, 3)
    start = sweep.make_start(OPTIMIZER, mesh)
    state = jax.eval_shape(start, params, seeds_R)
    play = (state.params, seeds_R, np.int32(0), ones_R, prompt_RBC, length_RB)
    answer = sweep.make_answer(MODEL, 5, 2, False, mesh)
    played = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(answer, *play))
    batch = sweep._score(played, [sweep._draw(SILENCE, 0, 0, CONFIG)] * 8, SILENCE, CONFIG)
    names = ("learning_rate", "kl_coefficient", "clip_range", "temperature")
    order_RUM = np.zeros((8, 2, 8), np.int32)
    update = (state, params, dict.fromkeys(names, ones_R), np.int32(6), batch, order_RUM)
    for step, arguments in ((answer, play), (sweep.make_improve(MODEL, OPTIMIZER, mesh), update)):
        text = step.lower(*arguments).compile().as_text()
        assert not COLLECTIVE.search(text)
        assert "dot(" in text or "custom-call" in text


def test_a_rollout_without_differences_is_no_update(train, params, mesh):
    never = dataclasses.replace(SILENCE, is_right=lambda prompt, answer: False)
    prompts = [sweep._draw(never, 0, 0, CONFIG)] * 2
    prompt_RBC, length_RB = sweep._lay_out(prompts, 3)
    state = sweep.make_start(OPTIMIZER, mesh)(params, np.zeros(2, np.int32))
    ones_R, seeds_R = np.ones(2, np.float32), np.zeros(2, np.int32)
    answer = sweep.make_answer(MODEL, 5, 2, False, mesh)
    played = answer(state.params, seeds_R, np.int32(0), ones_R, prompt_RBC, length_RB)
    batch = sweep._score(jax.device_get(played), prompts, never, CONFIG)
    assert not batch.mask_BT.any()
    names = ("learning_rate", "kl_coefficient", "clip_range", "temperature")
    hp_R = dict.fromkeys(names, ones_R)
    order_RUM = np.zeros((2, 2, 8), np.int32)
    improve = sweep.make_improve(MODEL, OPTIMIZER, mesh)
    after = jax.device_get(improve(state, params, hp_R, np.int32(6), batch, order_RUM))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b), after.params, params)
    assert after.step.tolist() == [0, 0]
