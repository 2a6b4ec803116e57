"""Pre-emption: SIGTERM lets the job save and exit with a code on which schedulers requeue it.

Outside loops that save checkpoints, the job ends at once, as after a kill: files are written
atomically, and every stage resumes. Inside such a loop (`deferred`) the job saves a checkpoint at
the boundary of a step, then ends. A single process may also end inside a part of a step that is
`interruptible`.

In a job of several processes, the process that gets the signal passes it on. All processes then
agree on the step to stop at: one after the furthest step that any of them has reached. They agree
through the coordinator, since a collective of the devices could disturb the running step on CPUs.
Without a signal, the boundaries cost nothing. Ctrl-C works as usual.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

from jax.sharding import Mesh

from autollm_jax.cluster import distributed
from autollm_jax.errors import PREEMPTED_EXIT_CODE
from autollm_jax.sharding import hosts

NOTICE = "preempted"
AGREEING_SECONDS = 20.0  # wait for the step that each process has reached
LEAVING_SECONDS = 10.0  # wait of process 0, the coordinator, for the end of each other process
ENDING_SECONDS = 0.5  # between a process's last message and its end


class Preempted(SystemExit):
    """The job was asked to stop, and its progress is saved."""

    def __init__(self):
        super().__init__(PREEMPTED_EXIT_CODE)


_asked = threading.Event()
_deferring = threading.Event()


class _Boundaries:
    """Counts the step boundaries that this process has passed; holds the boundary to stop at."""

    def __init__(self):
        self.lock = threading.Lock()  # held while the processes agree, so that no new step starts
        self.reached = 0
        self.last: int | None = None


_boundaries = _Boundaries()


def listen() -> None:
    """Handle SIGTERM from now on; call it once the processes are connected."""
    if threading.current_thread() is not threading.main_thread():
        return  # Python delivers signals to the main thread only
    signal.signal(signal.SIGTERM, _on_signal)
    if distributed.count() > 1:
        threading.Thread(target=_watch, daemon=True, name="preemption").start()


def asked() -> bool:
    """Whether this process was asked to stop."""
    return _asked.is_set()


@contextlib.contextmanager
def deferred(mesh: Mesh) -> Iterator[Callable[[], bool]]:
    """Defer a stop to the next step boundary, for a loop that saves checkpoints.

    with deferred(mesh) as asked_to_stop:
        for step in ...:
            ...
            if asked_to_stop():
                save, wait until it is saved, and raise Preempted

    Args:
      mesh: the loop's mesh; all of its processes get the same answer at the same step.

    Raises:
      Preempted: at the end of the loop, where the signal came after the last boundary.
    """
    together = len(hosts.processes_of(mesh)) > 1
    before = _deferring.is_set()
    _deferring.set()
    try:
        yield _at_boundary if together else asked
    finally:
        if not before:
            _deferring.clear()
    if asked() and not before:
        raise Preempted


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Allow a stop inside a step, in a part of the step that changes no saved state.

    Works in a single process only: several processes would have to agree that all of them are in
    this part.

    Raises:
      Preempted: at any point inside; the loop saves the state from the start of the step.
    """
    if distributed.count() > 1:
        yield
        return
    _deferring.clear()
    try:
        if asked():  # the signal came after the last boundary
            raise Preempted
        yield
    finally:
        _deferring.set()


def _at_boundary() -> bool:
    """Whether all processes stop at this boundary; counts the boundary."""
    with _boundaries.lock:
        _boundaries.reached += 1
        return _boundaries.last is not None and _boundaries.reached >= _boundaries.last


@contextlib.contextmanager
def in_good_order() -> Iterator[None]:
    """End a job that was asked to stop with PREEMPTED_EXIT_CODE.

    In a job of several processes, a collective fails once another process has ended. So after a
    signal an error counts as pre-emption too. Its traceback is printed, since the error may have
    another cause. In a single process an error stays an error.
    """
    try:
        yield
    except (Exception, Preempted) as error:
        if not isinstance(error, Preempted):
            if not asked() or distributed.count() == 1:
                raise
            traceback.print_exception(error)
        print("preempted: the same command goes on from here", file=sys.stderr)
        if distributed.count() > 1:
            _leave()
        raise Preempted from error


def _on_signal(number, frame) -> None:
    first = not _asked.is_set()
    _asked.set()
    if first and distributed.count() == 1 and not _deferring.is_set():
        raise Preempted


def _watch() -> None:
    """Pass a signal on to the other processes, and end this process where no loop defers the stop.

    Runs in a thread of its own, since the main thread may wait in a collective for a process that
    has ended.
    """
    while not _asked.wait(timeout=1.0):
        try:
            if distributed.posted(NOTICE):
                _asked.set()
        except RuntimeError:  # the coordinator is gone, so the job is over
            return
    # Without a coordinator, the other processes have ended.
    with contextlib.suppress(RuntimeError), _boundaries.lock:
        distributed.post(NOTICE)
        distributed.post(f"{NOTICE}/at/{distributed.index()}", str(_boundaries.reached))
        at = [
            distributed.awaited(f"{NOTICE}/at/{process}", AGREEING_SECONDS)
            for process in range(distributed.count())
        ]
        # A process without an answer has ended, and no further step can finish.
        _boundaries.last = 1 + max(int(reached or 0) for reached in at)
    if not _deferring.is_set():
        _leave()


def _leave() -> None:
    """End this process at once, without the exit handlers, which could wait for other processes.

    Process 0 ends last, since JAX aborts the other processes when they lose it.
    """
    for child in multiprocessing.active_children():
        child.terminate()
    with contextlib.suppress(RuntimeError):
        distributed.post(f"{NOTICE}/left/{distributed.index()}")
        if distributed.is_main():
            for process in range(1, distributed.count()):
                distributed.awaited(f"{NOTICE}/left/{process}", LEAVING_SECONDS)
            time.sleep(ENDING_SECONDS)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(PREEMPTED_EXIT_CODE)
