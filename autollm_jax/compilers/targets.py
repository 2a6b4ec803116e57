"""The accelerators that programs are compiled for without one: TPU slices, and hosts of H100s.

`devices_of` describes devices to JAX. `jitted.lower(...).compile()` with shardings over them runs
the accelerator's own compiler, which libtpu and the CUDA plugin bring. Nothing can be executed.
"""

import dataclasses
import math
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from autollm_jax.errors import UserError, one_line

FAKE = "fake"
ACCEPTED = (
    "fake (the CPU's compiler), tpu:KIND:SHAPE[:SLICES] with KIND of v5e, v5p, v6e "
    "(tpu:v5e:4x4, tpu:v5p:2x2x2, tpu:v5e:4x4:2 for two slices), or gpu:h100:HOSTSxDEVICES "
    "(gpu:h100:1x8)"
)
NAME = (
    r"fake|tpu:(?P<kind>v5e|v5p|v6e):(?P<shape>\d+(x\d+){1,2})(:(?P<slices>[1-9]\d*))?"
    r"|gpu:h100:(?P<hosts>[1-9]\d*)x(?P<each>[1-9]\d*)"
)
REQUIREMENTS = "pip install -r requirements-compilers.txt"


@dataclasses.dataclass(frozen=True)
class Chip:
    """Nominal speed of a chip.

    hertz: cycles a second that the compiler's estimates count; 0 where it makes none.
    peak: bf16 FLOPs a second.
    """

    hertz: float
    peak: float


CHIPS = {
    "v5e": Chip(1.5e9, 197e12),
    "v5p": Chip(1.75e9, 459e12),
    "v6e": Chip(1.75e9, 918e12),
    "h100": Chip(0, 989e12),
}

# What XLA asks of a GPU that it compiles for: an H100 SXM with 80 GB (compute capability 9.0, 132
# multiprocessors of 128 lanes, 228 KiB shared memory each of which a block may take 227, 50 MiB L2,
# 3.35 TB/s). The message is XLA's GpuTargetConfigProto.
_H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 84825604096
  memory_bandwidth: 3352000000000
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
runtime_version { major: 12 minor: 9 patch: 0 }
dnn_version_info { major: 9 minor: 8 patch: 0 }
"""


def chip_of(name: str) -> Chip:
    """Return the chip of a compiler's name."""
    return CHIPS[name.split(":")[1]]


def device_count(name: str) -> int:
    """Return how many devices a compiler's name stands for.

    A chip of v5e and v6e is one device, and so is a chip of v5p, whose two cores work as one.
    """
    match = re.fullmatch(NAME, name)
    assert match is not None, name
    if match["hosts"]:
        return int(match["hosts"]) * int(match["each"])
    return math.prod(map(int, match["shape"].split("x"))) * int(match["slices"] or 1)


def devices_of(name: str) -> Sequence[jax.Device]:
    """Describe the devices of a compiler.

    Args:
      name: a name that `NAME` matches, other than `fake`.

    Returns:
      The devices, which programs can be compiled for, and on which none runs.

    Raises:
      UserError: the compiler is not installed, or there is no such topology.
    """
    match = re.fullmatch(NAME, name)
    assert match is not None and name != FAKE, name
    if match["hosts"]:
        _needed(name, "jax_plugins.xla_cuda12", "the CUDA plugin")
        described = {
            "platform": "cuda", "target_config": _H100,
            "topology": f"1x{match['hosts']}x{match['each']}",
        }  # fmt: skip
    else:
        _needed(name, "libtpu", "libtpu")
        # libtpu asks no metadata server, and takes no lock: other processes may compile too.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        described = {"platform": "tpu", "topology_name": f"{match['kind']}:{match['shape']}"}
        if int(match["slices"] or 1) > 1:
            described["num_slices"] = int(match["slices"])
    try:
        return topologies.get_topology_desc(**described).devices
    except Exception as error:  # whatever a plugin raises: it knows which topologies there are
        raise UserError(
            f"config.plan.compiler={name}: {one_line(error)}; accepted is {ACCEPTED}, with the "
            "packages of requirements-compilers.txt, whose versions belong together"
        ) from error


def _needed(name: str, module: str, title: str) -> None:
    """Import a compiler's package.

    Raises:
      UserError: the package is not installed.
    """
    try:
        __import__(module)
    except ImportError as error:
        raise UserError(
            f"config.plan.compiler={name}: {title} is not installed here; {REQUIREMENTS} brings it"
        ) from error
