"""One process with eight devices, two with four each and four with one each do the same."""

import contextlib
import os
import re
import shutil

import jax
import numpy as np
import pytest

from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.cluster import distributed
from autollm_jax.cluster.coordinator import free_address
from autollm_jax.cluster.distributed import Settings
from autollm_jax.errors import PREEMPTED_EXIT_CODE, UserError
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from tests import processes, scripts

# Sums over devices are taken in another order between processes than within one.
ATOL = 1e-4
SECONDS = 300  # that processes may take on a busy machine


def together(command, devices, **environment):
    """Run `command(address, process)` for each number of devices; return what came of them."""
    address = free_address()
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    with contextlib.ExitStack() as stack:
        running = []
        for process, count in enumerate(devices):
            forced = f"{flags} --xla_force_host_platform_device_count={count}"
            mine = {name: value[process] for name, value in environment.items()}
            mine = os.environ | {"XLA_FLAGS": forced} | mine
            one = scripts.Script(command(address, process), mine)
            stack.callback(one.kill)
            running.append(one)
        return [one.wait(SECONDS) for one in running]


def run(task, folder, devices, **environment):
    folder.mkdir(exist_ok=True)
    count = str(len(devices))

    def command(address, process):
        return ["-m", "tests.processes", task, str(folder), address, count, str(process)]

    return together(command, devices, **environment)


def succeeded(done):
    for one in done:
        assert one.returncode == 0, one.stderr[-3000:]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    succeeded(run("train", folder, [8]))
    return folder


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    succeeded(run("train", folder, [4, 4]))
    return folder


@pytest.fixture(scope="module")
def four_processes(tmp_path_factory):
    """Each has one device: shards of parameters and of matrix products lie in other processes."""
    folder = tmp_path_factory.mktemp("four")
    succeeded(run("train", folder, [1] * 4, MESH=["1,2,2"] * 4))
    return folder


def params(folder, name="params.npz", stage=""):
    with np.load(folder / name) as file:
        return {key: file[key] for key in file.files if key.startswith(stage)}


def same(first, second, atol):
    assert first.keys() == second.keys() and first
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("stage", ["distill", "grpo"])
@pytest.mark.parametrize("several", ["two_processes", "four_processes"])
def test_several_processes_train_what_one_does(one_process, several, stage, request):
    one = params(one_process, stage=stage)
    same(one, params(request.getfixturevalue(several), stage=stage), ATOL)
    if stage == "grpo":  # it has moved, by far more than that
        moved = [abs(one[n] - params(one_process)[n.replace("grpo", "distill")]) for n in one]
        assert max(step.max() for step in moved) > 100 * ATOL


def test_process_0_writes_the_metrics_and_the_other_nothing(one_process, two_processes):
    def steps(folder):
        rows = (folder / "metrics.jsonl").read_text().splitlines()
        return [re.sub(r'"time".*', "", row) for row in rows]

    assert steps(one_process) == steps(two_processes)
    files = [sorted(p.name for p in f.iterdir()) for f in (one_process, two_processes)]
    assert files[0] == files[1]


def job(workdir, devices):
    """Run the main job; return its results' bytes and what it left behind."""

    def command(address, process):
        where = (address, len(devices), process)
        fields = zip(("coordinator", "processes", "process_id"), where, strict=True)
        flags = [f"--config.distributed.{name}={value}" for name, value in fields]
        flags += ["--config.distributed.one_host=True", f"--workdir={workdir}"]
        return ["launch/main.py", "--config=configs/gym.py", *flags, *processes.SMALL_JOB]

    done = together(command, devices)
    succeeded(done)
    for other in done[1:]:
        assert "report" not in other.stdout  # process 0 speaks for all
    files = {str(p.relative_to(workdir)) for p in workdir.rglob("*") if p.is_file()}
    left = {name for name in files if not name.startswith(("checkpoints", "tensorboard"))}
    return (workdir / "evaluation" / "results.parquet").read_bytes(), left


def test_the_main_job_gives_the_same_results_in_two_processes(tmp_path):
    results, files = job(tmp_path / "one", [8])
    assert "report/index.html" in files
    assert job(tmp_path / "two", [4, 4]) == (results, files)


@pytest.mark.parametrize("shape", [(2, 2, 1), (1, 4, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("source", ["one_process", "two_processes"])
def test_other_layouts_of_one_process_restore_it(source, shape, request):
    folder = request.getfixturevalue(source)
    mesh = make_mesh(MeshShape(*shape), jax.devices()[: int(np.prod(shape))])
    state, _ = Checkpoints(folder / "grpo").restore(processes.abstract(mesh))
    found = {f"grpo/{n}": np.asarray(x) for n, x in enumerate(jax.tree.leaves(state.params))}
    same(found, params(folder, stage="grpo"), 0)


def test_two_processes_restore_what_one_saved(one_process):
    succeeded(run("restore", one_process, [4, 4]))
    same(params(one_process, "restored.npz"), params(one_process, stage="grpo"), 0)


def test_a_signal_to_one_process_saves_the_same_step_in_both_and_a_rerun_goes_on(
    two_processes, tmp_path
):
    shutil.copytree(two_processes / "distill", tmp_path / "distill")
    stopped = run("preempted", tmp_path, [4, 4])
    assert [one.returncode for one in stopped] == [PREEMPTED_EXIT_CODE] * 2, stopped[1].stderr[
        -3000:
    ]
    assert Checkpoints(tmp_path / "grpo").latest() == processes.KILLED_AT + 1
    succeeded(run("train", tmp_path, [4, 4]))
    same(params(tmp_path), params(two_processes), 0)


def refused(done, *words):
    for one in done:
        assert one.returncode == 1
        line = next(x for x in one.stderr.splitlines() if x.startswith("error: "))
        for word in words:
            assert word in line


def test_unequal_device_counts_are_refused(tmp_path):
    done = run("train", tmp_path, [4, 2])
    refused(done, "process 1", "has 2 devices", "has 4", "config.mesh.cpu_devices")


def test_another_config_is_refused(tmp_path):
    done = run("train", tmp_path, [1, 1], SEED=["0", "1"])
    refused(done, "process 1", "another config", "the same --config flags")
    assert not list(tmp_path.iterdir())


def test_what_fails_in_process_0_ends_the_others(tmp_path):
    refused(run("failing", tmp_path, [1, 1]), "the disk is full")


@pytest.mark.parametrize(
    "settings, words",
    [
        (Settings("nohost", 2, 0), "HOST:PORT"),
        (Settings("localhost:99999", 2, 0), "HOST:PORT"),
        (Settings("localhost:1234", 2, -1), "config.distributed.process_id is -1"),
        (Settings("localhost:1234", -1, 0), "config.distributed.processes is -1"),
        (Settings("localhost:1234", 2, 2), "0 to 1"),
    ],
    ids=["no port", "no such port", "no number", "no count", "too high a number"],
)
def test_settings_that_cannot_work_are_refused(settings, words, tmp_path, monkeypatch):
    for names in distributed.SCHEDULERS:
        for name in filter(None, names):
            monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=words):
        distributed.start(settings)


class Store:
    """Stands for the coordinator's, whose every write fails."""

    def __init__(self, reason):
        self.reason = reason

    def key_value_set(self, key, value):
        raise RuntimeError(f"{self.reason}: {key}")


def test_a_value_that_could_not_be_written_is_an_error(monkeypatch):
    state = distributed.jax_distributed.global_state
    monkeypatch.setattr(state, "client", Store("ALREADY_EXISTS"))
    distributed.post("key")
    monkeypatch.setattr(state, "client", Store("RESOURCE_EXHAUSTED"))
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED: autollm/key"):
        distributed.post("key")


def test_the_scheduler_numbers_the_processes(monkeypatch):
    for name, value in zip(distributed.SCHEDULERS[0], ("3", "8", "2"), strict=True):
        monkeypatch.setenv(name, value)
    assert distributed._scheduler() == (3, 8, 2)


def test_a_single_process_connects_to_nothing(tmp_path):
    distributed.start(Settings())
    assert distributed.count() == 1 and distributed.is_main()
    assert not list(tmp_path.iterdir())
