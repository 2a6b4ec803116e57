"""The work directory: one job at a time, made with one config, restarted from a stage."""

import json
import os
import runpy
import subprocess
import sys

import pytest

from autollm_jax.errors import UserError
from autollm_jax.job import fields, workdir

GET_CONFIG = runpy.run_path("configs/gym.py")["get_config"]
# What each stage leaves first that its fields shape.
FIRST = {
    "curate": "trajectories/pairs_distill.jsonl",
    "simulate": "trajectories/trajectories.jsonl",
    "distill": "checkpoints/distill/200/state",
    "grpo": "checkpoints/grpo/3/state",
}


def config(**changes):
    found = GET_CONFIG()
    found.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return fields.checked(found).to_dict()


def leave(folder, *stages):
    """Write what stages leave, and their rows in the logs."""
    for stage in stages:
        path = folder / FIRST[stage]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(stage)
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"stage": stage, "step": 0}) + "\n")


@pytest.fixture
def claimed(tmp_path):
    """A work directory in which every stage up to GRPO has left something."""
    workdir.claim(tmp_path, config(), scoring=False)
    leave(tmp_path, *FIRST)
    return tmp_path


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_first_claim_writes_the_config(tmp_path):
    workdir.claim(tmp_path, config(), scoring=False)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == json.loads(json.dumps(config()))


def test_another_config_is_refused_by_its_first_field_and_nothing_changes(claimed):
    before = files(claimed)
    with pytest.raises(UserError, match="config.seed is 0 there and 1 now") as error:
        workdir.claim(claimed, config(seed=1), scoring=False)
    assert "\n" not in str(error.value) and "--restart=curate" in str(error.value)
    assert files(claimed) == before


@pytest.mark.parametrize(
    ("field", "value", "stage"),
    [
        ("curate__synthetic", 0.3, "curate"),
        ("simulate__softness", 0.1, "simulate"),
        ("gym__budget", 3, "simulate"),
        ("policy__vocab_size", 1024, "simulate"),
        ("policy__width", 96, "distill"),
        ("distill__optimizer__learning_rate", 1e-3, "distill"),
        ("distill__row_length", 1024, "distill"),
        ("policy__context", 1024, "grpo"),
        ("grpo__optimizer__learning_rate", 1e-5, "grpo"),
        ("gym__invalid_penalty", 0.1, "grpo"),
    ],
)
def test_a_field_may_change_until_its_stage_has_written_and_then_with_restart(
    tmp_path, field, value, stage
):
    stages = list(FIRST)
    workdir.claim(tmp_path, config(), scoring=False)
    leave(tmp_path, *stages[: stages.index(stage)])
    workdir.claim(tmp_path, config(**{field: value}), scoring=False)
    assert dict(fields.flatten(json.loads((tmp_path / "config.json").read_text())))[
        field.replace("__", ".")
    ] == pytest.approx(value)
    workdir.claim(tmp_path, config(), scoring=False)
    leave(tmp_path, stage)
    with pytest.raises(UserError, match=f"--restart={stage}, which sets aside"):
        workdir.claim(tmp_path, config(**{field: value}), scoring=False)
    workdir.claim(tmp_path, config(**{field: value}), scoring=False, restart=stage)
    assert not (tmp_path / FIRST[stage]).exists()
    workdir.claim(tmp_path, config(**{field: value}), scoring=False)


def test_the_restart_that_is_named_is_the_earliest_one_needed(claimed):
    with pytest.raises(UserError, match="config.simulate.softness.*--restart=simulate"):
        workdir.claim(claimed, config(grpo__epochs=2, simulate__softness=0.1), scoring=False)
    with pytest.raises(UserError, match="config.simulate.softness"):
        changed = config(grpo__epochs=2, simulate__softness=0.1)
        workdir.claim(claimed, changed, scoring=False, restart="grpo")
    assert (claimed / FIRST["grpo"]).exists()


def test_a_restart_moves_files_of_the_stage_and_later_ones_and_deletes_nothing(claimed, capsys):
    before = files(claimed)
    workdir.claim(claimed, config(distill__steps=9), scoring=False, restart="distill")
    (line,) = capsys.readouterr().out.splitlines()
    assert "moved checkpoints/distill, checkpoints/grpo to" in line
    aside = claimed / "set_aside" / "1_distill"
    for name in (FIRST["distill"], FIRST["grpo"], "metrics.jsonl", "config.json"):
        path = next(p for p in before if str(p) == name)
        assert (aside / name).read_bytes() == before[path]
    for stage in ("curate", "simulate"):
        assert (claimed / FIRST[stage]).exists()
    rows = [json.loads(line) for line in (claimed / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["curate", "simulate"]
    assert json.loads((claimed / "config.json").read_text())["distill"]["steps"] == 9


def test_the_same_restart_again_goes_on_and_another_one_does_not(claimed, capsys):
    """A scheduler that stops the job starts it by the same command."""
    workdir.claim(claimed, config(grpo__steps=9), scoring=False, restart="grpo")
    leave(claimed, "grpo")
    workdir.claim(claimed, config(grpo__steps=9), scoring=False, restart="grpo")
    assert (claimed / FIRST["grpo"]).exists()
    assert "done already, going on" in capsys.readouterr().out
    workdir.claim(claimed, config(grpo__steps=8), scoring=False, restart="grpo")
    assert not (claimed / FIRST["grpo"]).exists()
    assert (claimed / "set_aside" / "2_grpo" / FIRST["grpo"]).exists()


def test_a_restart_of_the_ground_truth_moves_its_tables(tmp_path):
    inside = config(ground_truth__root="{workdir}/tables", ground_truth__source="mine")
    workdir.claim(tmp_path, inside, scoring=False)
    table = tmp_path / "tables" / "mine" / "grpo.parquet"
    table.parent.mkdir(parents=True)
    table.touch()
    other = config(ground_truth__root="{workdir}/tables", ground_truth__source="yours")
    with pytest.raises(UserError, match="--restart=ground_truth"):
        workdir.claim(tmp_path, other, scoring=False)
    workdir.claim(tmp_path, other, scoring=False, restart="ground_truth")
    assert (tmp_path / "set_aside" / "1_ground_truth" / "tables" / "mine" / "grpo.parquet").exists()


def test_more_steps_of_grpo_draw_its_pairs_again(tmp_path):
    workdir.claim(tmp_path, config(), scoring=False)
    leave(tmp_path, "curate", "simulate", "distill")
    pairs = tmp_path / "trajectories" / "pairs_grpo.jsonl"
    pairs.touch()
    workdir.claim(tmp_path, config(grpo__epochs=2), scoring=False)
    assert pairs.exists()
    workdir.claim(tmp_path, config(grpo__epochs=2, grpo__steps=7), scoring=False)
    assert not pairs.exists() and (tmp_path / FIRST["curate"]).exists()


@pytest.mark.parametrize(
    "change",
    [
        {"evaluation__seeds": (0, 1)},
        {"mesh__data": 2},
        {"simulate__processes": 1},
        {"grpo__save_every": 1},
        {"ground_truth__share": "0/2"},
    ],
    ids=str,
)
def test_fields_that_do_not_shape_training_may_change(claimed, change):
    workdir.claim(claimed, config(**change), scoring=False)


def test_only_scoring_may_change_the_tables_and_the_protocol(claimed):
    elsewhere = config(gym__roots="b", protocol="final")
    before = files(claimed)
    workdir.claim(claimed, elsewhere, scoring=True)
    assert files(claimed) == before
    with pytest.raises(UserError, match="config.gym.roots|config.protocol"):
        workdir.claim(claimed, elsewhere, scoring=False)


def test_a_field_that_one_config_lacks_is_a_difference(claimed):
    with pytest.raises(UserError, match="config.grpo.more is None there"):
        values = config()
        values["grpo"]["more"] = 1
        workdir.claim(claimed, values, scoring=False)


def test_a_list_in_another_form_is_no_difference(claimed):
    values = config()
    values["gym"]["tasks"] = ",".join(values["gym"]["tasks"])
    workdir.claim(claimed, values, scoring=False)


def test_a_damaged_config_is_named(claimed):
    (claimed / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json: not a JSON file"):
        workdir.claim(claimed, config(), scoring=False)


def test_every_field_belongs_to_a_stage_or_to_none():
    for name, _ in fields.flatten(config()):
        sections = [name[: len(prefix)] == prefix for prefix in workdir.READ_BY]
        assert any(sections), f"config.{name}: add it to READ_BY"
        assert workdir.read_by(name) in ("", *workdir.OUTPUTS)


# Locks are of a process, so the holder has to be another one.
HOLDER = """
import sys
from autollm_jax.job import workdir
with workdir.locked(sys.argv[1], (int(sys.argv[2]), int(sys.argv[3]))):
    print("holding", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold():
    """Start processes that hold a work directory until the test ends; returns a process."""
    running = []

    def start(folder, index=0, count=1):
        command = [sys.executable, "-c", HOLDER, str(folder), str(index), str(count)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        assert process.stdout.readline() == "holding\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_a_second_job_is_refused_and_the_holder_named(tmp_path, hold):
    process = hold(tmp_path)
    with pytest.raises(UserError) as error, workdir.locked(tmp_path):
        raise AssertionError("two jobs")
    line = str(error.value)
    assert (
        f"{tmp_path}: another job is using it: process {process.pid} on {os.uname().nodename}"
        in (line)
    )
    assert "since 20" in line and "--workdir" in line and "\n" not in line


def test_the_lock_of_a_killed_job_is_taken_over(tmp_path, hold):
    process = hold(tmp_path)
    process.kill()
    process.wait()
    with workdir.locked(tmp_path):
        pass


def test_a_job_that_ends_lets_the_next_one_in(tmp_path, hold):
    process = hold(tmp_path)
    process.communicate("")
    assert process.returncode == 0
    hold(tmp_path)


def test_shares_work_side_by_side_but_not_twice_the_same(tmp_path, hold):
    process = hold(tmp_path, 0, 2)
    hold(tmp_path, 1, 2)
    with (
        pytest.raises(UserError, match=f"process {process.pid} "),
        workdir.locked(tmp_path, (0, 2)),
    ):
        raise AssertionError("two jobs")
    with pytest.raises(UserError, match=f"process {process.pid} "), workdir.locked(tmp_path):
        raise AssertionError("two jobs")


def test_without_locks_of_the_file_system_the_entry_counts(tmp_path, hold, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    process = hold(tmp_path)
    monkeypatch.setattr(workdir.fcntl, "lockf", unsupported)
    with pytest.raises(UserError, match=f"process {process.pid} "), workdir.locked(tmp_path):
        raise AssertionError("two jobs")
    process.kill()
    process.wait()
    with workdir.locked(tmp_path):
        pass


def test_a_file_in_its_place_and_a_folder_that_cannot_be_made_are_refused(tmp_path):
    (tmp_path / "file").touch()
    for path, words in (
        (tmp_path / "file", "is a file; accepted is a folder"),
        (tmp_path / "file" / "below", "cannot be written"),
        ("/proc/nowhere", "cannot be written"),
    ):
        with pytest.raises(UserError, match=words), workdir.locked(path):
            raise AssertionError("it was written")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write all")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"), workdir.locked(tmp_path):
        raise AssertionError("it was written")
