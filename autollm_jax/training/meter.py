"""How well a stage uses its devices: MFU, tokens a second, memory, compilation.

`mfu`: FLOPs of the updates' matrix products over seconds x devices x their highest FLOP rate
(PaLM, arXiv 2204.02311, appendix B). What the backward pass computes again counts nothing.
`tokens_per_second_per_device`: tokens over seconds and devices.
`peak_memory_bytes`: the most that this process has held since it began: on the fullest of its
accelerators, or, of a CPU, in resident memory.
`compile_seconds`: seconds of the stage so far in which this process traced, lowered and compiled,
in all its threads.

Compilation in the thread that trains is in none of these rates' seconds.
"""

import dataclasses
import resource
import sys
import time

import jax
from jax.sharding import Mesh

from autollm_jax.training.compiling import clock
from autollm_jax.training.peaks import peak_flops


@dataclasses.dataclass(frozen=True)
class Moment:
    """A moment of a stage: wall-clock seconds, and seconds of this thread's compilation so far."""

    seconds: float
    compiling: float


class Meter:
    """Measures a stage from its making on.

    Args:
      mesh: the devices that the stage trains on.
      players: devices beside them, which play meanwhile; None for none.
    """

    def __init__(self, mesh: Mesh, players: Mesh | None = None):
        self._devices = list(mesh.devices.flat)
        self._all = self._devices + ([] if players is None else list(players.devices.flat))
        self._peak = peak_flops(self._devices)
        self._began = clock().seconds

    def now(self) -> Moment:
        return Moment(time.perf_counter(), clock().of_this_thread)

    def seconds_since(self, before: Moment) -> float:
        """Return the seconds since a moment, without those of compilation."""
        now = self.now()
        return max(now.seconds - before.seconds - (now.compiling - before.compiling), 1e-9)

    def mfu(self, flops: float, seconds: float) -> dict[str, float]:
        """Return `mfu` of the devices that train.

        It is empty where their highest rate is not known, or nothing ran.
        """
        if self._peak is None or not flops:
            return {}
        return {"mfu": flops / (seconds * len(self._devices) * self._peak)}

    def speed(self, tokens: int, seconds: float) -> dict[str, float]:
        return {"tokens_per_second_per_device": tokens / (seconds * len(self._all))}

    def totals(self) -> dict[str, float]:
        """Return `peak_memory_bytes` and `compile_seconds`."""
        return {
            "peak_memory_bytes": peak_memory_bytes(self._all),
            "compile_seconds": clock().seconds - self._began,
        }


def peak_memory_bytes(devices) -> int:
    """Return the most memory that this process has held on the fullest of its devices."""
    here = [device for device in devices if device.process_index == jax.process_index()]
    stats = [device.memory_stats() or {} for device in here]
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    if peaks:
        return max(peaks)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
