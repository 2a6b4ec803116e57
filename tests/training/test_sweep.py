import functools
import math

import jax
import numpy as np
import pytest

from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.data.pipeline import Packed, Pipeline
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.training import sweep
from autollm_jax.training.optimizer import OptimizerConfig
from autollm_jax.training.sweep import Run, train_group
from tests.collectives import COLLECTIVE

MODEL = TransformerConfig(
    vocab_size=16, width=16, layers=1, heads=2, kv_heads=2, head_dim=8, mlp_width=16
)
LENGTH, STEPS = 8, 40


@pytest.fixture(scope="module")
def data():
    """Rows that count upwards modulo 16: a model can learn them."""
    tokens_NT = (np.arange(64)[:, None] + np.arange(LENGTH + 1)[None]) % 16
    ones = np.ones_like(tokens_NT, np.uint16)
    packed = Packed(LENGTH, tokens_NT.astype(np.uint16), ones, ones)
    pipelines = {seed: Pipeline(packed, 4, seed) for seed in (0, 1)}
    validation = {d: Pipeline(packed, 8, seed=9 + i).batch(0) for i, d in enumerate("ab")}
    return pipelines, validation


def train(data, runs, devices=1, **options):
    pipelines, validation = data
    mesh = make_mesh(MeshShape(), jax.devices()[:devices])
    return train_group(
        MODEL,
        OptimizerConfig(0.0),
        runs,
        steps=STEPS,
        pipelines=pipelines,
        validation=validation,
        mesh=mesh,
        **options,
    )


GRID = [Run(rate, seed) for rate in (1e-3, 3e-2) for seed in (0, 1)]


@pytest.fixture(scope="module")
def together(data):
    return train(data, GRID)


def losses(outcomes):
    return np.array([list(outcome.losses.values()) for outcome in outcomes])


def test_runs_trained_together_equal_runs_trained_alone(data, together):
    alone = [train(data, [run])[0] for run in GRID]
    assert len({o.losses["a"] for o in alone}) == len(GRID)
    np.testing.assert_allclose(losses(together), losses(alone), atol=1e-5)


def test_splitting_the_runs_over_devices_changes_nothing(data, together):
    # Four runs on three devices: the last one is computed more than once, and returned once.
    split = train(data, GRID, devices=3)
    assert [o.run for o in split] == GRID
    np.testing.assert_allclose(losses(split), losses(together), atol=1e-5)


@pytest.mark.parametrize("tokens, halves", [(2 * LENGTH, 2), (8 * LENGTH, 1)])
def test_the_tokens_of_an_operation_change_nothing(data, together, monkeypatch, tokens, halves):
    assert sweep.at_once(4, 4, LENGTH) == (4, 1)
    monkeypatch.setattr(sweep, "TOKENS_AT_ONCE", tokens)
    assert sweep.at_once(4, 4, LENGTH) == (2 // halves, halves)
    sweep.make_advance.cache_clear()
    np.testing.assert_allclose(losses(train(data, GRID)), losses(together), atol=1e-5)
    sweep.make_advance.cache_clear()


def test_a_higher_rate_learns_more_here(together):
    slow, fast = losses(together[:2]).mean(), losses(together[2:]).mean()
    assert fast < slow and fast < math.log(16)


def test_a_diverged_run_is_an_outcome_and_its_neighbours_are_sound(data, together):
    outcomes = train(data, [GRID[2], Run(1e30, 0)])
    assert [o.status for o in outcomes] == ["ok", "diverged"]
    np.testing.assert_allclose(losses(outcomes)[0], losses(together)[2], atol=1e-5)


def test_no_device_speaks_to_another_inside_a_step(data):
    mesh = make_mesh(MeshShape(), jax.devices())
    seeds_R = np.arange(8, dtype=np.int32)
    state = jax.eval_shape(sweep.make_init(MODEL, OptimizerConfig(0.0), mesh), seeds_R)
    advance = sweep.make_advance(MODEL, OptimizerConfig(0.0), mesh)
    batch_BT = data[0][0].batches(0, 2)
    batch_KSBT = jax.tree.map(lambda x: x[:, None], batch_BT)
    rates_R, steps = np.ones(8, np.float32), np.int32(STEPS)
    lowered = advance.lower(state, rates_R, seeds_R * 0, steps, batch_KSBT)
    text = lowered.compile().as_text()
    assert not COLLECTIVE.search(text)
    assert "dot(" in text or "custom-call" in text


def test_a_killed_group_goes_on_from_its_checkpoint(data, together, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "CHUNK_TOKENS", 4 * 4 * LENGTH)
    checkpoints = Checkpoints(tmp_path)
    steps_done = []

    class Killed(BaseException):
        pass

    def kill(count):
        steps_done.append(count)
        if sum(steps_done) >= 12:
            checkpoints.wait()
            raise Killed

    options = dict(checkpoints=checkpoints, checkpoint_seconds=0.0)
    with pytest.raises(Killed):
        train(data, GRID, on_steps=kill, **options)
    resumed = []
    outcomes = train(data, GRID, on_steps=resumed.append, **options)
    # The first call reports what was restored; together with it, no step is done twice.
    assert resumed[0] == 8 and sum(resumed) == STEPS
    np.testing.assert_array_equal(losses(outcomes), losses(together))


def test_a_finished_group_is_not_trained_again(data, together, tmp_path, monkeypatch):
    options = dict(checkpoints=Checkpoints(tmp_path), checkpoint_seconds=1e9)
    train(data, GRID, **options)
    batches = functools.partial(pytest.fail, "a batch was fetched")
    monkeypatch.setattr(Pipeline, "batches", lambda *_: batches())
    np.testing.assert_array_equal(losses(train(data, GRID, **options)), losses(together))
