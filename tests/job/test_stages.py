import ast
import fnmatch
import functools
import gc
import hashlib
import math
import os
import re
import runpy
import subprocess
import sys
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest

import autollm_jax
from autollm_jax.errors import UserError
from autollm_jax.evaluation.runner import Terms, evaluate, table_hashes
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.job import fields, scoring_stages, stages
from autollm_jax.job.job import Job
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.training.state import TrainState

get_config = runpy.run_path("configs/gym.py")["get_config"]


@pytest.fixture
def job(tmp_path):
    return Job(get_config("smoke"), tmp_path, make_mesh(MeshShape()))


def test_the_committed_tables_are_those_of_the_default_config(tmp_path):
    job = Job(get_config(), tmp_path, make_mesh(MeshShape()))
    stages.STAGES["ground_truth"](job)  # would train for hours, or refuse, if it were not so
    assert not list(tmp_path.iterdir())


OWN = load_experiments(["gym_data"])


@pytest.mark.parametrize("experiment", OWN, ids=lambda e: f"{e.task}-{e.name}")
def test_a_committed_experiment_can_be_learned_from(experiment):
    """More than half a grid's cells are worse than its optimum; noise and default are known."""
    regrets = experiment.outcomes.regrets_R[experiment.feasible_R]
    assert 0 < experiment.outcomes.noise < math.inf
    assert (regrets > 0).sum() > len(regrets) / 2
    assert not experiment.match(experiment.default).matched


@pytest.mark.parametrize(
    "experiment", [e for e in OWN if "learning_rate" in e.space.names], ids=lambda e: e.name
)
def test_the_best_learning_rate_of_a_committed_grid_is_inside_it(experiment):
    best = experiment.configurations[experiment.outcomes.best_row]["learning_rate"]
    choices = experiment.space["learning_rate"].choices
    assert choices[0] < best < choices[-1]


def test_a_stage_that_lacks_an_earlier_one_names_it(job):
    for stage, earlier in (("simulate", "curate"), ("distill", "simulate"), ("grpo", "curate")):
        with pytest.raises(UserError, match=f"run --stage={earlier} first"):
            stages.STAGES[stage](job)


def test_a_policy_that_was_not_trained_to_the_end_is_not_scored(job):
    with pytest.raises(UserError, match="no policy of 10 steps; run --stage=distill first"):
        job.parameters("distill")


def test_a_job_holds_no_parameters_between_its_stages(job):
    """A plan counts what a stage is given, so an earlier stage may not have left any."""
    params = job.first_parameters()
    leaf = weakref.ref(jax.tree.leaves(params)[0])
    assert leaf() is not None
    del params
    gc.collect()  # a cycle that nobody holds
    assert leaf() is None


def test_pooling_needs_to_be_told_what(job):
    with pytest.raises(UserError, match="no work directories to pool"):
        stages.STAGES["pool"](job)


def test_workdir_in_a_folder_of_the_config_is_replaced(job):
    assert job.roots == [f"{job.workdir}/gym_data"] == [job.tables_root]


def test_all_runs_every_stage_but_those_on_demand():
    assert set(stages.STAGES) - set(stages.PIPELINE) == {
        *("verify", "intervene", "cross_validate", "pool", "plan"),
    }


class Learning:
    """A process that learns until it is waited for."""

    def __init__(self, log):
        self.log, self.alive = log, True

    def is_alive(self):
        return self.alive

    def join(self):
        self.log.append("learned")
        self.alive = False


@pytest.mark.parametrize("stage", ["all", "evaluate"])
def test_baselines_learn_beside_the_training_of_a_whole_job(tmp_path, monkeypatch, capsys, stage):
    log = []
    monkeypatch.setattr(stages, "run_stage", lambda job, name: log.append(name))
    monkeypatch.setattr(
        stages, "learn_baselines_beside", lambda job: log.append("learn") or [Learning(log)]
    )
    monkeypatch.setattr(stages, "_keep_compiled", lambda job: None)
    stages.run(get_config("smoke"), str(tmp_path), stage)
    if stage == "all":
        assert log[log.index("simulate") :][:3] == ["simulate", "learn", "distill"]
        assert log[log.index("grpo") :][:3] == ["grpo", "learned", "evaluate"]
        assert "waits for the baselines" in capsys.readouterr().out
    else:
        assert log == ["evaluate"]


def test_one_process_learns_nothing_beside(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(
        scoring_stages, "learn_beside", lambda all_of: begun.extend(all_of) or [*begun]
    )
    config = get_config()
    for processes, expected in ((1, 0), (2, 3)):
        config.evaluation.processes = processes
        job = Job(fields.checked(config), tmp_path, make_mesh(MeshShape()))
        assert len(stages.learn_baselines_beside(job)) == expected


def test_an_unknown_variant_names_the_known_ones():
    with pytest.raises(ValueError, match="gym.py:big.*:smoke"):
        get_config("big")


def evaluated(tmp_path, **changes):
    """Return a job on the committed tables whose results are there, with their record."""
    config = get_config()
    config.gym.tasks = ("pretraining",)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    job = Job(fields.checked(config), tmp_path, make_mesh(MeshShape()))

    def first_cell(games):
        for game in games:
            while not game.episode.done:
                game.episode.exec_config(game.episode.setting.configurations[0])

    tables = table_hashes(job.roots)
    terms = Terms(job.config.gym.budget, (0,), stress=job.stress)
    evaluate(
        {"random": first_cell}, job.split, terms, job.results_path, tables=tables, progress=False
    )
    scoring_stages.write_record(job, tables)
    return job


@pytest.mark.parametrize(
    ("field", "value", "was"),
    [
        ("protocol", "final", "dev"),
        ("gym.tasks", ("grpo",), "pretraining"),
        ("gym.budget", 3, "5"),
        ("gym.evidence", False, "True"),
        ("gym.matching", False, "True"),
    ],
)
def test_a_report_of_other_terms_than_were_evaluated_is_refused(tmp_path, field, value, was):
    job = evaluated(tmp_path)
    job.config.update_from_flattened_dict({field: value})
    job.__dict__.pop("split", None)
    with pytest.raises(UserError, match=f"evaluated with config.{field}={was}") as error:
        stages.STAGES["report"](job)
    assert "--stage=evaluate again" in str(error.value) and "\n" not in str(error.value)
    assert not job.report_folder.exists()


def test_a_report_of_other_tables_than_were_evaluated_is_refused(tmp_path):
    job = evaluated(tmp_path)
    moved = tmp_path / "moved"
    moved.symlink_to(Path("gym_data").absolute())
    job.config.gym.roots = str(moved)
    scoring_stages.read_record(job, job.results_path)  # the same tables elsewhere
    other = tmp_path / "other" / "stdlib_cpu"
    other.mkdir(parents=True)
    for path in Path("gym_data/stdlib_cpu").iterdir():
        extra = b"\n" if path.name == "pretraining.json" else b""
        (other / path.name).write_bytes(path.read_bytes() + extra)
    job.config.gym.roots = str(other.parent)
    with pytest.raises(UserError, match="config.gym.roots=gym_data, whose stdlib_cpu/pretraining"):
        stages.STAGES["report"](job)


def test_results_without_their_record_are_refused(tmp_path):
    job = evaluated(tmp_path)
    results = job.results_path.read_bytes()
    job.results_path.write_bytes(results + b"x")
    with pytest.raises(UserError, match="not the results that evaluated.json describes"):
        stages.STAGES["report"](job)
    job.results_path.with_name("evaluated.json").unlink()
    with pytest.raises(UserError, match="evaluated.json: missing; run --stage=evaluate again"):
        stages.STAGES["report"](job)


def test_a_damaged_last_checkpoint_is_not_replaced_by_an_earlier_one(job):
    """Evaluation may not score a policy of fewer steps; the stage goes on from there."""
    config = job.config.distill
    config.steps = 2
    checkpoints, params = job.checkpoints("distill"), job.first_parameters()
    optimizer = job.optimizer(config)
    for step in (1, 2):
        state = TrainState(np.int32(step), params, optimizer.init(params))
        checkpoints.save(step, state, {"data": "", "position": step})
    checkpoints.wait()
    for path in (checkpoints.directory / "2" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(UserError, match="/2: damaged.*run --stage=distill again"):
        job.parameters("distill")
    assert job.checkpoints("distill").latest() == 1


@pytest.mark.parametrize("name", ["pairs_distill.jsonl", "trajectories.jsonl"])
def test_half_a_last_line_of_a_stages_file_names_file_line_and_restart(job, name):
    path = job.workdir / "trajectories" / name
    path.parent.mkdir()
    path.write_text('{"family": "tab')
    read, stage = (
        (job.trajectories, "simulate")
        if name[0] == "t"
        else (lambda: job.pairs("distill"), "curate")
    )
    with pytest.raises(UserError, match=f"{name}: line 1 is damaged.*give --restart={stage}"):
        read()


# A job's first parameters, printed after a step of training from them.
STEP = """
import hashlib, runpy, sys
from pathlib import Path
import jax, numpy as np
from autollm_jax.job import fields
from autollm_jax.job.job import Job
from tests import processes
config = runpy.run_path("configs/gym.py")["get_config"]("smoke")
config.mesh.cpu_devices = 8
job = Job.start(config, sys.argv[1])
trained = processes.distilled(Path(sys.argv[1]), job.mesh)
leaves = jax.tree.leaves((job.first_parameters(), trained))
print(hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in leaves)).hexdigest())
"""


def test_64_bit_types_in_the_environment_change_nothing(tmp_path):
    digests = []
    for wide in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", STEP, str(tmp_path / wide)],
            env=os.environ | {"JAX_ENABLE_X64": wide},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        digests.append(done.stdout.strip().splitlines()[-1])
    assert digests[0] == digests[1] and len(digests[0]) == len(hashlib.sha256().hexdigest())


def messages():
    """Yield (file, text) of every string in the code but docstrings; `*` is a formatted value."""
    roots = (Path(autollm_jax.__file__).parent, Path("launch"), Path("configs"))
    for path in (path for root in roots for path in sorted(root.rglob("*.py"))):
        tree = ast.parse(path.read_text())
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
        pieces = [p for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for p in n.values]
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "*" for p in node.values]
                yield path, "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if not any(node is other for other in (*texts, *pieces)):
                    yield path, node.value


def test_every_field_that_a_message_names_exists():
    config, known = get_config(), {"policy.shape"}
    for name, _ in fields.flatten(config.to_dict()):
        parts = name.split(".")
        known |= {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    sections, found = "|".join(config), 0
    for path, text in messages():
        # Columns of tables have the same prefix, and readers of public tables name them.
        if re.fullmatch(r"config\.[a-z_.]+", text) or path.parent.name == "sources":
            continue
        for name in re.findall(r"\bconfig\.([a-z_*]+(?:\.[a-z_*]+)*)", text):
            found += name != "json"
            assert name == "json" or fnmatch.filter(known, name), f"{path}: config.{name}"
        for name in re.findall(rf"\b((?:{sections}|data)\.[a-z_]+)=", text):
            assert name in known, f"{path}: {name}="
    assert found > 50


def test_compiled_programs_are_kept_in_the_work_directory(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    command = [
        sys.executable, "launch/main.py", "--config=configs/gym.py:smoke", f"--workdir={tmp_path}",
        "--stage=ground_truth", "--config.gym.tasks=pretraining",
        "--config.ground_truth.levels=low", "--config.ground_truth.pretraining.low.tokens=(1024,)",
        "--config.ground_truth.pretraining.low.batch_sizes=(4,)",
    ]  # fmt: skip
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert any((tmp_path / "compiled").iterdir())


def kept_compiled(tmp_path, monkeypatch, folder, environment):
    """Return what a job sets of JAX's compilation cache, given its field and the environment."""
    names = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = get_config("smoke")
    config.compilation_cache = folder
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    stages._keep_compiled(Job(config, tmp_path, None))
    return updates.get("jax_compilation_cache_dir")


def test_the_compilation_cache_lies_where_the_config_says_or_the_user(tmp_path, monkeypatch):
    kept = functools.partial(kept_compiled, tmp_path, monkeypatch)
    assert kept("{workdir}/compiled", {}) == f"{tmp_path}/compiled"
    assert kept("gs://bucket/compiled", {}) == "gs://bucket/compiled"
    assert kept("", {}) is None
    assert kept("{workdir}/compiled", {"JAX_COMPILATION_CACHE_DIR": "/mine"}) is None
