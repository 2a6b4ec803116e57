import dataclasses

import pytest

from autollm_jax.errors import UserError
from autollm_jax.ground_truth.language_model import LanguageModelTrainer
from autollm_jax.ground_truth.ledger import Ledger
from autollm_jax.ground_truth.produce import (
    missing_runs,
    produce,
    table_meta,
    table_rows,
    write_own_table,
)
from autollm_jax.ground_truth.verify import incomparable, verify
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.gym.tables import read_table


def make_table(root, plan, trainer, mesh):
    ledger = Ledger(root / "ledger")
    produce(plan, trainer, ledger, mesh, checkpoint_seconds=1e9)
    meta = table_meta(plan, trainer, "the command")
    return write_own_table(root / "tables", meta, table_rows(plan, ledger))


@pytest.fixture(scope="module")
def root(pretraining_plan, architecture_plan, trainer, mesh, tmp_path_factory):
    """A folder with the tables of two plans, and their ledger."""
    root = tmp_path_factory.mktemp("root")
    make_table(root, pretraining_plan, trainer, mesh)
    make_table(root, architecture_plan, trainer, mesh)
    return root


def table_of(root, task="pretraining"):
    return read_table(root / "tables" / "tiny" / f"{task}.parquet")


def test_every_cell_and_seed_is_a_row_with_its_cost_and_provenance(root):
    rows = table_of(root).rows.to_pylist()
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert row["flops"] > 0 and row["seconds"] > 0 and row["status"] == "ok"
        assert row["commit"] and "jax" in row["versions"] and row["device"]
        domains = [value for name, value in row.items() if name.startswith("loss.")]
        assert row["loss"] == pytest.approx(sum(domains) / 5)


def test_the_noise_floor_is_stored_and_is_the_gyms(root):
    (experiment,) = load_experiments([root / "tables"], ["pretraining"])
    stored = table_of(root).meta["experiments"][experiment.name]["noise_floor"]
    assert stored == pytest.approx(experiment.outcomes.noise) and stored > 0


def test_over_the_limit_is_infeasible_and_has_no_loss(root):
    small, large = load_experiments([root / "tables"], ["architecture"])
    assert small.limit["at_most"] < large.limit["at_most"]
    assert small.feasible_R.sum() < large.feasible_R.sum() == 8
    for row in table_of(root, "architecture").rows.to_pylist():
        over = row["experiment"] == small.name and row["parameters"] > small.limit["at_most"]
        assert (row["status"] == "infeasible") == over == (row["loss"] is None)


def test_experiments_of_one_budget_share_their_runs(root, architecture_plan):
    assert sum(map(len, architecture_plan.groups())) == len(architecture_plan.cells) / 2
    small, large = load_experiments([root / "tables"], ["architecture"])
    assert small.outcomes.optimum >= large.outcomes.optimum


class Untrainable(LanguageModelTrainer):
    def train(self, *_, **__):
        pytest.fail("trained")


def test_what_is_in_the_ledger_is_not_trained_again(root, pretraining_plan, trainer, mesh):
    fields = {f.name: getattr(trainer, f.name) for f in dataclasses.fields(trainer)}
    ledger = Ledger(root / "ledger")
    produce(pretraining_plan, Untrainable(**fields), ledger, mesh, checkpoint_seconds=1e9)


def test_shares_together_make_the_table(pretraining_plan, trainer, mesh, tmp_path):
    ledger = Ledger(tmp_path)
    produce(pretraining_plan, trainer, ledger, mesh, checkpoint_seconds=1e9, share=(1, 2))
    missing = missing_runs(pretraining_plan, ledger)
    assert {run.batch_size for run in missing} == {2}
    with pytest.raises(UserError, match="b2_lr3.000e-03_s0.json.*ground_truth"):
        table_rows(pretraining_plan, ledger)
    produce(pretraining_plan, trainer, ledger, mesh, checkpoint_seconds=1e9, share=(0, 2))
    assert len(table_rows(pretraining_plan, ledger)) == len(pretraining_plan.cells)


def test_a_damaged_ledger_file_is_named(tmp_path):
    path = Ledger(tmp_path).path("r")
    path.parent.mkdir()
    path.write_text('{"loss": 1')
    with pytest.raises(UserError, match="r.json: not JSON"):
        Ledger(tmp_path).read("r")


def test_verify_repeats_rows_to_the_bit(root, pretraining_plan, trainer, mesh):
    deviations = verify(table_of(root), pretraining_plan, trainer, mesh, rows=3, seed=0)
    assert [deviation.size for deviation in deviations] == [0.0] * 3


def test_verify_sees_a_falsified_row(root, pretraining_plan, trainer, mesh):
    table = table_of(root)
    column = table.rows.column_names.index("loss")
    raised = [value + 0.1 for value in table.rows["loss"].to_pylist()]
    rows = table.rows.set_column(column, "loss", [raised])
    falsified = dataclasses.replace(table, rows=rows)
    (deviation,) = verify(falsified, pretraining_plan, trainer, mesh, rows=1, seed=0)
    assert deviation.size == pytest.approx(0.1, abs=1e-6)


def test_verify_says_so_where_the_corpus_is_another(root, trainer):
    table = table_of(root)
    assert incomparable(table, trainer) is None
    provenance = table.meta["provenance"] | {"corpus_hash": "another"}
    other = dataclasses.replace(table, meta=table.meta | {"provenance": provenance})
    assert "corpus_hash was another" in incomparable(other, trainer)


def test_another_plans_table_is_refused(root, architecture_plan, trainer, mesh):
    with pytest.raises(UserError, match="another config.ground_truth"):
        verify(table_of(root), architecture_plan, trainer, mesh, rows=1, seed=0)
