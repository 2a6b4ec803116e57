"""Evidence whose rows an optimiser chose: forecasts do not take the crowd for the landscape."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from autollm_jax.forecasts.advisers import FORECASTS
from autollm_jax.forecasts.landscapes import landscape
from autollm_jax.forecasts.surfaces import _fitted_rows, surfaces
from autollm_jax.gym.cells import Cells
from autollm_jax.gym.experiments import Fidelity, load_experiments, make_experiment
from autollm_jax.gym.spaces import Dimension, Space

LARGE = 450  # rows: more than a landscape or a surface is fitted to


def loss(points_ND: np.ndarray, fidelity: int) -> np.ndarray:
    """Return a bowl whose optimum moves with fidelity, flatter along later dimensions."""
    dimensions = points_ND.shape[1]
    optimum_D = 0.4 + 0.03 * fidelity + 0.1 * np.cos(np.arange(dimensions))
    return ((points_ND - optimum_D) ** 2 / (1 + np.arange(dimensions))).sum(1)


def trace(random, dimensions: int, rows: int, fidelity: int) -> np.ndarray:
    """Return the points of an optimiser: a fifth at random, then steps around the best so far."""
    points = list(random.random((rows // 5, dimensions)))
    best = min(points, key=lambda point: loss(point[None], fidelity)[0])
    step = 0.15
    while len(points) < rows:
        points.append(np.clip(best + random.normal(0, step, dimensions), 0, 1))
        step = max(0.97 * step, 0.01)
        best = min(best, points[-1], key=lambda point: loss(point[None], fidelity)[0])
    return np.array(points)


def made(points_ND: np.ndarray, fidelity: int):
    names = [f"x{d}" for d in range(points_ND.shape[1])]
    return make_experiment(
        source="made",
        task="pretraining",
        name=f"f{fidelity}",
        space=Space(tuple(Dimension(name, "continuous", bounds=(0.0, 1.0)) for name in names)),
        fidelity=Fidelity("low", 1e6 * 4.0**fidelity, 1e8 * 4.0**fidelity, 6e14 * 16.0**fidelity),
        configurations=[dict(zip(names, point, strict=True)) for point in points_ND.tolist()],
        outcomes=loss(points_ND, fidelity).tolist(),
        default=dict.fromkeys(names, 0.5),
        default_origin="the middle",
    )


def problem(dimensions: int):
    random = np.random.default_rng(dimensions)
    evidence = [made(trace(random, dimensions, LARGE, f), f) for f in range(2)]
    return made(random.random((200, dimensions)), 2), evidence


def agreement(name: str, dimensions: int) -> float:
    """Return the rank correlation between a forecast and the outcomes of an uncrowded target."""
    target, evidence = problem(dimensions)
    mean_R = FORECASTS[name](target.setting, evidence).predict().mean_R
    return float(spearmanr(mean_R, target.outcomes.losses_R)[0])


@pytest.mark.parametrize(
    ("name", "dimensions"), [("own", 2), ("own", 6), ("boosted_trees", 6), ("gaussian_process", 6)]
)
def test_a_forecast_ranks_a_landscape_better_than_one_that_averages_a_crowd(
    name, dimensions, monkeypatch
):
    mended = agreement(name, dimensions)
    monkeypatch.setattr(Cells, "weights_R", property(lambda cells: np.ones(len(cells))))
    plain = agreement(name, dimensions)
    assert mended > plain + 0.05 and mended > 0.6


def test_a_crowd_counts_as_one_cell():
    grid = [{"x": x} for x in np.linspace(0, 1, 41).tolist()]
    crowd = [{"x": x} for x in np.linspace(0.3005, 0.3095, 200).tolist()]
    space = Space((Dimension("x", "continuous", bounds=(0.0, 1.0)),))
    weights_R = Cells(space, tuple(grid)).weights_R
    np.testing.assert_array_equal(weights_R, 1.0)
    # Now most cells lie in the crowd, and it is the rest that tells how far apart cells are.
    far = [{"x": x} for x in np.linspace(0, 1, 101).tolist()]
    crowded = Cells(space, tuple(far + crowd[:40]))
    assert crowded.weights_R[len(far) :].sum() < 2
    assert crowded.weights_R[[0, 50, 100]].tolist() == [1.0, 1.0, 1.0]


def test_one_of_each_crowd_comes_first():
    places = [*np.linspace(0, 1, 101).tolist(), *np.linspace(0.5001, 0.501, 30).tolist()]
    space = Space((Dimension("x", "continuous", bounds=(0.0, 1.0)),))
    cells = Cells(space, tuple({"x": place} for place in places))
    order = np.argsort(np.abs(np.array(places) - 0.5), kind="stable")
    first = cells.uncrowded_first(order)
    assert sorted(first.tolist()) == list(range(len(cells)))
    assert first[0] == order[0]
    assert (first[:101] < 101).sum() >= 99 and not (order[:30] < 101)[1:].any()


def test_the_unit_of_a_crowded_table_is_the_median_over_the_space():
    _, (evidence, _) = problem(2)
    even = loss(np.random.default_rng(0).random((4000, 2)), 0)
    truth = np.median(even) - even.min()
    assert evidence.outcomes.unit < 0.1 * truth
    assert 0.5 * truth < evidence.spread_unit < 1.5 * truth
    # Scores stay as they are defined.
    assert np.median(evidence.outcomes.uncut_regrets_R) == pytest.approx(1)


def test_nothing_changes_in_a_grid():
    """Neither where its steps are finer in places, as those of our learning rates are."""
    for experiment in load_experiments("gym_data", tasks=("pretraining", "architecture", "grpo")):
        np.testing.assert_array_equal(experiment.cells.weights_R, 1.0)
        order = np.random.default_rng(0).permutation(len(experiment.cells))
        np.testing.assert_array_equal(experiment.cells.uncrowded_first(order), order)
        assert experiment.spread_unit == experiment.outcomes.unit
        np.testing.assert_array_equal(
            experiment.spread_regrets_R, np.clip(experiment.outcomes.uncut_regrets_R, 0, 1)
        )
        np.testing.assert_array_equal(experiment.spread_regrets_R, experiment.outcomes.regrets_R)


def test_mixtures_and_small_tables_are_not_weighed():
    mixture = Space((Dimension("mixture", "simplex", ("web", "code")),))
    shares = [*np.linspace(0, 1, 41).tolist(), *np.linspace(0.5, 0.51, 40).tolist()]
    cells = Cells(mixture, tuple({"mixture": {"web": s, "code": 1 - s}} for s in shares))
    np.testing.assert_array_equal(cells.weights_R, 1.0)
    space = Space((Dimension("x", "continuous", bounds=(0.0, 1.0)),))
    np.testing.assert_array_equal(Cells(space, ({"x": 0.5},)).weights_R, 1.0)


def spread_rows(kept_RD: np.ndarray) -> float:
    """Return the share of the kept rows that lie outside the optimiser's last steps."""
    away_RD = kept_RD - np.median(kept_RD, axis=0)
    return float((np.abs(away_RD).max(1) > 0.1).mean())


def test_landscapes_and_surfaces_take_one_row_of_each_crowd_first(monkeypatch):
    points_ND = trace(np.random.default_rng(0), 2, 1000, 0)

    def shares():
        table = made(points_ND, 0)
        rows_N, _ = _fitted_rows((table,))
        return spread_rows(landscape(table).rows_RD / 4), spread_rows(table.units_RD[rows_N])

    mended = shares()
    monkeypatch.setattr(Cells, "weights_R", property(lambda cells: np.ones(len(cells))))
    for spread, plain in zip(mended, shares(), strict=True):
        assert spread > plain + 0.25


def test_a_chain_of_near_configurations_has_a_covariance():
    """Neighbours lie within the width that counts as the same; the ends of the chain do not."""
    random = np.random.default_rng(0)
    dimensions = 5
    chain = random.random(dimensions) + 4e-4 * np.arange(40)[:, None] * np.eye(dimensions)[0]
    evidence = [made(np.concatenate([chain, random.random((60, dimensions))]), 0)]
    target = made(np.concatenate([chain, random.random((20, dimensions))]), 1)
    (surface,) = surfaces(evidence, target.setting)
    values = np.linalg.eigvalsh(surface.covariance(surface.scaled(target.setting)))
    assert values.min() > -1e-6 * values.max()
    prediction = FORECASTS["own"](target.setting, evidence).predict()
    assert np.isfinite(prediction.mean_R).all() and (prediction.deviation_R >= 0).all()
