"""Runs one job in several processes: connects them, checks them, and lets them wait for each other.

`start` connects the processes, before JAX finds its devices. `check` compares their configs and
versions. In a single process both do nothing. Every process runs the same command. `on_main` runs
work that only one process may do (claim the work directory, write a file), in process 0.

Processes wait on the coordinator's key-value store, not on a collective of the devices: a wait may
take hours, and Python handles signals in between.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from jax._src import distributed as jax_distributed  # the store has no public name

from autollm_jax.cluster import coordinator
from autollm_jax.errors import UserError
from autollm_jax.files import package_digest

# Environment variables of schedulers: number of this process, of all processes, of hosts.
SCHEDULERS = (
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", None),
    ("JOB_COMPLETION_INDEX", None, None),
)
POLL_SECONDS = 1.0
PATIENCE_SECONDS = 30.0  # wait for a file of another host to appear on a shared file system

_calls = itertools.count()
_gathered: list[str] = []  # keys of this process that others may still read


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings by which processes find each other.

    coordinator: host:port of process 0. "" takes the scheduler's coordinator; without a scheduler
      the job is a single process.
    processes: number of processes; -1 takes the scheduler's number.
    process_id: number of this process, from 0; -1 takes the scheduler's number.
    one_host: whether all processes are on one machine, where a loopback address is accepted.
    timeout_seconds: most seconds to wait until all processes are connected.
    collectives: the library of collectives between CPUs, gloo or mpi.
    """

    coordinator: str = ""
    processes: int = -1
    process_id: int = -1
    one_host: bool = False
    timeout_seconds: int = 300
    collectives: str = "gloo"


def start(settings: Settings) -> None:
    """Connect this process to the other processes of the job.

    Call it before any call that looks for JAX's devices.

    Raises:
      UserError: the processes do not all connect in time.
    """
    if jax_distributed.global_state.client is not None:
        return
    index, processes, hosts = _scheduler()
    index = index if settings.process_id == -1 else settings.process_id
    processes = processes if settings.processes == -1 else settings.processes
    if processes == 1:
        return
    if settings.coordinator:
        _check_numbers(index, processes)
        address, field = settings.coordinator, "config.distributed.coordinator"
    else:
        address = coordinator.of_scheduler(settings.timeout_seconds)
        field = "the scheduler's coordinator"
    if address and None not in (index, processes):
        on_this_host = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE")
        one_host = settings.one_host or hosts == 1 or on_this_host == str(processes)
        seconds = settings.timeout_seconds
        coordinator.meet(address, field, index, processes, one_host, seconds)
    if settings.coordinator:
        _connect(settings, address, processes, index)
    else:
        _connect_by_scheduler(settings, processes)


def index() -> int:
    """Return the number of this process, from 0."""
    return jax_distributed.global_state.process_id or 0


def count() -> int:
    """Return the number of processes of the job."""
    return jax_distributed.global_state.num_processes or 1


def is_main() -> bool:
    """Whether this is process 0, which writes the files."""
    return index() == 0


def on_main(work: Callable):
    """Run a function in process 0 while the other processes wait.

    Args:
      work: the function; returns None or JSON values.

    Returns:
      The function's result, in every process.

    Raises:
      UserError: the function raised it, or process 0 failed. Every process raises it.
    """
    if count() == 1:
        return work()
    key = f"main/{next(_calls)}"
    if not is_main():
        outcome = json.loads(awaited(key))
        if "error" in outcome:
            raise UserError(outcome["error"])
        return outcome["result"]
    try:
        result = work()
    except UserError as error:
        post(key, json.dumps({"error": str(error)}))
        raise
    except Exception as error:
        post(key, json.dumps({"error": f"process 0 failed ({error}); its log says where"}))
        raise
    post(key, json.dumps({"result": result}))
    return result


def gather(value) -> list:
    """Return the JSON values of all processes, in the order of their numbers."""
    if count() == 1:
        return [value]
    number = next(_calls)
    post(f"gather/{number}/{index()}", json.dumps(value))
    made = [json.loads(awaited(f"gather/{number}/{process}")) for process in range(count())]
    # Who has written this time has read the time before.
    _gathered.append(f"gather/{number}/{index()}")
    if len(_gathered) > 1:
        jax_distributed.global_state.client.key_value_delete(f"autollm/{_gathered.pop(0)}")
    return made


def on_this_host() -> int:
    """Count the job's processes on this one's host; all processes call it."""
    return gather(socket.gethostname()).count(socket.gethostname())


def check(config: Mapping, workdir: Path) -> None:
    """Check that all processes run one job in one work directory, with equally many devices each.

    Args:
      config: the job's config, JSON values; all of it but `distributed` has to be equal everywhere.
      workdir: the job's work directory, on a file system that all processes share.

    Raises:
      UserError: a process differs. Every process raises it.
    """
    if count() == 1:
        return
    same = {name: value for name, value in config.items() if name != "distributed"}
    sign = on_main(lambda: _leave_sign(workdir))
    text = json.dumps(same, sort_keys=True, default=str)
    entries = gather(
        {
            "host": socket.gethostname(),
            "config": hashlib.sha256(text.encode()).hexdigest(),
            "code": package_digest(),
            "jax": jax.__version__,
            "workdir": _appears(workdir / sign),
        }
    )
    on_main(lambda: (workdir / sign).unlink(missing_ok=True))
    for process, entry in enumerate(entries):
        where = f"process {process} on {entry['host']}"
        for name, remedy in (
            ("config", "give every process the same --config flags"),
            ("code", "give every process the same checkout"),
            ("jax", "install the same version everywhere"),
        ):
            if entry[name] != entries[0][name]:
                raise UserError(
                    f"{where} has another {name} than process 0 on {entries[0]['host']}; {remedy}"
                )
        if not entry["workdir"]:
            raise UserError(
                f"{where} does not see process 0's {workdir.absolute()}; give a --workdir on a "
                "file system that all hosts share"
            )
    # The devices come last, since counting them starts them.
    found = gather(jax.local_device_count())
    for process, devices in enumerate(found):
        if devices != found[0]:
            raise UserError(
                f"process {process} on {entries[process]['host']} has {devices} devices and "
                f"process 0 on {entries[0]['host']} has {found[0]}; give every process as many "
                "(CUDA_VISIBLE_DEVICES, config.mesh.cpu_devices)"
            )


def post(key: str, value: str = "1") -> None:
    """Write a value that every process can read; an existing value stays as it is.

    Raises:
      RuntimeError: the coordinator is gone.
    """
    try:
        jax_distributed.global_state.client.key_value_set(f"autollm/{key}", value)
    except RuntimeError as error:
        if "ALREADY_EXISTS" not in str(error):
            raise


def posted(key: str) -> bool:
    """Whether a process has written a value under the key."""
    return awaited(key, seconds=0.001) is not None


def awaited(key: str, seconds: float | None = None) -> str | None:
    """Wait for the value of a key; return None where nobody has written it after `seconds`."""
    began = time.monotonic()
    while True:
        left = POLL_SECONDS if seconds is None else seconds - (time.monotonic() - began)
        try:
            # Wait in short intervals: Python handles signals between them.
            milliseconds = max(int(1000 * min(left, POLL_SECONDS)), 1)
            client = jax_distributed.global_state.client
            return client.blocking_key_value_get(f"autollm/{key}", milliseconds)
        except RuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if seconds is not None and time.monotonic() - began >= seconds:
            return None


def _scheduler() -> tuple[int | None, int | None, int | None]:
    """Return the scheduler's number of this process, of processes and of hosts; None if unknown."""

    def number(name):
        return int(os.environ[name]) if name and os.environ.get(name, "").isdecimal() else None

    for names in SCHEDULERS:
        if number(names[0]) is not None:
            return tuple(map(number, names))
    return None, None, None


def _connect_by_scheduler(settings: Settings, processes: int | None) -> None:
    """Connect through the scheduler's coordinator; without a scheduler do nothing."""
    try:
        _connect(settings)
    except ValueError:  # JAX found no scheduler with a coordinator
        if processes is not None:
            raise UserError(
                f"the scheduler started {processes} processes, but JAX finds no coordinator; give "
                "--config.distributed.coordinator=HOST:PORT, or --config.distributed.processes=1 "
                "for a process of its own"
            ) from None


def _check_numbers(index: int | None, processes: int | None) -> None:
    for name, value in (("processes", processes), ("process_id", index)):
        if value is None:
            raise UserError(
                f"config.distributed.{name} is -1 and no scheduler says it; give "
                f"--config.distributed.{name}=N beside the coordinator"
            )
    if not 0 <= index < processes:
        raise UserError(
            f"config.distributed.process_id={index}: the numbers of {processes} processes are 0 to "
            f"{processes - 1}"
        )


def _connect(settings: Settings, address=None, processes=None, index=None) -> None:
    jax.config.update("jax_cpu_collectives_implementation", settings.collectives)
    if hasattr(jax.config, "jax_enable_preemption_service"):  # preemption.py handles SIGTERM
        jax.config.update("jax_enable_preemption_service", False)
    timeout = {"initialization_timeout": settings.timeout_seconds}
    try:
        _interruptibly(lambda: jax.distributed.initialize(address, processes, index, **timeout))
    except RuntimeError as error:
        if address is None and "must be called before" in str(error):
            raise ValueError("the devices are in use already, by one process") from error
        raise UserError(
            f"the processes did not come together within {settings.timeout_seconds} s "
            f"({str(error).splitlines()[0]}); check that all of them were started with the same "
            "config.distributed, or raise config.distributed.timeout_seconds"
        ) from error


def _interruptibly(work: Callable[[], None]) -> None:
    """Run a long blocking call in another thread, so that this thread can handle signals."""
    raised = []

    def catch():
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=catch, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
    if raised:
        raise raised[0]


def _leave_sign(workdir: Path) -> str:
    name = f".started_by_{socket.gethostname()}_{os.getpid()}"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / name).touch()
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written ({error.strerror})") from error
    return name


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
