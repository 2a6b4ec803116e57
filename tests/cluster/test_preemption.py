import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from autollm_jax.cluster import distributed, preemption
from autollm_jax.cluster.coordinator import free_address
from autollm_jax.cluster.preemption import Preempted
from autollm_jax.errors import PREEMPTED_EXIT_CODE
from autollm_jax.sharding.mesh import MeshShape, make_mesh


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


def test_outside_of_a_loop_that_saves_the_job_ends_at_once(listening):
    with pytest.raises(Preempted) as raised:
        stop()
        raise AssertionError("it went on")
    assert raised.value.code == PREEMPTED_EXIT_CODE


def test_inside_one_it_ends_at_the_boundary(listening):
    seen = []
    with pytest.raises(Preempted), preemption.deferred(make_mesh(MeshShape())) as asked_to_stop:
        for step in range(4):
            seen.append((step, asked_to_stop()))
            if seen[-1][1]:
                raise Preempted
            if step == 1:
                stop()
    assert seen == [(0, False), (1, False), (2, True)]


def test_a_stop_after_the_last_boundary_ends_it_behind_the_loop(listening):
    with pytest.raises(Preempted):
        with preemption.deferred(make_mesh(MeshShape())):
            stop()
            went_on = True
    assert went_on


def test_a_part_that_changes_nothing_ends_at_once(listening):
    with pytest.raises(Preempted), preemption.deferred(make_mesh(MeshShape())):
        with preemption.interruptible():
            stop()
            raise AssertionError("it went on")


def test_a_stop_before_such_a_part_ends_it_as_it_begins(listening):
    with pytest.raises(Preempted), preemption.deferred(make_mesh(MeshShape())):
        stop()
        with preemption.interruptible():
            raise AssertionError("it went on")


def test_a_stop_behind_such_a_part_waits_for_the_boundary(listening):
    with pytest.raises(Preempted), preemption.deferred(make_mesh(MeshShape())) as asked_to_stop:
        with preemption.interruptible():
            pass
        stop()
        went_on = asked_to_stop()
    assert went_on


def test_one_of_several_processes_goes_on_to_the_boundary(listening, monkeypatch):
    monkeypatch.setattr(distributed, "count", lambda: 2)
    with pytest.raises(Preempted), preemption.deferred(make_mesh(MeshShape())) as asked_to_stop:
        with preemption.interruptible():
            stop()
        went_on = asked_to_stop()
    assert went_on


def fail_when_stopped():
    with preemption.in_good_order(), preemption.deferred(make_mesh(MeshShape())):
        stop()
        raise OSError("the disk is full")


def test_what_fails_in_several_processes_is_the_preemptions_doing_and_shown(
    listening, monkeypatch, capsys
):
    monkeypatch.setattr(distributed, "count", lambda: 2)
    monkeypatch.setattr(preemption, "_leave", lambda: None)
    with pytest.raises(Preempted):
        fail_when_stopped()
    shown = capsys.readouterr().err
    assert "OSError: the disk is full" in shown and "the same command goes on" in shown


def test_what_fails_in_a_single_process_stays_a_failure(listening, capsys):
    with pytest.raises(OSError, match="the disk is full"):
        fail_when_stopped()
    assert "the same command goes on" not in capsys.readouterr().err


def test_a_stop_says_that_the_command_goes_on(listening, capsys):
    with pytest.raises(Preempted), preemption.in_good_order():
        stop()
        raise AssertionError("it went on")
    assert capsys.readouterr().err == "preempted: the same command goes on from here\n"


def test_a_lost_coordinator_does_not_keep_a_process_from_leaving(monkeypatch):
    def lost(*_):
        raise RuntimeError("UNAVAILABLE")

    left = []
    for name in ("post", "awaited", "posted"):
        monkeypatch.setattr(distributed, name, lost)
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(preemption, "_asked", threading.Event())
    preemption._asked.set()
    preemption._watch()
    assert left == [PREEMPTED_EXIT_CODE]


def test_a_failure_that_nobody_asked_for_stays_one():
    with pytest.raises(RuntimeError), preemption.in_good_order():
        raise RuntimeError


def test_the_main_job_exits_with_the_code_while_it_still_loads(tmp_path):
    # The marker comes from the config file, which is read before the job starts.
    config = tmp_path / "config.py"
    config.write_text(
        "import os, signal\n"
        "def get_config():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    raise AssertionError('it went on')\n"
    )
    command = [sys.executable, "launch/main.py", f"--config={config}", f"--workdir={tmp_path}/w"]
    assert subprocess.run(command, timeout=120).returncode == PREEMPTED_EXIT_CODE


@pytest.mark.parametrize(
    "file, pattern",
    [
        ("launch/slurm.sh", r"^stop_code=(\d+)$"),
        ("launch/gke_jobset.yaml", r"operator: In\n +values: \[(\d+)\]"),
    ],
)
def test_launch_scripts_requeue_on_the_code(file, pattern):
    (code,) = re.findall(pattern, Path(file).read_text(), re.MULTILINE)
    assert int(code) == PREEMPTED_EXIT_CODE


def test_a_process_that_waits_for_the_others_exits_with_the_code(tmp_path):
    address = free_address()
    command = [
        sys.executable, "launch/main.py", "--config=configs/gym.py", f"--workdir={tmp_path}",
        f"--config.distributed.coordinator={address}", "--config.distributed.processes=2",
        "--config.distributed.process_id=0", "--config.distributed.one_host=True",
    ]  # fmt: skip
    with subprocess.Popen(command) as process:
        try:
            _until_it_listens(address)
            process.terminate()
            assert process.wait(timeout=60) == PREEMPTED_EXIT_CODE
        finally:
            process.kill()


def _until_it_listens(address):
    host, port = address.split(":")
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
