import dataclasses
import json

import jax
import numpy as np
import pytest

from autollm_jax.data.corpus import make_corpus
from autollm_jax.data.pipeline import Pipeline, pack
from autollm_jax.data.tokenizer import train_tokenizer
from autollm_jax.errors import UserError
from autollm_jax.ground_truth import pretraining, verify
from autollm_jax.ground_truth.ledger import Ledger
from autollm_jax.ground_truth.pretraining import GridExperiment, Materials, Plan
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.gym.tables import read_table, write_table
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.training.optimizer import OptimizerConfig

PLAN = Plan(
    source="tiny",
    corpus="poem",
    vocab_size=300,
    sequence_length=8,
    head_dim=8,
    dtype="float32",
    validation_rows=4,
    optimizer=OptimizerConfig(0.0),
    experiments=(GridExperiment("low", 16, 1, 1024, (0.003, 0.03), (2, 4), (0, 1)),),
)


@pytest.fixture(scope="module")
def materials():
    texts = {str(i): f"the {w} sat on the {w} mat {i}\n" * 9 for i, w in enumerate("abcdefgh" * 4)}
    corpus = make_corpus("poem", version="1", description="", domains={"verse": texts})
    tokenizer = train_tokenizer(texts.values(), PLAN.vocab_size)
    rows = {
        split: pack(corpus.split(split)["verse"], tokenizer, PLAN.sequence_length)
        for split in ("train", "validation")
    }
    validation = {"verse": Pipeline(rows["validation"], 4, seed=0).batch(0)}
    return Materials(corpus, tokenizer, {"verse": rows["train"]}, validation)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshShape(), jax.devices()[:1])


@pytest.fixture(scope="module")
def root(materials, mesh, tmp_path_factory):
    """A folder with the plan's table."""
    root = tmp_path_factory.mktemp("root")
    ledger = Ledger(root / "ledger")
    pretraining.produce(PLAN, materials, ledger, mesh, checkpoint_seconds=1e9)
    meta = pretraining.table_meta(PLAN, materials, "the command")
    write_table(root, meta, pretraining.table_rows(PLAN, ledger))
    return root


def table_of(root):
    return read_table(root / "tiny" / "pretraining.parquet")


def test_every_cell_and_seed_is_a_row_with_its_cost_and_provenance(root):
    rows = table_of(root).rows.to_pylist()
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert row["flops"] > 0 and row["seconds"] > 0 and row["status"] == "ok"
        assert row["commit"] and "jax" in row["versions"] and row["device"]
        assert row["loss"] == pytest.approx(row["loss.verse"])


def test_the_gym_reads_the_table_and_knows_its_noise(root):
    (experiment,) = load_experiments([root])
    assert experiment.space.names == ("learning_rate", "batch_size")
    assert experiment.noise > 0
    assert experiment.default in experiment.configurations
    assert "nanoGPT" in experiment.default_origin


def test_what_is_in_the_ledger_is_not_trained_again(root, materials, mesh, monkeypatch):
    monkeypatch.setattr(pretraining, "train_runs", lambda *_, **__: pytest.fail("trained"))
    ledger = Ledger(root / "ledger")
    pretraining.produce(PLAN, materials, ledger, mesh, checkpoint_seconds=1e9)


def test_a_missing_run_is_named(root, tmp_path):
    with pytest.raises(UserError, match="lr3.000e-03_bs2_seed0.json.*ground_truth"):
        pretraining.table_rows(PLAN, Ledger(tmp_path))


def test_a_damaged_ledger_file_is_named(tmp_path):
    path = Ledger(tmp_path).path("e", "r")
    path.parent.mkdir()
    path.write_text('{"loss": 1')
    with pytest.raises(UserError, match="r.json: not JSON"):
        Ledger(tmp_path).read("e", "r")


def test_verify_repeats_rows_within_rounding(root, materials, mesh):
    deviations = verify.verify(table_of(root), PLAN, materials, mesh, rows=3, seed=0)
    assert len(deviations) == 3
    np.testing.assert_allclose(
        [d.repeated for d in deviations], [d.recorded for d in deviations], atol=1e-4
    )


def test_verify_sees_a_falsified_row(root, materials, mesh):
    table = table_of(root)
    column = table.rows.column_names.index("loss")
    raised = [value + 0.1 for value in table.rows["loss"].to_pylist()]
    rows = table.rows.set_column(column, "loss", [raised])
    falsified = dataclasses.replace(table, rows=rows)
    (deviation,) = verify.verify(falsified, PLAN, materials, mesh, rows=1, seed=0)
    assert deviation.repeated - deviation.recorded == pytest.approx(-0.1, abs=1e-3)


def test_verify_says_so_where_the_corpus_is_another(root, materials):
    table = table_of(root)
    assert verify.incomparable(table, materials) is None
    other = json.loads(json.dumps(table.meta))
    other["provenance"]["corpus_hash"] = "another"
    reason = verify.incomparable(dataclasses.replace(table, meta=other), materials)
    assert "corpus_hash was another" in reason


def test_another_plans_table_is_refused(root, materials, mesh):
    plan = dataclasses.replace(PLAN, dtype="bfloat16")
    with pytest.raises(UserError, match="another config.ground_truth"):
        verify.verify(table_of(root), plan, materials, mesh, rows=1, seed=0)
