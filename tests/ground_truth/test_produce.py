import dataclasses

import pytest

from autollm_jax.errors import UserError
from autollm_jax.ground_truth.language_model import LanguageModelTrainer
from autollm_jax.ground_truth.ledger import Ledger
from autollm_jax.ground_truth.produce import (
    finished_part,
    missing_runs,
    produce,
    table_meta,
    table_rows,
    write_own_table,
)
from autollm_jax.ground_truth.verify import incomparable, verify
from autollm_jax.gym.experiments import load_experiments, table_experiments
from autollm_jax.gym.tables import read_table


def ledger_of(root, plan, share=(0, 1)):
    path = root / "tables" / plan.source / f"{plan.task}.parquet"
    return Ledger(path, plan.setup_digest(), share)


def make(root, plan, trainer, mesh, share=(0, 1), **options):
    """Train a share of a plan's runs; return the ledger."""
    ledger = ledger_of(root, plan, share)
    options = {"checkpoint_seconds": 1e9, **options}
    produce(plan, trainer, ledger, mesh, root / "checkpoints", share=share, **options)
    return ledger


def make_table(root, plan, trainer, mesh):
    ledger = make(root, plan, trainer, mesh)
    meta = table_meta(plan, plan, trainer, "the command")
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
    assert small.feasible_R.sum() < large.feasible_R.sum() == 2
    for row in table_of(root, "architecture").rows.to_pylist():
        over = row["experiment"] == small.name and row["parameters"] > small.limit["at_most"]
        assert (row["status"] == "infeasible") == over == (row["loss"] is None)
        assert over == (row["flops"] is None)


def test_what_no_limit_allows_is_not_trained(architecture_plan):
    limits = {name: e["limit"]["at_most"] for name, e in architecture_plan.experiments.items()}
    widest = max(limits.values())
    kept = [c for c in architecture_plan.cells if limits[c.experiment] < widest]
    small = dataclasses.replace(architecture_plan, cells=tuple(kept))
    trained = {run.name for runs in small.groups() for run in runs}
    assert trained == {c.run.name for c in kept if not c.infeasible} != {c.run.name for c in kept}


def test_experiments_of_one_budget_share_their_runs(root, architecture_plan):
    assert sum(map(len, architecture_plan.groups())) == len(architecture_plan.cells) / 2
    small, large = load_experiments([root / "tables"], ["architecture"])
    assert small.outcomes.optimum >= large.outcomes.optimum


class Untrainable(LanguageModelTrainer):
    def train(self, *_, **__):
        pytest.fail("trained")


def untrainable(trainer):
    return Untrainable(**{f.name: getattr(trainer, f.name) for f in dataclasses.fields(trainer)})


def test_what_is_in_the_ledger_is_not_trained_again(root, pretraining_plan, trainer, mesh):
    make(root, pretraining_plan, untrainable(trainer), mesh)


def test_of_a_group_only_the_missing_run_is_trained(
    root, pretraining_plan, trainer, mesh, tmp_path
):
    whole = ledger_of(root, pretraining_plan)
    *others, left = [run.name for run in pretraining_plan.groups()[0]]
    ledger = ledger_of(tmp_path, pretraining_plan)
    names = {run.name for runs in pretraining_plan.groups() for run in runs} - {left}
    ledger.path.parent.mkdir(parents=True)
    ledger.record({name: whole.read(name) for name in names})
    make(tmp_path, pretraining_plan, trainer, mesh)
    again = ledger_of(tmp_path, pretraining_plan)
    assert again.read(left)["together"] == 1
    assert {again.read(name)["together"] for name in others} == {len(others) + 1}
    loss = whole.read(left)["metrics"]["loss"]
    assert again.read(left)["metrics"]["loss"] == pytest.approx(loss, abs=1e-4)
    # Verifying a run repeats the program that trained it.
    meta = table_meta(pretraining_plan, pretraining_plan, trainer, "the command")
    write_own_table(tmp_path / "tables", meta, table_rows(pretraining_plan, again))
    everything = len(pretraining_plan.cells)
    table = table_of(tmp_path)
    deviations = verify(table, pretraining_plan, trainer, mesh, rows=everything, seed=0)
    assert max(deviation.size for deviation in deviations) < 1e-6


def test_runs_of_another_setup_do_not_count(root, pretraining_plan):
    assert not missing_runs(pretraining_plan, ledger_of(root, pretraining_plan))
    setup = dataclasses.replace(pretraining_plan.setup, validation_rows=3)
    other = dataclasses.replace(pretraining_plan, setup=setup)
    assert len(missing_runs(other, ledger_of(root, other))) == len(pretraining_plan.cells)


def test_shares_together_make_the_table(pretraining_plan, trainer, mesh, tmp_path):
    first = make(tmp_path, pretraining_plan, trainer, mesh, share=(1, 2))
    missing = missing_runs(pretraining_plan, first)
    assert {run.batch_size for run in missing} == {2}
    assert not finished_part(pretraining_plan, first).experiments
    with pytest.raises(KeyError, match="b2_lr3.000e-03_s0"):
        table_rows(pretraining_plan, first)
    second = make(tmp_path, pretraining_plan, trainer, mesh, share=(0, 2))
    assert second.path != first.path and second.path.exists()
    assert len(table_rows(pretraining_plan, second)) == len(pretraining_plan.cells)
    second.remove()
    assert not first.path.exists() and not second.path.exists()


def test_an_interrupted_sweep_has_a_table_of_its_finished_experiments(
    mixture_plan, trainer, mesh, tmp_path
):
    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    low = [name for name, e in mixture_plan.experiments.items() if e["fidelity"]["level"] == "low"]
    with pytest.raises(Killed):
        make(tmp_path, mixture_plan, trainer, mesh, on_group=kill)
    ledger = ledger_of(tmp_path, mixture_plan)
    part = finished_part(mixture_plan, ledger)
    assert list(part.experiments) == low and len(low) == 6
    meta = table_meta(mixture_plan, part, trainer, "the command")
    assert meta["unfinished"] == [n for n in mixture_plan.experiments if n not in low]
    write_own_table(tmp_path / "tables", meta, table_rows(part, ledger))
    assert {e.name for e in load_experiments([tmp_path / "tables"])} == set(low)


def test_a_dearer_experiment_that_is_too_noisy_is_left_out(root, tmp_path):
    table = table_of(root, "pretraining")
    (noisy,) = table_experiments(table)
    rows = table.rows.to_pylist()
    first = {(r["config.learning_rate"], r["config.batch_size"]): r for r in rows if not r["seed"]}
    alike = [first[row["config.learning_rate"], row["config.batch_size"]] for row in rows]
    calm = [
        row | {"experiment": "calm", "seed": 0 if number % 2 else 1}
        for number, row in enumerate(alike)
    ]
    for level, left in (("low", {noisy.name, "calm"}), ("mid", {"calm"})):
        entry = table.meta["experiments"][noisy.name]
        entry = entry | {"fidelity": entry["fidelity"] | {"level": level}}
        meta = dict(table.meta) | {"experiments": {noisy.name: entry, "calm": entry}}
        noise = noisy.outcomes.noise_regret
        kept = read_table(write_own_table(tmp_path, meta, rows + calm, 0.9 * noise))
        assert set(kept.meta["experiments"]) == set(kept.rows["experiment"].to_pylist()) == left
    assert kept.meta["dropped"] == {noisy.name: pytest.approx(noise)}


def test_half_a_last_line_of_the_ledger_is_trained_again(tmp_path, capsys):
    path = tmp_path / "task.parquet"
    Ledger(path, "s").record({"a": {"loss": 1}, "b": {"loss": 2}})
    file = Ledger(path, "s").path
    file.write_text(file.read_text()[:-5])
    ledger = Ledger(path, "s")
    assert ledger.read("a") == {"loss": 1} and ledger.read("b") is None
    assert "half a last line" in capsys.readouterr().err
    ledger.record({"c": {"loss": 3}})
    again = Ledger(path, "s")
    assert [again.read(run) for run in "abc"] == [{"loss": 1}, None, {"loss": 3}]


@pytest.mark.parametrize("damaged", ['{"run": "a"', "{}", "[1]"])
def test_a_damaged_ledger_line_is_named(tmp_path, damaged):
    ledger = Ledger(tmp_path / "task.parquet", "s")
    ledger.path.write_text(f"{damaged}\n{{}}\n")
    with pytest.raises(UserError, match="runs.jsonl: line 1.*train it again"):
        Ledger(tmp_path / "task.parquet", "s")


def test_verify_repeats_rows(root, pretraining_plan, trainer, mesh):
    deviations = verify(table_of(root), pretraining_plan, trainer, mesh, rows=3, seed=0)
    # The tests' own XLA_FLAGS round the last bit of a batch of one stream in another way.
    assert len(deviations) == 3 and max(deviation.size for deviation in deviations) < 1e-6


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
