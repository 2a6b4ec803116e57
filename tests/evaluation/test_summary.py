"""What stands in summary.json, and what counts as one setting."""

import pyarrow as pa
import pytest

from autollm_jax.evaluation.runner import SCHEMA
from autollm_jax.evaluation.summary import (
    Results,
    summarise,
    summarise_differences,
)
from autollm_jax.gym.runs import runs_key
from tests.small import small


def table(regrets, source="test"):
    """Make results of one trial each from {task: {experiment: {method: regret}}}."""
    rows = [
        {
            "task": task,
            "source": source,
            "experiment": experiment,
            "fidelity": "mid",
            "method": method,
            "seed": 0,
            "trial": 1,
            "config": "{}",
            "outcome": 1.0,
            "status": "ok",
            "regret": regret,
            "regret_minmax": regret,
            "valid": True,
            "matched": False,
        }
        for task, experiments in regrets.items()
        for experiment, methods in experiments.items()
        for method, regret in methods.items()
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def test_all_weighs_each_task_the_same():
    many = {f"m{n}": {"a": 0.8} for n in range(20)}
    few = {"p0": {"a": 0.0}, "p1": {"a": 0.4}}
    read = Results(table({"data_mixture": many, "pretraining": few}))
    regret = summarise(read)["regret"]["a"]
    assert regret["all"]["1"]["mean"] == pytest.approx((0.8 + 0.2) / 2)
    assert regret["all"]["1"]["n"] == 22 and regret["pretraining"]["1"]["n"] == 2


def test_sources_are_summarised_apart_as_well():
    one = table({"pretraining": {"x": {"a": 0.2}, "y": {"a": 0.4}}}, source="one")
    two = table({"pretraining": {"x": {"a": 0.9}}}, source="two")
    by_source = summarise(Results(pa.concat_tables([one, two])))["regret_by_source"]["a"]
    assert by_source["one/pretraining"]["1"]["mean"] == pytest.approx(0.3)
    assert by_source["two/pretraining"]["1"]["mean"] == pytest.approx(0.9)


def objective(name, value, **fields):
    return small(name, "mid", facts={"objective": value, "model": "60M"}, **fields)


def test_objectives_of_the_same_runs_are_one_cluster():
    assert runs_key(objective("m_a", "a")) == runs_key(objective("m_b", "b"))


def test_limits_of_the_same_runs_are_one_cluster():
    def limited(name, at_most):
        return small(
            name,
            "mid",
            facts={"limit_percentile": at_most, "scale": "m"},
            parameters=range(1, 12),
            limit={"quantity": "parameters", "at_most": at_most},
            status=["ok"] * at_most + ["infeasible"] * (11 - at_most),
            outcomes=[1.0] * 11,
        )

    assert runs_key(limited("p6", 6)) == runs_key(limited("p9", 9))


@pytest.mark.parametrize("change", [{"tokens": 5e8}, {"source": "other"}, {"facts": {}}])
def test_other_runs_are_another_cluster(change):
    fields = {"facts": {"objective": "a", "model": "60M"}, **change}
    other = small("other", "mid", **fields)
    assert runs_key(objective("m_a", "a")) != runs_key(other)


def test_experiments_that_state_neither_objective_nor_limit_stand_alone():
    assert runs_key(small("x", "mid")) != runs_key(small("y", "mid"))


def test_counts_tell_experiments_from_clusters():
    experiments = [objective(f"m_{n}", f"o{n}", task="data_mixture") for n in range(3)]
    regrets = {"data_mixture": {e.name: {"a": 0.5} for e in experiments}}
    counts = summarise(Results(table(regrets), experiments))["counts"]
    assert counts["data_mixture"] == {"experiments": 3, "clusters": 1}


def trials(*valid_and_matched, budget=3):
    """One episode of the given trials."""
    (row,) = table({"grpo": {"x": {"a": 0.5}}}).to_pylist()
    rows = [
        {**row, "trial": k + 1, "valid": valid, "matched": matched, "regret": 1 / (k + 1)}
        for k, (valid, matched) in enumerate(valid_and_matched)
    ]
    metadata = {"budget": str(budget), "methods": '["a"]'}
    return Results(pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata)))


def test_validity_is_told_trial_by_trial():
    read = trials((True, False), (False, False), (True, True), budget=4)
    by_trial = summarise(read)["validity"]["a"]["grpo"]
    assert by_trial["1"] == {"invalid": 0.0, "matched": 0.0, "n": 1}
    assert by_trial["2"]["invalid"] == 1.0 and by_trial["3"]["matched"] == 1.0
    assert by_trial["4"] == {"invalid": None, "matched": None, "n": 0}
    assert read.validity("a", "all") == by_trial


def test_a_budget_above_five_is_summarised_too():
    read = trials(*[(True, False)] * 10, budget=10)
    summary = summarise(read)
    assert list(summary["regret"]["a"]["all"]) == ["1", "3", "5", "10"]
    assert summary["regret"]["a"]["all"]["10"]["mean"] == pytest.approx(0.1)
    assert summary["regret_by_trial"]["a"]["all"] == pytest.approx([1 / k for k in range(1, 11)])


def test_reaching_a_threshold_takes_the_first_trial_at_it():
    read = trials(*[(True, False)] * 3)
    assert list(read.reached("a", 0.5).values()) == [2]
    assert list(read.reached("a", 0.1).values()) == [None]


def test_differences_are_paired_with_each_other_method():
    read = Results(table({"grpo": {"x": {"a": 0.2, "b": 0.5}, "y": {"a": 0.4, "b": 0.3}}}))
    found = summarise_differences(read, "a")
    assert set(found) == {"b"}
    cell = found["b"]["all"]["1"]
    assert cell["mean"] == pytest.approx(-0.1) and cell["low"] <= cell["mean"] <= cell["high"]
    assert summarise_differences(read, "nobody") == {}
