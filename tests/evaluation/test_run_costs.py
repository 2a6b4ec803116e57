"""Runs as the tables have them: shared ones once, unknown costs as unknown."""

import math

from autollm_jax.evaluation.run_costs import read_runs
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.gym.tables import write_table
from tests.small import SPACE


def row(experiment, run, flops, seconds=36.0, status="ok", **more):
    return {
        "experiment": experiment, "config.learning_rate": 0.001, "config.batch_size": 32,
        "loss": 1.0 if status == "ok" else None, "flops": flops, "seconds": seconds, "seed": 0,
        "status": status, "run": run, **more,
    }  # fmt: skip


def written(folder, rows, units=None):
    entry = {
        "context": {}, "fidelity": {"level": "low", "parameters": 1, "tokens": 1, "flops": 1},
        "objective": {"metric": "loss", "goal": "minimize"}, "space": SPACE.to_json(),
        "default": {"learning_rate": 0.001, "batch_size": 32}, "default_origin": "the tests",
    }  # fmt: skip
    names = dict.fromkeys(row["experiment"] for row in rows)
    meta = {"format": 1, "source": "test", "task": "pretraining",
            "experiments": dict.fromkeys(names, entry), "units": units or {}}  # fmt: skip
    write_table(folder, meta, rows)
    return load_experiments([folder])


def evidence_cost(folder, rows, units=None):
    """Add up all distinct runs."""
    runs = {}
    for found in read_runs([folder], written(folder, rows, units)).values():
        runs |= found
    return sum(runs.values())


def test_a_run_that_two_experiments_share_is_paid_once(tmp_path):
    rows = [row("a", "r1", 10.0), row("b", "r1", 10.0), row("b", "r2", 5.0)]
    assert evidence_cost(tmp_path, rows) == 15.0


def test_without_run_names_a_cell_of_an_experiment_is_a_run(tmp_path):
    rows = [row("a", None, 10.0), row("b", None, 10.0), row("b", None, 5.0, seed=1)]
    for one in rows:
        del one["run"]
    assert evidence_cost(tmp_path, rows) == 25.0


def test_flops_that_are_not_published_are_unknown_and_not_free(tmp_path):
    assert math.isnan(evidence_cost(tmp_path, [row("a", "r1", None), row("a", "r2", 10.0)]))


def test_flops_per_token_are_no_cost_of_a_run(tmp_path):
    found = evidence_cost(tmp_path, [row("a", "r1", 10.0)], {"flops": "6 N, per token"})
    assert math.isnan(found)


def test_rows_over_a_limit_are_no_runs_of_that_experiment(tmp_path):
    rows = [row("a", "r1", 10.0), row("a", "r2", 70.0, status="infeasible")]
    rows[1]["config.batch_size"] = 64
    assert evidence_cost(tmp_path, rows) == 10.0
