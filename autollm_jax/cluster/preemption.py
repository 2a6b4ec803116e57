"""Pre-emption: SIGTERM ends the job in good order, with a code that schedulers requeue on.

Outside of loops that save checkpoints the job ends at once, as after a kill: files are written
atomically, and every stage resumes. Inside one (`deferred`) it ends at the boundary of a step, with
a checkpoint, or, in a single process, at once in a part of it that is `interruptible`. A signal to
one of several processes is passed on to all, and they agree on the step:
the one after the furthest that any has reached. A step that nobody stops costs nothing, and nothing
goes over the devices: on CPUs it would get in the way of a step under way. Ctrl-C stays what it is.
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
AGREEING_SECONDS = 20.0  # for all processes to say which step they have reached
LEAVING_SECONDS = 10.0  # that process 0, which the others speak through, waits for them at the end
ENDING_SECONDS = 0.5  # from their last word to their end


class Preempted(SystemExit):
    """The job was asked to stop, and what it has done so far is saved."""

    def __init__(self):
        super().__init__(PREEMPTED_EXIT_CODE)


_asked = threading.Event()
_deferring = threading.Event()


class _Boundaries:
    """Counts the boundaries of steps that all processes take, and knows where they stop."""

    def __init__(self):
        self.lock = threading.Lock()  # held while the processes agree, so that none goes on
        self.reached = 0
        self.last: int | None = None


_boundaries = _Boundaries()


def listen() -> None:
    """Heed SIGTERM from now on; to be called once the processes are connected."""
    if threading.current_thread() is not threading.main_thread():
        return  # Python gives signals to the main thread alone
    signal.signal(signal.SIGTERM, _on_signal)
    if distributed.count() > 1:
        threading.Thread(target=_watch, daemon=True, name="preemption").start()


def asked() -> bool:
    """Whether this process was asked to stop."""
    return _asked.is_set()


@contextlib.contextmanager
def deferred(mesh: Mesh) -> Iterator[Callable[[], bool]]:
    """Put a stop off to a step's boundary, for a loop that saves checkpoints.

    with deferred(mesh) as asked_to_stop:
        for step in ...:
            ...
            if asked_to_stop():
                save, wait until it is saved, and raise Preempted

    Args:
      mesh: the loop's; its processes get the same answer at the same step.

    Raises:
      Preempted: at the loop's end, where a stop was asked for after its last boundary.
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
    """Let a stop come at once again, for a part of a step that changes nothing that is saved.

    Several processes would have to agree on which of them were in it: there it changes nothing.

    Raises:
      Preempted: anywhere inside; the loop saves what the step began with.
    """
    if distributed.count() > 1:
        yield
        return
    _deferring.clear()
    try:
        if asked():  # since the last boundary
            raise Preempted
        yield
    finally:
        _deferring.set()


def _at_boundary() -> bool:
    """Whether all processes stop here."""
    with _boundaries.lock:
        _boundaries.reached += 1
        return _boundaries.last is not None and _boundaries.reached >= _boundaries.last


@contextlib.contextmanager
def in_good_order() -> Iterator[None]:
    """Give whatever ends a job that was asked to stop the one exit code.

    A process whose neighbour has left already fails in the middle of a collective: that too is
    the pre-emption's doing. It is shown all the same, since it may be a failure of its own; that of
    a single process always is, and stays one.
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
    """Pass a stop on to the other processes, and end this one where nothing defers it.

    A thread, since the main one may be waiting in a collective for a process that has left.
    """
    while not _asked.wait(timeout=1.0):
        try:
            if distributed.posted(NOTICE):
                _asked.set()
        except RuntimeError:  # there is no coordinator any more: the job is over
            return
    # Where there is no coordinator any more, the others have left.
    with contextlib.suppress(RuntimeError), _boundaries.lock:
        distributed.post(NOTICE)
        distributed.post(f"{NOTICE}/at/{distributed.index()}", str(_boundaries.reached))
        at = [
            distributed.awaited(f"{NOTICE}/at/{process}", AGREEING_SECONDS)
            for process in range(distributed.count())
        ]
        # One that says nothing is gone, and no further step will come to its end.
        _boundaries.last = 1 + max(int(reached or 0) for reached in at)
    if not _deferring.is_set():
        _leave()


def _leave() -> None:
    """End this process without the farewells that a process in the middle of work cannot keep.

    Process 0 is the last to go: the others end in an abort where they lose it.
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
