"""What computes on the host's CPU, whatever accelerators there are: forecasts, baselines, workers.

Their arrays are small and their steps many, some in float64. A second process could not have the
accelerators anyway: a TPU refuses it, and the first has taken a GPU's memory.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

NICENESS = 10  # of work beside something more urgent
_SPAWN = multiprocessing.get_context("spawn")


def only_cpu() -> None:
    """Keep JAX from looking for accelerators in this process; call it before JAX computes."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # read when JAX is loaded
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Let JAX compute on one CPU device in this context, and not on a mesh that was set outside.

    Where JAX_PLATFORMS leaves the CPU out, it computes where it would without this context.
    """
    import jax  # here, since most importers of this module do without

    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        yield
        return
    with jax.set_mesh(None), jax.default_device(device):
        yield


def pool(
    processes: int, start: Callable | None = None, arguments: tuple = ()
) -> concurrent.futures.ProcessPoolExecutor:
    """Make a pool of fresh processes.

    Args:
      processes: their number, at most. They are spawned, which needs a main module that can be
        imported without work.
      start: called in each process when it begins.
      arguments: of `start`.
    """
    return concurrent.futures.ProcessPoolExecutor(processes, _SPAWN, _begin, (start, arguments))


def leave(folder: str, work: Callable, *arguments) -> Path:
    """Do work, as a worker, and leave its result in a file; return the path, for `collect`.

    What a pool's workers send should fit into a pipe at once, as a path does: a worker that is
    killed amid a longer message leaves the pool waiting for the rest forever.
    """
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        pickle.dump(work(*arguments), file)
    return Path(file.name)


def collect(path: Path) -> Any:
    """Return the result that a worker left, and delete its file."""
    result = pickle.loads(path.read_bytes())  # a worker's own, in a folder of this job's alone
    path.unlink()
    return result


def beside(work: Callable, *arguments) -> BaseProcess:
    """Begin work of low priority in a fresh process, which ends with this one at the latest."""
    process = _SPAWN.Process(target=_beside, args=(work, arguments), daemon=True)
    process.start()
    return process


def _begin(start: Callable | None, arguments: tuple) -> None:
    only_cpu()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start(*arguments)


def _end_with_parent() -> None:
    """End this process when the one that began it ends, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a process that nobody spawned"
    parent.join()
    os._exit(1)


def _beside(work: Callable, arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that began this one
    os.nice(NICENESS)
    _begin(work, arguments)
