"""Each baseline's own idea."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from autollm_jax.baselines import BASELINES, Problem
from autollm_jax.baselines.base import Candidates, evidence_flops
from autollm_jax.baselines.cma_es import CmaEs
from autollm_jax.baselines.default import DefaultFirst
from autollm_jax.baselines.random import RandomSearch
from autollm_jax.baselines.successive_halving import CONFIGURATIONS, SuccessiveHalving, rungs
from autollm_jax.forecasts import coordinates, gaussian_process
from autollm_jax.forecasts.acquisition import improvement
from autollm_jax.forecasts.boosted_trees import ridge
from autollm_jax.forecasts.gathering import TargetScale, extrapolate, gather, move_along_law
from autollm_jax.forecasts.gaussian_process import (
    PRIOR_DEVIATION,
    negative_log_posterior,
    pad,
    prior_mean,
)
from autollm_jax.forecasts.relevance import relevant_evidence
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.runs import flops_of_runs
from autollm_jax.gym.spaces import Dimension, Space

from .conftest import bowl, limited


def test_random_draws_every_cell_once(problem):
    method = RandomSearch(problem, 0)
    drawn = [tuple(method.ask().values()) for _ in problem.setting.configurations]
    assert sorted(drawn) == sorted(tuple(c.values()) for c in problem.setting.configurations)


def test_random_draws_differ_between_experiments(problem):
    other = Problem(bowl(4e8, 16e9, name="other").setting, (), 5)
    draws = [[RandomSearch(p, s).ask() for s in range(8)] for p in (problem, other)]
    assert draws[0] != draws[1]


def test_default_comes_first(problem):
    assert DefaultFirst(problem, 0).ask() == problem.setting.default


def test_nearest_experiment_gives_its_best_cells_in_order(problem, evidence, target):
    nearest = min(evidence, key=lambda e: -e.fidelity.flops)
    order = np.argsort(nearest.outcomes.regrets_R, kind="stable")[:3]
    method = BASELINES["nearest_experiment"](problem, 0)
    assert [method.ask() for _ in order] == [nearest.configurations[r] for r in order]


def test_evidence_of_the_same_objective_goes_first(target):
    same = bowl(1e8, 1e9)
    other = bowl(2e8, 8e9, name="other", objective_metric="accuracy")
    problem = Problem(target.setting, (other, same), 5)
    assert [e.id for e in relevant_evidence(problem.evidence, problem.setting)] == [same.id]


def test_scaling_law_finds_an_optimum_that_follows_a_law(problem, target):
    assert (
        BASELINES["scaling_law"](problem, 0).ask()
        == target.configurations[target.outcomes.best_row]
    )


def test_scaling_law_keeps_the_optimum_of_a_single_table(target):
    only = bowl(1e8, 1e9)
    first = BASELINES["scaling_law"](Problem(target.setting, (only,), 5), 0).ask()
    assert first == only.configurations[only.outcomes.best_row]


def test_two_points_give_a_slope_along_their_line_only():
    features = np.array([[0.0, 0.0], [1.0, 0.0]])
    values = np.array([[0.0], [2.0]])
    assert extrapolate(features, values, np.array([2.0, 0.0])) == pytest.approx(4.0)
    assert extrapolate(features, values, np.array([0.5, 9.0])) == pytest.approx(1.0)


def test_extrapolation_leaves_out_a_missing_number():
    features = np.array([[0.0, np.nan], [1.0, 3.0]])
    at = np.array([2.0, 5.0])
    assert extrapolate(features, np.array([[0.0], [1.0]]), at) == pytest.approx(2.0)


def test_values_keep_their_meaning_in_another_window():
    low = Space((Dimension("rate", "log-ordinal", (1.0, 10.0, 100.0)),))
    high = Space((Dimension("rate", "log-ordinal", (10.0, 100.0, 1000.0)),))
    unit = coordinates.project([{"rate": 1.0}, {"rate": 100.0}], low, high)
    assert unit[:, 0] == pytest.approx([-0.5, 0.5])


def test_ranges_that_share_nothing_are_compared_by_place():
    low = Space((Dimension("layers", "ordinal", (10, 11, 12)),))
    high = Space((Dimension("layers", "ordinal", (22, 23, 24)),))
    unit = coordinates.project([{"layers": 10}, {"layers": 12}], low, high)
    assert unit[:, 0] == pytest.approx([0.0, 1.0])


def test_gathered_evidence_keeps_every_experiments_best(problem, evidence):
    rows = gather(problem.setting, problem.evidence, 30)
    assert len(rows) <= 36
    best = [rows.scores_N[rows.experiments_N == e].min() for e in range(len(evidence))]
    assert best == [0.0] * len(evidence)


def test_evidence_moves_onto_the_targets_optimum(problem, target, evidence):
    rows = gather(problem.setting, evidence, 600)
    best_N = rows.scores_N == 0
    assert rows.points_ND[best_N].std(0).max() > 0.1
    moved_ND = move_along_law(problem.setting, evidence, rows, 0.02)[best_N]
    optimum_D = Candidates(target).units_RD[target.outcomes.best_row]
    assert np.abs(moved_ND - optimum_D).max() < 0.1


def test_cma_es_starts_where_the_law_leads(problem, target):
    first = CmaEs(problem, 0).ask()
    assert target.outcomes.regret(target.lookup(first)) < 0.05
    assert CmaEs(problem, 1).ask() == first


def test_cma_es_follows_its_trials(problem, target):
    """After a generation the draws differ with what the trials brought."""
    draws = []
    for mirrored in (False, True):
        method = CmaEs(problem, 0)
        trials = [Episode(target, problem.evidence, 5).exec_config(method.ask()) for _ in range(4)]
        outcomes = [t.outcome for t in trials]
        for trial, outcome in zip(trials, outcomes[::-1] if mirrored else outcomes, strict=True):
            method.tell(dataclasses.replace(trial, outcome=outcome))
        draws.append([method.ask() for _ in range(3)])
    assert draws[0] != draws[1]


def test_ridge_extrapolates_where_trees_are_flat():
    x_NX = np.linspace(0, 1, 50)[:, None]
    inside, beyond = ridge(x_NX, x_NX[:, 0], np.ones(50), np.array([[1.0], [1.5]]))
    assert beyond > inside + 0.2


def test_ridge_leaves_out_a_constant_feature():
    x_NX = np.stack([np.linspace(0, 1, 50), np.full(50, 3.0)], axis=1)
    at = np.array([[0.5, 3.0], [0.5, 9.0]])
    assert np.ptp(ridge(x_NX, x_NX[:, 0], np.ones(50), at)) == 0


def test_boosted_trees_find_the_optimum_they_were_shown(problem, target):
    first = BASELINES["boosted_trees"](problem, 0).ask()
    assert target.outcomes.regret(target.lookup(first)) < 0.1


def test_boosted_trees_learn_from_their_trials(problem, target):
    """A cell that disappoints is followed by another than one that does well."""
    second = []
    for outcome in (target.outcomes.optimum, target.outcomes.optimum + 10):
        method = BASELINES["boosted_trees"](problem, 0)
        trials = [Episode(target, problem.evidence, 5).exec_config(method.ask()) for _ in range(3)]
        for trial, value in zip(
            trials, (target.outcomes.median, target.outcomes.median, outcome), strict=True
        ):
            method.tell(dataclasses.replace(trial, outcome=value))
        second.append([method.ask() for _ in range(3)])
    assert second[0] != second[1]


def test_the_ladder_climbs_in_every_number_and_ends_nearest_to_the_target(problem, evidence):
    ladder = rungs(problem)
    numbers = np.array([(e.fidelity.parameters, e.fidelity.tokens) for e in ladder])
    assert len(ladder) == 4 and (np.diff(numbers, axis=0) >= 0).all()
    assert ladder[-1] is max(evidence, key=lambda e: e.fidelity.flops)


def test_successive_halving_pays_for_what_it_looked_at(problem):
    method = SuccessiveHalving(problem, 0)
    assert len(rungs(problem)[0].configurations) < CONFIGURATIONS
    counts = (60, 30, 15, 10)  # halved, but 2 a trial are kept
    paid = sum(n * e.fidelity.flops for n, e in zip(counts, rungs(problem), strict=True))
    assert method.evidence_flops == pytest.approx(paid, rel=0.1)
    assert evidence_flops(method, problem) == method.evidence_flops
    whole = sum(60 * e.fidelity.flops for e in problem.evidence)
    assert evidence_flops(RandomSearch(problem, 0), problem) == pytest.approx(whole)


def test_successive_halving_tries_the_last_rungs_best_first(problem):
    top = rungs(problem)[-1]
    assert SuccessiveHalving(problem, 0).ask() == top.configurations[top.outcomes.best_row]


def test_runs_that_two_objectives_read_are_paid_once():
    loss = bowl(1e8, 1e9, facts={"corpus": "a", "objective": "loss"})
    accuracy = bowl(1e8, 1e9, name="b", facts={"corpus": "a", "objective": "accuracy"})
    elsewhere = bowl(1e8, 1e9, name="c", facts={"corpus": "b", "objective": "loss"})
    once = flops_of_runs([(loss, range(60))])
    assert once == 60 * loss.fidelity.flops
    assert flops_of_runs([(loss, range(60)), (accuracy, range(60))]) == once
    assert flops_of_runs([(loss, range(60)), (elsewhere, range(60))]) == 2 * once


def test_a_run_over_the_limit_costs_nothing_and_others_by_their_size():
    limited_one = limited()
    rows = np.flatnonzero(limited_one.feasible_R)
    paid = limited_one.fidelity.flops / limited_one.fidelity.parameters
    assert flops_of_runs([(limited_one, range(len(limited_one.configurations)))]) == pytest.approx(
        paid * limited_one.parameters_R[rows].sum()
    )


def test_target_scale_extrapolates_the_level(problem, target):
    episode = Episode(target, problem.evidence, 1)
    trial = episode.exec_config(target.configurations[target.outcomes.best_row])
    assert abs(TargetScale(problem.setting, problem.evidence).scores([trial.loss(target)])[0]) < 0.5


def test_gaussian_process_learns_from_its_trials(problem, target):
    method = BASELINES["gaussian_process"](problem, 0)
    episode = Episode(target, problem.evidence, 2)
    trial = episode.exec_config(method.ask())
    before_R, after_R = (method.forecast.predict(t).deviation_R for t in ((), (trial,)))
    assert (after_R < before_R).all()


def likelihood(theta_P, z_NZ, y_N, *sizes):
    """Return the negative log posterior and its gradient, padded to sizes of rows and inputs."""
    rows, inputs = sizes
    extra = inputs - z_NZ.shape[1]
    mean_P = np.append(prior_mean(z_NZ.shape[1]), np.zeros(extra))
    with jax.enable_x64(True):
        value, gradient_P = jax.value_and_grad(negative_log_posterior)(
            np.append(theta_P, np.zeros(extra)),
            float(z_NZ.shape[1]),
            pad(z_NZ, (rows,), (inputs,)),
            pad(y_N, (rows,)),
            pad(np.ones(len(y_N)), (rows,)),
            mean_P,
        )
    return float(value), np.asarray(gradient_P)[: len(theta_P)]


@pytest.fixture
def regression():
    rng = np.random.default_rng(0)
    return prior_mean(3) + 0.1 * rng.normal(size=6), rng.normal(size=(20, 3)), rng.normal(size=20)


def test_gaussian_process_likelihood_is_that_of_the_dense_normal(regression):
    theta_P, z_NZ, y_N = regression
    trend, process, noise = np.exp(theta_P[:3])
    difference = (z_NZ[:, None] - z_NZ[None]) / np.exp(theta_P[3:])
    root = np.sqrt(5 * (difference**2).sum(-1))
    k_NN = trend * (1 + z_NZ @ z_NZ.T / np.sqrt(3)) ** 2 + noise * np.eye(20)
    k_NN += process * (1 + root + root**2 / 3) * np.exp(-root)
    dense = -multivariate_normal(np.zeros(20), k_NN).logpdf(y_N) - 10 * np.log(2 * np.pi)
    prior = 0.5 * (((theta_P - prior_mean(3)) / PRIOR_DEVIATION) ** 2).sum()
    assert likelihood(theta_P, z_NZ, y_N, 20, 3)[0] == pytest.approx(dense + prior, rel=1e-6)


def test_gaussian_process_gradient_is_that_of_its_likelihood(regression):
    theta_P, z_NZ, y_N = regression
    sizes = z_NZ, y_N, 20, 3
    steps = 1e-5 * np.eye(6)
    numeric = [
        (likelihood(theta_P + s, *sizes)[0] - likelihood(theta_P - s, *sizes)[0]) / 2e-5
        for s in steps
    ]
    assert likelihood(theta_P, *sizes)[1] == pytest.approx(numeric, rel=1e-4, abs=1e-5)


def test_padding_changes_nothing(regression):
    value, gradient_P = likelihood(*regression, 20, 3)
    padded, padded_P = likelihood(*regression, 32, 8)
    assert padded == pytest.approx(value) and padded_P == pytest.approx(gradient_P)


def test_numbers_of_trials_share_a_compilation(problem, target):
    method, episode = (
        BASELINES["gaussian_process"](problem, 0),
        Episode(target, problem.evidence, 5),
    )
    method.tell(episode.exec_config(method.ask()))
    method.ask()
    compiled = gaussian_process._update._cache_size()
    for _ in range(3):
        method.tell(episode.exec_config(method.ask()))
        method.ask()
    assert gaussian_process._update._cache_size() == compiled


def test_gaussian_process_posterior_interpolates_its_trials(problem, target):
    """Offsets aside, what was measured is what is believed there."""
    method, episode = (
        BASELINES["gaussian_process"](problem, 0),
        Episode(target, problem.evidence, 4),
    )
    trials = []
    for _ in range(4):
        trials.append(episode.exec_config(method.ask()))
        method.tell(trials[-1])
    rows = [target.match(t.config).row for t in trials]
    scores_T = method.forecast.scale.scores([t.loss(target) for t in trials])
    assert method.forecast.predict(trials).mean_R[rows] == pytest.approx(scores_T, abs=0.1)


def test_improvement_keeps_its_order_where_it_underflows():
    gain = improvement(np.array([50.0, 40.0, 1.0]), np.ones(3), 0.0)
    assert gain[0] < gain[1] < gain[2]


def test_candidates_are_all_free_again_once_tried(target):
    candidates = Candidates(target)
    for row in range(len(target.configurations)):
        candidates.take(row)
    assert len(candidates.untried) == len(target.configurations)
