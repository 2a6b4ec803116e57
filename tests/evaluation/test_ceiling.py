"""The yardstick tries cells in the order of predictions, and tasks weigh alike."""

import numpy as np

from autollm_jax.baselines import BASELINES
from autollm_jax.evaluation.ceiling import ceilings
from autollm_jax.evaluation.runner import Terms, evaluate, play_method
from autollm_jax.evaluation.summary import Results


def scored(split, tmp_path):
    players = {"random": play_method(BASELINES["random"])}
    table = evaluate(
        players, split, Terms(3, (0,)), tmp_path / "r.parquet", tables={}, progress=False
    )
    opened = list(split.held_out)
    return Results(table, opened), opened


def test_who_predicts_the_truth_has_no_regret(small_split, tmp_path):
    results, opened = scored(small_split, tmp_path)
    found = ceilings(results, opened, lambda e: e.outcomes.regrets_R)
    assert set(found) == {*results.tasks, "all"}
    assert all(value == 0 for cells in found.values() for value in cells.values())


def test_who_predicts_the_contrary_is_scored_by_his_order(small_split, tmp_path):
    results, opened = scored(small_split, tmp_path)
    found = ceilings(results, opened, lambda e: -e.outcomes.regrets_R)
    for task in results.tasks:
        worst = [np.sort(e.outcomes.regrets_R)[::-1] for e in opened if e.task == task]
        assert found[task]["1"] == np.mean([w[0] for w in worst])
        assert found[task]["3"] == np.mean([w[:3].min() for w in worst])
    assert found["all"]["1"] == np.mean([found[task]["1"] for task in results.tasks])
