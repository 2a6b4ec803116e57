"""The highest FLOP rate of a device, which MFU is a share of."""

import functools
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# FLOP/s of dense bf16 products, by `jax.Device.device_kind`. NVIDIA's figures are those of its data
# sheets, halved where they count on sparse matrices. Google's are those of its pages on each TPU
# version (cloud.google.com/tpu/docs), halved where JAX shows a chip as two devices (TPU7x).
DATA_SHEETS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5": 459e12,  # v5p
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,  # v6e
    "TPU7x": 1153.5e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}
SIZE, REPEATS = 2048, 3  # of the products that measure a CPU: 86 ms each at 200 GFLOP/s


def peak_flops(devices: Sequence[jax.Device]) -> float | None:
    """Return the highest FLOP rate of one of the devices, FLOP/s; None where it is not known.

    An accelerator's is its data sheet's, for bf16. A CPU's is measured once a process, since its
    kind names no clock and no cores: the best of three f32 products of 2048 x 2048 matrices on all
    of this process's devices at once. Other jobs on the machine lower it, as they lower a step's.
    """
    if devices[0].platform != "cpu":
        return DATA_SHEETS.get(devices[0].device_kind)
    process = jax.process_index()
    return _measured(tuple(d for d in devices if d.process_index == process))


@functools.cache
def _measured(devices: tuple[jax.Device, ...]) -> float:
    rows = SIZE + -SIZE % len(devices)
    mesh = Mesh(np.array(devices), ("rows",))
    split, whole = (NamedSharding(mesh, PartitionSpec(axis)) for axis in ("rows", None))
    left = jax.device_put(jnp.ones((rows, SIZE)), split)
    right = jax.device_put(jnp.ones((SIZE, SIZE)), whole)
    multiply = jax.jit(jnp.matmul, out_shardings=split)
    jax.block_until_ready(multiply(left, right))  # compiles
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(multiply(left, right))
        seconds.append(time.perf_counter() - began)
    return 2 * rows * SIZE**2 / min(seconds) / len(devices)
