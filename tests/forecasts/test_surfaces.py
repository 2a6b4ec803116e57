"""Surfaces and the forecast over them, on made-up mixtures, architectures and tuning."""

import dataclasses

import numpy as np
import pytest

from autollm_jax.forecasts.advisers import forecast
from autollm_jax.forecasts.surface import SurfaceTransfer
from autollm_jax.forecasts.surfaces import left_out_means, surfaces
from autollm_jax.gym.environment import Episode
from tests.families import decided


def _lowest(seen, trials=()):
    return int(np.argmin(seen.expected_regrets(trials)))


def test_a_surface_smooths_its_table(mixtures):
    cheap = mixtures[0]
    (surface,) = surfaces([cheap], mixtures[-1])
    mean_R = surface.mean(surface.scaled(cheap))
    good_R = cheap.outcomes.regrets_R < 1
    assert np.corrcoef(mean_R[good_R], cheap.outcomes.losses_R[good_R])[0, 1] > 0.95


def test_experiments_that_differ_in_their_limit_are_one_table(architectures):
    cheap, target = architectures[:2], architectures[-1]
    (both,) = surfaces(cheap, target)
    (one,) = surfaces(cheap[:1], target)
    feasible = [e.feasible_R for e in cheap]
    assert feasible[0].sum() < feasible[1].sum() == len(both.x_ND)
    assert len(one.x_ND) == feasible[0].sum()


def test_evidence_of_the_targets_objective_comes_first_and_alone_makes_the_mean(mixtures):
    target = mixtures[-1]
    same = [e for e in mixtures[:-1] if e.objective.metric == target.objective.metric]
    others = [e for e in mixtures[:-1] if e.objective.metric != target.objective.metric]
    seen = SurfaceTransfer(target, [*others, *same])
    assert [e.id for e in seen.nearest[: len(same)]] == [e.id for e in same]
    alone = SurfaceTransfer(target, same).expected_regrets(())
    np.testing.assert_array_equal(seen.expected_regrets(()), alone)


@pytest.mark.parametrize("family", ["mixtures", "architectures", "tunings"])
def test_the_forecast_finds_good_cells_from_cheap_ones(family, request):
    *cheap, target = request.getfixturevalue(family)
    row = _lowest(forecast(target.setting, cheap))
    assert target.outcomes.regrets_R[row] < 0.3 < np.median(target.outcomes.regrets_R)


@pytest.mark.parametrize("family", ["mixtures", "architectures", "tunings"])
def test_trials_move_the_forecast_and_are_not_repeated(family, request):
    *cheap, target = request.getfixturevalue(family)
    episode = Episode(target, cheap, 5)
    seen = forecast(episode.setting, episode.evidence)
    rows = []
    for _ in range(4):
        rows.append(_lowest(seen, episode.trials))
        episode.exec_config(target.configurations[rows[-1]])
    assert len(set(rows)) == 4
    assert np.isinf(seen.expected_regrets(episode.trials)[rows]).all()


def test_cells_like_a_bad_surprise_fall_in_the_forecast(mixtures):
    *cheap, target = mixtures
    episode = Episode(target, cheap, 3)
    seen = forecast(episode.setting, episode.evidence)
    first, second = np.argsort(seen.expected_regrets(()))[[0, 40]]
    for row in (first, second):
        episode.exec_config(target.configurations[row])
    good, bad = episode.trials
    swapped = [
        dataclasses.replace(good, outcome=bad.outcome),
        dataclasses.replace(bad, outcome=good.outcome),
    ]
    near = np.argsort(((target.units_RD - target.units_RD[first]) ** 2).sum(1))[1:6]
    as_it_was = np.mean(seen.expected_regrets(episode.trials)[near])
    surprised = np.mean(seen.expected_regrets(swapped)[near])
    assert surprised > as_it_was


def test_cells_over_the_limit_are_never_offered(architectures):
    *cheap, target = architectures
    expected_R = forecast(target, cheap).expected_regrets(())
    np.testing.assert_array_equal(np.isfinite(expected_R), target.feasible_R)
    assert target.feasible_R[list(decided(Episode(target, cheap, 2)).offer.rows)].all()


def test_the_forecast_reads_no_outcome_of_the_target(mixtures):
    *cheap, target = mixtures
    other = dataclasses.replace(target, outcomes=cheap[-1].outcomes)
    assert not np.array_equal(other.outcomes.values_R, target.outcomes.values_R)
    one, two = (SurfaceTransfer(t, cheap).expected_regrets(()) for t in (target, other))
    np.testing.assert_array_equal(one, two)


def test_without_evidence_the_forecast_starts_at_the_default(tunings):
    target = tunings[-1]
    assert target.configurations[_lowest(SurfaceTransfer(target, ()))] == target.default


def test_failed_trials_lower_their_neighbourhood(tunings):
    *cheap, target = tunings
    episode = Episode(target, cheap, 2)
    seen = forecast(episode.setting, episode.evidence)
    row = _lowest(seen)
    trial = episode.exec_config(target.configurations[row])
    failed = [dataclasses.replace(trial, status="diverged", outcome=float("nan"))]
    likes = ("learning_rate", "temperature")
    near = [
        r
        for r, c in enumerate(target.configurations)
        if r != row and all(c[n] == target.configurations[row][n] for n in likes)
    ]
    before, after = seen.expected_regrets(()), seen.expected_regrets(failed)
    assert after[near].mean() > before[near].mean()


def test_left_out_means_are_those_of_a_table_without_the_row(mixtures):
    """With a row's outcome changed by much, what the others say of it hardly moves."""
    table = mixtures[0]
    before_R = left_out_means(table)
    row = int(np.argsort(table.outcomes.values_R)[len(table.outcomes.values_R) // 2])
    outcomes_R = table.outcomes.values_R.copy()
    outcomes_R[row] += 0.2 * np.ptp(outcomes_R)
    changed = dataclasses.replace(
        table, outcomes=dataclasses.replace(table.outcomes, values_R=outcomes_R)
    )
    after_R = left_out_means(changed)
    moved_R = np.abs(after_R - before_R)
    assert moved_R[row] < 0.05 * np.ptp(outcomes_R)
    # They do predict: better than the mean does.
    off_R = before_R - table.outcomes.losses_R
    assert off_R.std() < 0.7 * table.outcomes.values_R.std()


def test_left_out_means_offer_nothing_over_the_limit(architectures):
    means_R = left_out_means(architectures[0])
    assert np.array_equal(np.isfinite(means_R), architectures[0].feasible_R)
