"""What all benchmarks share: their options, timing, and the fields of the last line."""

import dataclasses
import importlib
import os
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from autollm_jax.errors import UserError
from autollm_jax.progress_bar import progress_bar

# Files of requirements: transformers and torch, and what is compared beside them.
PARITY, BENCHMARKS = "requirements-parity.txt", "requirements-benchmarks.txt"


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says.

    repeats: timed repetitions, in turn with the reference's.
    dtype: what matrix products read; None is the benchmark's own choice.
    against: a checkout of other code; None for none.
    roots: folders of outcome tables.
    size: of the model, one of `training.SHAPES`.
    peer: the other library, one of `grpo_peers.PEERS`.
    prompt: tokens of a prompt of `sampling` and `grpo_peers`.
    rows: conversations of `sampling`.
    """

    repeats: int = 5
    dtype: str | None = None
    against: str | None = None
    roots: tuple[str, ...] = ("gym_data",)
    size: str = "3m"
    peer: str = "trl"
    prompt: int = 48
    rows: int = 16


@dataclasses.dataclass(frozen=True)
class Seconds:
    """By the clock, and of this process's CPU time, which other jobs on the machine hardly move."""

    wall: float
    cpu: float

    def __sub__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)


def now() -> Seconds:
    """Read both clocks; only differences mean something."""
    return Seconds(time.perf_counter(), time.process_time())


def seconds_of(call) -> Seconds:
    """Time one call to the end of its computation."""
    began = now()
    jax.block_until_ready(call())
    return now() - began


def in_turn(
    name: str, calls: Mapping[str, Callable], repeats: int, compiled: bool = False
) -> dict[str, list[Seconds]]:
    """Time calls one after the other, round by round, so that other jobs slow all of them alike.

    Args:
      name: of the progress bar.
      calls: by name.
      repeats: rounds that are timed.
      compiled: each was called before; else a first round, which compiles, is left out.

    Returns:
      The seconds of each call.
    """
    seconds = {call: [] for call in calls}
    for repeat in progress_bar(range(repeats + (not compiled)), name, unit="round"):
        for call, function in calls.items():
            spent = seconds_of(function)
            if repeat or compiled:
                seconds[call].append(spent)
    return seconds


def library(name: str, requirements: str = PARITY):
    """Import a library that only a benchmark needs.

    Raises:
      UserError: it is not installed; the line names the file of requirements that has it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{error.name or name} is missing; run pip install -r {requirements}"
        ) from error


def cores() -> int:
    """Count the cores that this process may use: those of `taskset`, where it is given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name() -> str:
    """The accelerator; of a CPU, the cores that may be used too."""
    kind = jax.devices()[0].device_kind
    return f"{kind}, {cores()} cores" if jax.default_backend() == "cpu" else kind


def measured(values, unit: str, references, **others) -> dict:
    """Return the medians and their ratio, as the last line's fields.

    Args:
      values: what was measured.
      unit: of all of them.
      references: what it is measured against.
      others: the same of further references, by name.
    """
    value, reference = float(np.median(values)), float(np.median(references))
    medians = {name: float(np.median(found)) for name, found in others.items()}
    fields = {"value": value, "unit": unit, "reference": reference, "ratio": value / reference}
    return fields | ({"others": medians} if others else {})
