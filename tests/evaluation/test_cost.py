"""Costs: training and evidence in full, and where lines cross."""

import math

import pyarrow as pa
import pytest

from autollm_jax.evaluation.cost import (
    Group,
    Line,
    Spending,
    break_even,
    cheaper_from,
    cost_groups,
    expected_trials,
    summarise_costs,
)
from autollm_jax.evaluation.runner import SCHEMA
from autollm_jax.evaluation.summary import Results
from tests.small import small


def line(fixed, each):
    return Line(fixed, 0.0, each, 1.0, 1.0)


@pytest.mark.parametrize(
    ("ours", "theirs", "number"),
    [
        ((100, 1), (0, 11), 11),  # at 10 they are even
        ((100, 1), (0, 1), math.inf),
        ((0, 1), (100, 1), 1),
        ((0, 1), (0, 2), 1),
        ((0, 5), (100, 1), math.inf),  # cheaper at first only
        ((math.nan, 1), (0, 2), math.nan),
    ],
)
def test_a_line_is_cheaper_from_where_it_stays_below(ours, theirs, number):
    assert cheaper_from(line(*ours), line(*theirs)) == pytest.approx(number, nan_ok=True)
    if math.isfinite(number):
        assert line(*ours).at(number) < line(*theirs).at(number)


def test_break_even_is_against_whoever_holds_out_longest():
    lines = {"agent": line(100, 1), "a": line(0, 11), "b": line(0, 3), "c": line(0, 300)}
    assert break_even(Group("g", 0.0, 0.0, lines), "agent") == (51, "b")
    lines |= {"d": line(0, 0.9), "e": line(0, 0.5)}
    assert break_even(Group("g", 0.0, 0.0, lines), "agent") == (math.inf, "e")


def test_random_search_goes_on_for_so_many_trials_as_expected():
    found = small("x", "mid", outcomes=[1.0, 5.0] + [9.0] * 9, status=["ok"] * 11)
    assert expected_trials(found, 0) == 12 / 2  # one good cell of eleven
    assert expected_trials(found, 5) == 7 / 2


def results_of(regrets):
    """One episode of `test/pretraining/x` a method, from its regrets by trial."""
    rows = [
        {**dict.fromkeys(SCHEMA.names), "task": "pretraining", "source": "test", "experiment": "x",
         "method": method, "seed": 0, "trial": k + 1, "regret": regret, "valid": True,
         "matched": False}
        for method, series in regrets.items() for k, regret in enumerate(series)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCHEMA)


REGRETS = {"agent": [0.2, 0.01], "slow": [0.2, 0.2], "halving": [0.03, 0.03]}


def groups(transcripts=()):
    """Evidence of 1000 FLOPs, target runs of 10, training of 500."""
    runs = {
        "test/pretraining/x": {n: 10.0 for n in range(4)},
        "test/pretraining/cheap": {0: 1000.0},
    }
    spending = Spending(500.0, 1.0, ("agent",), runs, [small("cheap", "low")])
    found = cost_groups(Results(results_of(REGRETS)), [small("x", "mid")], spending, transcripts)
    return found, spending


def test_a_method_pays_evidence_trials_and_its_own_training():
    (group,), _ = groups()
    agent, slow = group.lines["agent"], group.lines["slow"]
    assert agent.fixed == 1500.0 and agent.per_experiment == 21.0
    assert slow.fixed == 1000.0
    assert slow.trials == 2 + expected_trials(small("x", "mid"), 2) > 3
    assert (agent.reached, slow.reached) == (1.0, 0.0)


def test_a_method_that_makes_its_own_cheap_runs_pays_those_instead():
    said = {"method": "halving", "source": "test", "task": "pretraining", "evidence_flops": 200.0}
    (group,), _ = groups([said])
    assert group.lines["halving"] == Line(0.0, 0.0, 210.0, 1.0, 1.0)


def test_pooled_tasks_pay_their_evidence_each_and_one_training():
    def experiment(name, level, task):
        return small(name, level, task=task)

    evidence = [experiment("cheap", "low", task) for task in ("grpo", "pretraining")]
    targets = [experiment("x", "mid", task) for task in ("grpo", "pretraining")]
    table = results_of(REGRETS)
    both = pa.concat_tables(
        [table, table.set_column(0, "task", pa.array(["grpo"] * table.num_rows))]
    )
    runs = {e.id: {(e.id,): 30.0 if e.task == "grpo" else 10.0} for e in evidence + targets}
    spending = Spending(500.0, 0.0, ("agent",), runs, evidence)
    pooled, grpo, _ = cost_groups(Results(both), targets, spending, [])
    assert (pooled.name, pooled.lines["agent"].fixed) == ("all", 540.0)
    assert grpo.lines["agent"].fixed == 530.0
    assert pooled.lines["agent"].per_experiment == 2 * (30.0 + 10.0) / 2


def test_the_summary_is_plain_json():
    found, spending = groups()
    summary = summarise_costs(found, "agent", spending)
    cell = summary["groups"]["test/pretraining"]
    assert (summary["unit"], summary["training"]) == ("FLOPs", 500.0)
    assert cell["methods"]["agent"]["fixed"] == 1500.0
    # Against a method that needs one trial the agent never pays off.
    assert cell["break_even"] == {"experiments": "never", "against": "halving"}
