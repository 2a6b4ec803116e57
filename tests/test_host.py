import os

import jax
import numpy as np

from autollm_jax import host


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


def test_what_runs_on_the_cpu_leaves_the_preferred_device():
    devices = jax.devices()
    with jax.default_device(devices[-1]):
        assert jax.numpy.zeros(2).devices() == {devices[-1]}
        with host.on_cpu():
            assert jax.jit(jax.numpy.sqrt)(np.ones(2)).devices() == {devices[0]}
        assert jax.numpy.zeros(2).devices() == {devices[-1]}


def test_without_a_cpu_backend_the_preferred_device_is_used(monkeypatch):
    def none(backend):
        raise RuntimeError(f"Unknown backend: {backend}")

    monkeypatch.setattr(jax, "local_devices", none)
    with host.on_cpu():
        assert jax.numpy.zeros(2).devices() == {jax.devices()[0]}
