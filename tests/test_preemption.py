import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autollm_jax import preemption
from autollm_jax.coordinator import free_address
from autollm_jax.errors import PREEMPTED_EXIT_CODE
from autollm_jax.preemption import Preempted
from autollm_jax.sharding.mesh import MeshShape, make_mesh


@pytest.fixture
def listening():
    before = signal.getsignal(signal.SIGTERM)
    preemption.listen()
    yield
    signal.signal(signal.SIGTERM, before)
    preemption._asked.clear()


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


def test_whatever_fails_on_the_way_down_is_the_preemptions_doing(listening, capsys):
    with pytest.raises(Preempted), preemption.in_good_order():
        with contextlib.suppress(Preempted):
            stop()
        raise RuntimeError("a neighbour has left")
    assert "the same command goes on" in capsys.readouterr().err


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
