import numpy as np
import pytest

from autollm_jax.baselines import BASELINES, Problem
from autollm_jax.errors import UserError
from autollm_jax.forecasts.advisers import COUNSEL, forecast
from autollm_jax.forecasts.base import Forecast
from autollm_jax.forecasts.panel import Panel
from autollm_jax.gym.environment import Episode


@pytest.fixture
def episode(family):
    return Episode(family[3], tuple(family[:3]), 5)


def advised(adviser, episode):
    seen = forecast(episode.setting, episode.evidence, adviser)
    return seen.expected_regrets(episode.trials)


def test_the_panel_is_the_mean_of_its_members(episode):
    for _ in range(3):
        members = [make(episode.setting, episode.evidence) for make in COUNSEL.values()]
        each_AR = np.stack([member.expected_regrets(episode.trials) for member in members])
        panel_R = advised("panel", episode)
        np.testing.assert_allclose(panel_R, each_AR.mean(0), rtol=1e-6)
        assert (np.isinf(panel_R) == np.isinf(each_AR[0])).all()
        episode.exec_config(episode.setting.configurations[int(panel_R.argmin())])


def test_where_nothing_is_left_to_gain_a_good_row_costs_less_than_a_bad_one(episode):
    class Content(Forecast):
        """Expects the last row to be the best, and that no trial would gain anything."""

        def posterior(self, seen):
            mean_R = np.linspace(1.0, 0.0, len(self.setting.cells))
            return mean_R, np.ones_like(mean_R), np.zeros(len(seen))

        def ranking(self, trials=()):
            return np.zeros(len(self.setting.cells))

    forecast = Content(episode.setting, episode.evidence)
    assert (forecast.expected_regrets()[forecast.open_rows(())] == 0).all()
    costs_R = forecast.costs()
    assert costs_R.argmin() == len(costs_R) - 1 and costs_R.min() == 0
    np.testing.assert_allclose(Panel(forecast, [forecast] * 2).ranking(), costs_R)


@pytest.mark.parametrize("name", ["gaussian_process", "boosted_trees"])
def test_a_surrogate_as_an_adviser_chooses_what_the_baseline_does(name, episode):
    baseline = BASELINES[name](Problem(episode.setting, episode.evidence, 5), 0)
    while not episode.done:
        row = int(advised(name, episode).argmin())
        assert dict(episode.setting.configurations[row]) == baseline.ask()
        baseline.tell(episode.exec_config(episode.setting.configurations[row]))


def test_without_evidence_the_panel_still_expects_something_of_every_row(family):
    episode = Episode(family[3], (), 5)
    panel_R, setting = advised("panel", episode), episode.setting
    assert np.isfinite(panel_R).all()
    episode.exec_config(setting.default)
    assert np.isinf(advised("panel", episode)).sum() == 1


def test_once_all_is_tried_nothing_is_expected(bowl):
    small = dict(learning_rates=(2.0**-8,), batch_sizes=(64, 128))
    cheap, target = (bowl(n, p, 2e8, (2.0**-8, 64), **small) for n, p in (("a", 1e6), ("b", 1e7)))
    episode = Episode(target, (cheap,), 2)
    for config in target.configurations:
        episode.exec_config(config)
    assert np.isinf(advised("panel", episode)).all()


def test_an_unknown_adviser_is_refused(family):
    with pytest.raises(UserError, match="accepted are own, .*panel"):
        forecast(family[3].setting, family[:3], "x")
