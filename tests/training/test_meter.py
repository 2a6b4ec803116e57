"""MFU, rates, memory and compilation of a stage, against programs whose FLOPs are known."""

import re
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.training import compiling, flops, meter, peaks
from autollm_jax.training.step import Program


@pytest.fixture
def mesh():
    return make_mesh(MeshShape(data=1), jax.devices()[:1])


class Chip:
    """Stands in for an accelerator."""

    platform, process_index = "tpu", 0

    def __init__(self, device_kind="TPU v5 lite", peak=0):
        self.device_kind, self.peak = device_kind, peak

    def memory_stats(self):
        return {"peak_bytes_in_use": self.peak, "bytes_in_use": 1}


def test_mfu_is_flops_over_seconds_and_the_peak_of_all_devices(mesh, monkeypatch):
    monkeypatch.setattr(meter, "peak_flops", lambda devices: 1e6)
    two = make_mesh(MeshShape(data=2), jax.devices()[:2])
    assert meter.Meter(mesh).mfu(3e6, 10.0) == {"mfu": 0.3}
    assert meter.Meter(two).mfu(3e6, 10.0) == {"mfu": 0.15}
    assert meter.Meter(two).speed(100, 10.0) == {"tokens_per_second_per_device": 5.0}


def test_an_accelerator_that_no_data_sheet_is_known_of_has_no_mfu(mesh, monkeypatch):
    assert peaks.peak_flops([Chip()]) == 197e12
    assert peaks.peak_flops([Chip("TPU v99")]) is None
    monkeypatch.setattr(meter, "peak_flops", lambda devices: None)
    assert meter.Meter(mesh).mfu(3e6, 10.0) == {}


def test_a_cpu_is_measured_once():
    devices = jax.devices()
    assert 1e8 < peaks.peak_flops(devices) < 1e13
    assert peaks.peak_flops(devices) == peaks.peak_flops(devices)


def test_memory_is_that_of_the_fullest_accelerator_or_of_the_process():
    assert meter.peak_memory_bytes([Chip(peak=5), Chip(peak=7)]) == 7
    if sys.platform == "linux":
        said = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        assert said and meter.peak_memory_bytes(jax.devices()) == pytest.approx(
            1024 * int(said[1]), rel=0.01
        )


def test_a_span_inside_another_counts_once(monkeypatch):
    now = iter([1.0, 3.0, 4.0, 7.0])
    monkeypatch.setattr(compiling.time, "perf_counter", lambda: next(now))
    clock, (trace, lower, xla) = compiling.Clock(), compiling.EVENTS
    clock.hear(trace, 0.5)  # 0.5 to 1
    clock.hear(trace, 3.0)  # 0 to 3, around the first
    clock.hear(lower, 1.0)  # 3 to 4
    clock.hear("/jax/other", 99.0)
    clock.hear(xla, 2.0)  # 5 to 7
    assert clock.seconds == 6.0


def test_compilation_of_another_thread_is_in_no_rate_of_this_one(mesh):
    clock = compiling.Clock()
    player = threading.Thread(target=clock.hear, args=(compiling.EVENTS[0], 5.0))
    player.start()
    player.join()
    clock.hear(compiling.EVENTS[0], 2.0)
    assert clock.seconds == pytest.approx(7.0) and clock.of_this_thread == pytest.approx(2.0)


def test_devices_that_play_meanwhile_count_in_tokens_and_not_in_mfu(mesh, monkeypatch):
    monkeypatch.setattr(meter, "peak_flops", lambda devices: 1e6 * len(devices))
    players = make_mesh(MeshShape(data=3), jax.devices()[1:4])
    measured = meter.Meter(mesh, players)
    assert measured.speed(100, 10.0) == {"tokens_per_second_per_device": 2.5}
    assert measured.mfu(3e6, 10.0) == {"mfu": 0.3}


def test_compilation_is_counted_and_in_no_rate(mesh):
    measured = meter.Meter(mesh)
    began, before = time.perf_counter(), measured.now()
    jax.jit(lambda x: jnp.sort(jnp.tanh(x @ x) + 17.25, axis=0))(jnp.ones((30, 30)))
    whole, spent = time.perf_counter() - began, measured.totals()["compile_seconds"]
    assert 0.2 * whole < spent <= whole
    assert measured.seconds_since(before) < whole - 0.9 * spent + 0.05


def test_a_programs_calls_add_their_flops(mesh):
    program = Program(jax.jit(lambda a, b: a @ b.T), mesh)
    a_MN = np.ones((4, 6), np.float32)
    for _ in range(2):
        program(a_MN, np.ones((5, 6), np.float32))
    assert program.flops == 2 * (2 * 4 * 5 * 6)
    program(a_MN, np.ones((7, 6), np.float32))
    assert program.flops == 2 * (2 * 4 * 5 * 6) + 2 * 4 * 7 * 6


def test_what_is_computed_again_counts_nothing(mesh):
    def loss(inner, w_NN, x_BN):
        return inner(lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w))(w_NN, x_BN).sum()

    def gradient(inner):
        return jax.jit(lambda w, x: jax.value_and_grad(lambda w: loss(inner, w, x))(w))

    w_NN, x_BN = np.eye(8, dtype=np.float32), np.ones((4, 8), np.float32)
    plain, again = gradient(lambda f: f), gradient(jax.checkpoint)
    assert flops.recomputes(again.trace(w_NN, x_BN).jaxpr)
    assert not flops.recomputes(plain.trace(w_NN, x_BN).jaxpr)
    counts = []
    for program in (Program(plain, mesh), Program(again, mesh), Program(again, mesh, 1, plain)):
        program(w_NN, x_BN)
        counts.append(program.flops)
    assert counts[0] < counts[1] and counts[2] == counts[0]
