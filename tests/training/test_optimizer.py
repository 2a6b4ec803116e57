import numpy as np
import pytest

from autollm_jax.training.optimizer import OptimizerConfig, decays, make_optimizer, schedule_shape


def shape_of(**changes):
    schedule = schedule_shape(OptimizerConfig(1.0, **changes), 100)
    return np.array([float(schedule(step)) for step in range(100)])


@pytest.mark.parametrize("decay", ["constant", "cosine", "linear", "wsd"])
def test_warmup_rises_linearly_to_the_peak(decay):
    values = shape_of(decay=decay, warmup_fraction=0.2)
    np.testing.assert_allclose(values[:20], np.arange(1, 21) / 20, atol=0.02)
    assert values.max() <= 1.0


@pytest.mark.parametrize("decay", ["cosine", "linear", "wsd"])
def test_the_last_step_is_near_the_final_fraction(decay):
    assert shape_of(decay=decay, final_fraction=0.1)[-1] == pytest.approx(0.1, abs=0.05)


def test_wsd_is_flat_until_its_decay():
    values = shape_of(decay="wsd", warmup_fraction=0.1, decay_fraction=0.3)
    assert (values[10:70] == 1.0).all() and (np.diff(values[71:]) < 0).all()


def test_an_unknown_decay_names_the_accepted_ones():
    with pytest.raises(ValueError, match="'step'.*cosine"):
        OptimizerConfig(1.0, decay="step")


def test_norm_scales_do_not_decay():
    assert decays({"gate": 0, "norm": {"scale": 0}}) == {"gate": True, "norm": {"scale": False}}


def test_gradients_are_clipped_by_their_global_norm():
    params = {"gate": np.ones(4, np.float32)}
    gradient = {"gate": np.full(4, 100.0, np.float32)}
    updates = {}
    for clip in (0.0, 1.0):
        optimizer = make_optimizer(OptimizerConfig(1e-2, clip_norm=clip, epsilon=1.0), 10)
        updates[clip], _ = optimizer.update(gradient, optimizer.init(params), params)
    # With a large epsilon Adam keeps the gradient's size: 100 a component against 0.5.
    assert np.abs(updates[1.0]["gate"]).max() < 0.5 * np.abs(updates[0.0]["gate"]).max()
