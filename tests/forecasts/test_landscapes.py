import dataclasses

import numpy as np
import pytest

from autollm_jax.forecasts import landscapes as evidence
from autollm_jax.forecasts.advisers import forecast
from autollm_jax.forecasts.relevance import by_relevance
from autollm_jax.forecasts.shifted import Shifted
from autollm_jax.gym.environment import Episode


def test_the_centre_of_a_landscape_is_where_its_bowl_is(bowl):
    land = evidence.landscape(bowl("a", 1e7, 2e8, (2.0**-9.2, 100)))
    np.testing.assert_allclose(land.centre_D, [-9.2, np.log2(100)], atol=0.25)


def test_the_smoothed_landscape_follows_the_table(bowl):
    experiment = bowl("a", 1e7, 2e8, (2.0**-9, 128))
    land = evidence.landscape(experiment)
    smooth_R = land(evidence.coordinates_RD(experiment) - land.centre_D)
    # Away from the cliff, which no smooth landscape follows.
    low_R = np.array([c["learning_rate"] for c in experiment.configurations]) < 2.0**-8.2
    good_R = (experiment.outcomes.uncut_regrets_R < 1) & low_R
    assert good_R.sum() > 20
    assert np.abs(smooth_R - experiment.outcomes.uncut_regrets_R)[good_R].max() < 0.15


def test_a_grid_of_predictions_equals_single_ones(bowl):
    land = evidence.landscape(bowl("a", 1e7, 2e8, (2.0**-9, 128)))
    axes = [np.linspace(-2, 2, 5), np.linspace(-1, 1, 4)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    np.testing.assert_allclose(land.on_grid(axes).ravel(), land(points), atol=1e-9)


def test_the_law_finds_exponents_that_its_prior_does_not_have(bowl):
    made = []
    for n, (parameters, tokens) in enumerate([(1e6, 1e8), (1e8, 1e8), (1e6, 1e10), (1e8, 1e10)]):
        rate = 2.0**-10 * (parameters / 1e6) ** 0.2  # rises with size
        batch = 64 * (tokens / 1e8) ** 0.4
        rates = tuple(rate * 2.0 ** (k / 2) for k in range(-5, 6))
        batches = tuple(int(batch * 2.0**k) for k in range(-3, 4))
        made.append(bowl(f"e{n}", parameters, tokens, (rate, batch), "low", rates, batches))
    law = evidence.fit_law(made[:3], made[3])
    prior = evidence.LAW_PRIORS["learning_rate"][0][0]
    assert prior < 0 < law.slopes_D2[0, 0]
    assert law.slopes_D2[1, 1] == pytest.approx(0.4, abs=0.06)


def test_relevance_goes_by_log_fidelity(family):
    assert [e.name for e in by_relevance(family[:3], family[3])] == ["m2", "m1", "m0"]


def test_the_forecast_before_trials_prefers_the_good_half(family):
    seen = Shifted(family[3], family[:3])
    expected_R = seen.expected_regrets(())
    assert np.corrcoef(expected_R, family[3].outcomes.regrets_R)[0, 1] > 0.8


def test_the_forecast_follows_the_side_that_got_better(family):
    episode = Episode(family[3], family[:3], 5)
    rates = np.array([c["learning_rate"] for c in family[3].configurations])
    for rate in (2.0**-9, 2.0**-10):
        episode.exec_config({"learning_rate": rate, "batch_size": 192})
    high, low = episode.trials
    swapped = [
        dataclasses.replace(high, outcome=low.outcome),
        dataclasses.replace(low, outcome=high.outcome),
    ]

    def expected_rate(trials):
        expected_R = forecast(family[3], family[:3]).expected_regrets(trials)
        weights_R = np.exp(-20 * np.minimum(expected_R, 1))
        return np.exp(weights_R @ np.log(rates) / weights_R.sum())

    assert low.outcome > high.outcome
    assert expected_rate(swapped) < 0.9 * expected_rate([high, low])


def test_tried_cells_are_never_forecast_again(family):
    episode = Episode(family[3], family[:3], 3)
    for config in family[3].configurations[:2]:
        episode.exec_config(config)
    expected_R = forecast(family[3], family[:3]).expected_regrets(episode.trials)
    assert np.isinf(expected_R[:2]).all() and np.isfinite(expected_R[2:]).all()


def test_invalid_trials_teach_nothing(family):
    episode = Episode(family[3], family[:3], 3)
    episode.exec_config(None, "nonsense")
    seen = forecast(family[3], family[:3])
    np.testing.assert_array_equal(seen.expected_regrets(episode.trials), seen.expected_regrets(()))


def test_forecasts_of_equal_names_but_other_tables_are_not_mixed_up(bowl):
    target = bowl("t", 1e8, 1e9, (2.0**-9, 128))
    one, other = bowl("e", 1e7, 1e9, (2.0**-11, 32)), bowl("e", 1e7, 1e9, (2.0**-8, 512))
    assert not np.allclose(
        forecast(target, (one,)).expected_regrets(()),
        forecast(target, (other,)).expected_regrets(()),
    )


def test_evidence_over_other_dimensions_is_passed_over(family, bowl):
    renamed = bowl("x", 1e6, 1e8, (2.0**-9, 128))
    object.__setattr__(renamed.space.dimensions[1], "name", "warmup")
    assert evidence.usable([*family[:2], renamed], family[3]) == tuple(family[1::-1])
