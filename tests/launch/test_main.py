"""Bad input to the main job: one line that names the fault, exit code 1, nothing overwritten."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from autollm_jax.cluster.coordinator import free_address
from tests import scripts
from tests.published import small_vocabularies
from tests.published.test_pretrained import config_json, tensors, write


def run(workdir, *arguments, **environment):
    return scripts.run(
        "launch/main.py",
        f"--workdir={workdir}",
        *arguments,
        environment=os.environ | environment,
        seconds=120,
    )


def refused(done, *words):
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    return True


@pytest.fixture
def tables(tmp_path):
    """A copy of the committed tables, to be damaged."""
    shutil.copytree("gym_data", tmp_path / "tables")
    return tmp_path / "tables" / "stdlib_cpu" / "pretraining.parquet"


def curate(tmp_path, tables):
    root = tables.parent.parent
    done = run(
        tmp_path / "workdir",
        "--config=configs/gym.py",
        "--stage=curate",
        f"--config.gym.roots={root}",
    )
    assert not (tmp_path / "workdir" / "trajectories").exists()
    return done


def test_an_unknown_config_field(tmp_path):
    done = run(tmp_path / "workdir", "--config=configs/gym.py", "--config.grpo.stepz=3")
    assert refused(done, "--config.grpo.stepz", "config.grpo has no field 'stepz'", "steps")
    assert not (tmp_path / "workdir").exists()


def test_a_missing_table(tmp_path, tables):
    tables.unlink()
    assert refused(curate(tmp_path, tables), "pretraining")


def test_a_truncated_table(tmp_path, tables):
    tables.write_bytes(tables.read_bytes()[:5000])
    assert refused(curate(tmp_path, tables), str(tables))


def test_a_table_with_a_wrong_column(tmp_path, tables):
    rows = pq.read_table(tables)
    names = ["los" if name == "loss" else name for name in rows.column_names]
    pq.write_table(rows.rename_columns(names), tables)
    assert refused(curate(tmp_path, tables), str(tables), "loss")


def test_a_nan_outcome_of_a_run_that_is_said_to_be_ok(tmp_path, tables):
    rows = pq.read_table(tables)
    losses = rows["loss"].to_numpy().copy()
    losses[7] = np.nan
    pq.write_table(
        rows.set_column(rows.column_names.index("loss"), "loss", [losses.tolist()]), tables
    )
    assert refused(curate(tmp_path, tables), str(tables), "loss")


def test_a_work_directory_of_another_config(tmp_path):
    workdir = tmp_path / "workdir"
    first = run(workdir, "--config=configs/gym.py", "--stage=curate")
    assert first.returncode == 0
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    done = run(workdir, "--config=configs/gym.py", "--stage=curate", "--config.seed=1")
    assert refused(done, "config.json", "config.seed is 0 there and 1 now", "--workdir")
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


@pytest.fixture
def published(tmp_path):
    """A model as it would be published, of which nothing is read before it is opened."""
    folder = write(tmp_path / "published", tensors(), config_json(vocab_size=340))
    embedding = {"model.embed_tokens.weight": np.ones((340, 32), np.float32)}
    write(folder, tensors() | embedding, config_json(vocab_size=340))
    return small_vocabularies.sentencepiece_folder(folder)


def damage(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: damage(folder, "model.safetensors"), "not a whole safetensors file"),
        (lambda folder: damage(folder, "tokenizer.model"), "not a SentencePiece model"),
        (lambda folder: (folder / "tokenizer.model").unlink(), "tokenizer.json: missing"),
        (lambda folder: (folder / "tokenizer_config.json").unlink(), "no chat template"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "convert it to safetensors",
        ),
    ],
)
def test_published_weights_that_cannot_be_used_end_the_job_before_it_works(
    tmp_path, published, change, words
):
    change(published)
    done = run(
        tmp_path / "workdir",
        "--config=configs/gym.py",
        f"--config.policy.weights={published}",
        "--config.grpo.members=sampled",
        "--config.grpo.group_size=2",
    )
    assert refused(done, words)
    assert not (tmp_path / "workdir").exists()


def test_lora_targets_that_a_model_does_not_have(tmp_path, published):
    done = run(
        tmp_path / "workdir",
        "--config=configs/gym.py",
        f"--config.policy.weights={published}",
        "--config.grpo.members=sampled",
        "--config.grpo.group_size=2",
        "--config.policy.lora_rank=4",
        "--config.policy.lora_targets=query,q_proj",
    )
    assert refused(done, "config.policy.lora_targets=query,q_proj", "names of query, key")
    assert not (tmp_path / "workdir").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("grpo.normalisation", "mean"),
        ("distill.save_every", "0"),
        ("grpo.members", "nobody"),
        ("policy.kv_heads", "3"),
        ("grpo.optimizer.decay", "cosin"),
    ],
)
def test_a_value_that_a_later_stage_would_refuse_is_refused_before_the_first(
    tmp_path, field, value
):
    done = run(
        tmp_path / "workdir", "--config=configs/gym.py", "--stage=curate",
        f"--config.{field}={value}",
    )  # fmt: skip
    section, _, name = field.rpartition(".")
    assert refused(done, f"config.{section}", name, value)
    assert not (tmp_path / "workdir").exists()


def test_tasks_are_named_with_a_comma_and_the_workdir_from_home(tmp_path):
    done = run(
        "~/jobs/one", "--config=configs/gym.py", "--stage=curate",
        "--config.gym.tasks=grpo,pretraining", "--config.curate.distill_pairs=8",
        "--config.curate.synthetic=0", HOME=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "jobs" / "one" / "trajectories" / "pairs_distill.jsonl").read_text()
    assert '"task": "pretraining"' in text and '"task": "architecture"' not in text


def test_a_lower_learning_rate_is_accepted_before_the_stage_has_saved(tmp_path):
    workdir = tmp_path / "workdir"
    flags = ["--config=configs/gym.py", "--stage=curate", "--config.curate.distill_pairs=8"]
    assert run(workdir, *flags).returncode == 0
    lower = "--config.distill.optimizer.learning_rate=1e-4"
    done = run(workdir, *flags, lower, "--config.distill.row_length=1024")
    assert done.returncode == 0, done.stderr


def test_a_restart_makes_another_config_of_a_used_work_directory(tmp_path):
    workdir = tmp_path / "workdir"
    flags = ["--config=configs/gym.py", "--stage=curate", "--config.curate.distill_pairs=8"]
    assert run(workdir, *flags).returncode == 0
    done = run(workdir, *flags, "--config.seed=1")
    assert refused(done, "config.seed is 0 there and 1 now", "--restart=curate")
    done = run(workdir, *flags, "--config.seed=1", "--restart=curate")
    assert done.returncode == 0, done.stderr
    pairs = "trajectories/pairs_distill.jsonl"
    aside = workdir / "set_aside" / "1_curate"
    assert (workdir / pairs).read_bytes() != (aside / pairs).read_bytes()


@pytest.mark.parametrize("stage", ["curate", "plan"])
def test_a_file_in_place_of_the_work_directory(tmp_path, stage):
    (tmp_path / "workdir").touch()
    done = run(tmp_path / "workdir", "--config=configs/gym.py:smoke", f"--stage={stage}")
    assert refused(done, f"{tmp_path / 'workdir'}: is a file; accepted is a folder")


def test_process_0_says_who_stays_away(tmp_path):
    fields = {
        "coordinator": free_address(), "processes": 2, "process_id": 0, "one_host": True,
        "timeout_seconds": 2,
    }  # fmt: skip
    flags = [f"--config.distributed.{name}={value}" for name, value in fields.items()]
    done = run(tmp_path / "workdir", "--config=configs/gym.py", *flags)
    assert refused(done, "waited 2 s for process 1 of 2", "config.distributed.timeout_seconds")


def test_every_flag_that_is_a_path_knows_the_tilde():
    """`--source` is a path in one script, and a name in another."""
    paths = {"workdir", "path", "out", "folder"}
    for script in Path("launch").glob("*.py"):
        for node in ast.walk(ast.parse(script.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = ast.unparse(node.func)
                if "DEFINE" in called:
                    assert node.args[0].value not in paths, (
                        f"{script}: use command_line.define_path"
                    )


def test_help_names_the_flags():
    done = subprocess.run(
        [sys.executable, "launch/main.py", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    for flag in ("--config", "--workdir", "--stage", "--restart"):
        assert flag in done.stdout
