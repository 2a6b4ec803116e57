"""Several processes as one job: how they start, are checked, and wait for each other.

`start` connects them, before JAX finds its devices, and `check` compares them; in a single process
both do nothing. Each process runs the same command. What only one may do (claim the work directory,
write a file) is done by process 0, through `on_main`.

Waiting goes over the coordinator's key-value store, not over the devices: it may take hours, and a
signal gets through.
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
from jax._src import distributed as jax_distributed  # the store has no public name; Orbax's way too

from autollm_jax.cluster import coordinator
from autollm_jax.errors import UserError
from autollm_jax.files import package_digest

# How a scheduler numbers a step's processes: this one, all of them, the hosts.
SCHEDULERS = (
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", None),
    ("JOB_COMPLETION_INDEX", None, None),
)
POLL_SECONDS = 1.0
PATIENCE_SECONDS = 30.0  # for a file of another host to be seen on a shared file system

_calls = itertools.count()


@dataclasses.dataclass(frozen=True)
class Settings:
    """How processes find each other.

    coordinator: host:port of process 0; "" lets JAX ask the scheduler, and without one of those
      it is a single process.
    processes: how many; -1 is what the scheduler says.
    process_id: this one's number from 0; -1 is what the scheduler says.
    one_host: all of them are on one machine, so that a loopback address will do.
    timeout_seconds: for the processes to come together.
    collectives: between CPUs, gloo or mpi.
    """

    coordinator: str = ""
    processes: int = -1
    process_id: int = -1
    one_host: bool = False
    timeout_seconds: int = 300
    collectives: str = "gloo"


def start(settings: Settings) -> None:
    """Connect this process to the job's others.

    Has to come before anything asks for JAX's devices.

    Raises:
      UserError: they do not come together.
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
    """Return this process's number."""
    return jax_distributed.global_state.process_id or 0


def count() -> int:
    """Return how many processes the job has."""
    return jax_distributed.global_state.num_processes or 1


def is_main() -> bool:
    """Whether this process is the one that writes files."""
    return index() == 0


def on_main(work: Callable):
    """Let process 0 do something while the others wait.

    Args:
      work: returns None or JSON values.

    Returns:
      What it returned, in every process.

    Raises:
      UserError: it did, or process 0 failed; in every process.
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
    """Return the JSON values of all processes, in their order."""
    if count() == 1:
        return [value]
    key = f"gather/{next(_calls)}"
    post(f"{key}/{index()}", json.dumps(value))
    return [json.loads(awaited(f"{key}/{process}")) for process in range(count())]


def check(config: Mapping, workdir: Path) -> None:
    """Check that all processes run one job in one work directory, on as many devices each.

    Args:
      config: the job's, JSON values; the same in all of them but for `distributed`.
      workdir: of the job, on a file system that they share.

    Raises:
      UserError: one does not; in every process.
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
    # Last: to count the devices starts them.
    found = gather(jax.local_device_count())
    for process, devices in enumerate(found):
        if devices != found[0]:
            raise UserError(
                f"process {process} on {entries[process]['host']} has {devices} devices and "
                f"process 0 on {entries[0]['host']} has {found[0]}; give every process as many "
                "(CUDA_VISIBLE_DEVICES, config.mesh.cpu_devices)"
            )


def post(key: str, value: str = "1") -> None:
    """Write a value where every process can read it; one that is there already stays.

    Raises:
      RuntimeError: there is no coordinator any more.
    """
    try:
        jax_distributed.global_state.client.key_value_set(f"autollm/{key}", value)
    except RuntimeError as error:
        if "ALREADY_EXISTS" not in str(error):
            raise


def posted(key: str) -> bool:
    """Whether a value has been written."""
    return awaited(key, seconds=0.001) is not None


def awaited(key: str, seconds: float | None = None) -> str | None:
    """Wait for a value; None where it has not come after `seconds`."""
    began = time.monotonic()
    while True:
        left = POLL_SECONDS if seconds is None else seconds - (time.monotonic() - began)
        try:
            # In short waits, between which Python hears of signals.
            milliseconds = max(int(1000 * min(left, POLL_SECONDS)), 1)
            client = jax_distributed.global_state.client
            return client.blocking_key_value_get(f"autollm/{key}", milliseconds)
        except RuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if seconds is not None and time.monotonic() - began >= seconds:
            return None


def _scheduler() -> tuple[int | None, int | None, int | None]:
    """Return this process's number, the processes and the hosts, as far as a scheduler says."""

    def number(name):
        return int(os.environ[name]) if name and os.environ.get(name, "").isdecimal() else None

    for names in SCHEDULERS:
        if number(names[0]) is not None:
            return tuple(map(number, names))
    return None, None, None


def _connect_by_scheduler(settings: Settings, processes: int | None) -> None:
    """Start as the scheduler says; where there is none it is a single process."""
    try:
        _connect(settings)
    except ValueError:  # JAX's word for that no scheduler told it a coordinator
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
    if hasattr(jax.config, "jax_enable_preemption_service"):  # SIGTERM is `preemption.py`'s
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
    """Do something that does not return to Python for long, while this thread hears of signals."""
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
