import os
import subprocess
import sys
import threading

import jax
import numpy as np

from autollm_jax import host
from autollm_jax.sharding.mesh import MeshShape, make_mesh


def where():
    """Return the platform on which this process computes, and its niceness."""
    return jax.default_backend(), os.nice(0)


def write_where(path):
    path.write_text(repr(where()))


def test_workers_compute_on_the_cpu_whatever_this_process_prefers(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")  # which none of these machines has
    began = []
    with host.pool(2, began.append, (1,)) as pool:
        assert pool.submit(where).result() == ("cpu", os.nice(0))
    assert not began  # called in the workers alone


def test_work_beside_has_a_low_priority(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    process = host.beside(write_where, tmp_path / "where")
    assert process.daemon
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / "where").read_text() == repr(("cpu", min(os.nice(0) + host.NICENESS, 19)))


KILLED = """
import os, sys, pathlib
sys.path.insert(0, os.getcwd())
from autollm_jax import host
from tests.test_host import wait_forever
if __name__ == "__main__":
    process = host.beside(wait_forever, pathlib.Path(sys.argv[1]))
    while not os.path.exists(sys.argv[1]):
        assert process.is_alive()
    os.kill(os.getpid(), 9)
"""


def wait_forever(path):
    path.write_text(str(os.getpid()))
    threading.Event().wait()


def test_work_beside_ends_with_a_killed_process(tmp_path):
    script, told = tmp_path / "killed.py", tmp_path / "pid"
    script.write_text(KILLED)
    # The pipes of its output close when the process beside it has ended, too.
    command = [sys.executable, script, told]
    ended = subprocess.run(command, capture_output=True, timeout=120)
    assert ended.returncode == -9 and told.exists(), ended.stderr.decode()


def test_what_runs_on_the_cpu_leaves_the_preferred_device():
    devices = jax.devices()
    with jax.default_device(devices[-1]):
        assert jax.numpy.zeros(2).devices() == {devices[-1]}
        with host.on_cpu():
            assert jax.jit(jax.numpy.sqrt)(np.ones(2)).devices() == {devices[0]}
        assert jax.numpy.zeros(2).devices() == {devices[-1]}


def test_what_runs_on_the_cpu_leaves_the_mesh_that_is_set():
    """Rollouts compute under the mesh of the policy, the forecasts among them do not."""
    mesh, (first, *_) = make_mesh(MeshShape()), jax.devices()
    root = jax.jit(jax.numpy.sqrt)
    with jax.set_mesh(mesh):
        with host.on_cpu():
            assert root(np.ones(2)).devices() == {first}
        assert root(np.ones(2)).devices() == set(jax.devices())


def test_without_a_cpu_backend_the_preferred_device_is_used(monkeypatch):
    def none(backend):
        raise RuntimeError(f"Unknown backend: {backend}")

    monkeypatch.setattr(jax, "local_devices", none)
    with host.on_cpu():
        assert jax.numpy.zeros(2).devices() == {jax.devices()[0]}
