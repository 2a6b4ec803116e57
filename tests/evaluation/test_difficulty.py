import numpy as np
import pytest

from autollm_jax.baselines import BASELINES
from autollm_jax.evaluation.difficulty import Difficulty, difficulties
from autollm_jax.evaluation.runner import play_method
from autollm_jax.forecasts.left_out import left_out_predictions
from autollm_jax.forecasts.surfaces import surfaces
from autollm_jax.gym.splits import split
from tests.small import RATES, SPACE, small

BATCHES = (32, 64, 128)
CELLS = [{"learning_rate": r, "batch_size": b} for r in RATES for b in BATCHES]


def bowl(name, level, **fields):
    """Make an experiment whose best cell is (0.002, 64), each cell run under two seeds."""
    losses = [abs(np.log2(c["learning_rate"] / 0.002)) + abs(c["batch_size"] - 64) / 64
              for c in CELLS]  # fmt: skip
    return small(
        name,
        level,
        configurations=2 * CELLS,
        outcomes=[*losses, *(loss + 0.01 for loss in losses)],
        seeds=[0] * 12 + [1] * 12,
        status=["ok"] * 24,
        **fields,
    )


@pytest.fixture
def parts():
    made = [bowl("cheap", "low"), bowl("dear", "mid", tokens=4e8),
            bowl("shape", "low", task="architecture"),
            bowl("large", "mid", tokens=4e8, task="architecture")]  # fmt: skip
    return split(made, "dev")


def test_a_task_and_source_has_every_players_regret(parts):
    names = ("random", "default", "nearest_experiment")
    players = {name: play_method(BASELINES[name]) for name in names}
    found = difficulties(parts, players, left_out_predictions, range(3))
    assert [(d.task, d.source, d.experiments) for d in found] == [
        ("architecture", "test", 1),
        ("pretraining", "test", 1),
    ]
    for d in found:
        # The cheap table is the same landscape: its best cell is the target's.
        np.testing.assert_allclose(d.players["nearest_experiment"], 0.0, atol=1e-9)
        assert d.players["random"][0] > 0 and (np.diff(d.players["random"]) <= 0).all()
        assert d.players["default"][0] == parts.held_out[0].outcomes.regrets_R[0]
        assert d.best(names) == "nearest_experiment"
        assert d.known[-1] < 0.5


def test_the_best_has_the_lowest_mean_over_trials():
    regrets = {"early": np.array([0.1, 0.1, 0.1]), "late": np.array([0.3, 0.02, 0.0])}
    found = Difficulty("grpo", "test", 1, regrets, np.zeros(3))
    assert found.best(["early", "late"]) == "early"


def test_a_configurations_own_runs_tell_nothing_of_it():
    table = bowl("one", "mid")
    row = table.match({"learning_rate": 0.002, "batch_size": 32}).row
    far = table.outcomes.values_R.copy()
    far[row] += 5.0  # both seeds: a configuration is one row
    other = small("one", "mid", configurations=CELLS, outcomes=far.tolist(), status=["ok"] * 12)
    before_R, after_R = left_out_predictions(table), left_out_predictions(other)
    assert len(before_R) == len(CELLS)
    # The surprise moves units and hyperparameters a little; what is fitted to it follows it.
    assert abs(after_R[row] - before_R[row]) < 0.2
    fitted = [surfaces([e], e)[0].mean(surfaces([e], e)[0].scaled(e))[row] for e in (table, other)]
    assert (fitted[1] - fitted[0]) / table.spread_unit > 1


def test_over_the_limit_nothing_is_predicted():
    limited = small(
        "limited",
        "mid",
        configurations=CELLS,
        outcomes=[*np.linspace(1, 2, 10).tolist(), np.nan, np.nan],
        status=["ok"] * 10 + ["infeasible"] * 2,
        parameters=[*range(1, 11), 20, 20],
        limit={"quantity": "parameters", "at_most": 10},
    )
    predicted_R = left_out_predictions(limited)
    assert np.isinf(predicted_R[10:]).all() and np.isfinite(predicted_R[:10]).all()
    assert limited.space == SPACE


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_table_of_a_few_configurations_is_predicted_too(count):
    outcomes = np.linspace(1, 2, count).tolist()
    table = small(
        "tiny", "mid", configurations=CELLS[:count], outcomes=outcomes, status=["ok"] * count
    )
    assert np.isfinite(left_out_predictions(table)).all()
