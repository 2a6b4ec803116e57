import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autollm_jax.errors import UserError
from autollm_jax.evaluation.runner import SCHEMA
from autollm_jax.evaluation.summary import ALL, Results
from autollm_jax.evaluation.trainings import pool_trainings


def training(folder, regrets, methods=("agent", "random"), experiments=("a", "b")):
    """Write an evaluation in which the first method has these regrets, the others 1."""
    folder.mkdir()
    rows, lines = [], []
    for method in methods:
        for name in experiments:
            for seed, regret in enumerate(regrets):
                value = regret if method == methods[0] else 1.0
                row = dict.fromkeys(SCHEMA.names, "x") | {"outcome": 1.0, "regret_minmax": value}
                row |= {"method": method, "experiment": name, "seed": seed, "regret": value}
                rows.append(row | {"valid": True, "matched": False, "trial": 1})
                lines.append(json.dumps({"method": method, "seed": seed, "text": "t"}))
    metadata = {"budget": "1", "methods": json.dumps(methods)}
    pq.write_table(
        pa.Table.from_pylist(rows, SCHEMA.with_metadata(metadata)), folder / "results.parquet"
    )
    (folder / "transcripts.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_every_training_counts(tmp_path):
    folders = [training(tmp_path / "0", (0.0, 0.2)), training(tmp_path / "1", (0.4, 0.6))]
    pooled = pool_trainings(folders, tmp_path / "out")
    results = Results(pq.read_table(tmp_path / "out" / "results.parquet"))
    assert results.methods == ["agent", "random"] and results.budget == 1
    np.testing.assert_allclose(results.curve("agent", ALL)[0].mean, 0.3)
    assert sorted(set(pooled["seed"].to_pylist())) == [0, 1, 2, 3]
    lines = (tmp_path / "out" / "transcripts.jsonl").read_text().splitlines()
    assert {json.loads(line)["seed"] for line in lines} == {0, 1, 2, 3} and len(lines) == 16


@pytest.mark.parametrize(
    "changes", [{"methods": ("agent",)}, {"experiments": ("a",)}, {"regrets": (0.0,)}], ids=str
)
def test_other_games_are_refused(tmp_path, changes):
    folders = [
        training(tmp_path / "0", (0.0, 0.2)),
        training(tmp_path / "1", **{"regrets": (0.0, 0.2)} | changes),
    ]
    with pytest.raises(UserError, match="differ in config.seed alone"):
        pool_trainings(folders, tmp_path / "out")


def test_a_training_that_was_not_evaluated_is_named(tmp_path):
    (tmp_path / "0").mkdir()
    with pytest.raises(UserError, match="run --stage=evaluate there first"):
        pool_trainings([tmp_path / "0"], tmp_path / "out")
