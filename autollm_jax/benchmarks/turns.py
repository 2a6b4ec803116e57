"""Two training loops that work step by step in turn, so that other jobs slow both alike.

Each loop has a thread of its own, waits where a step begins, and tells where it ends.
"""

import dataclasses
import threading
from collections.abc import Callable

from autollm_jax.benchmarks.timing import Seconds, now
from autollm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class StepTime:
    """A step's parts: up to the rewards, and from there on."""

    rollout: Seconds
    update: Seconds

    @property
    def step(self) -> Seconds:
        return self.rollout + self.update


class Turns:
    """One permission to work, which two loops hand to each other; the first has it at first."""

    def __init__(self):
        self._permits = [threading.Semaphore(1), threading.Semaphore(0)]
        self._failure: BaseException | None = None

    def take(self, side: int) -> None:
        """Wait for the permission; raises UserError if the other loop has failed."""
        self._permits[side].acquire()
        if self._failure is not None:
            raise UserError(f"the other side failed: {self._failure!r}") from self._failure

    def give(self, side: int) -> None:
        """Hand the permission to the other loop."""
        self._permits[1 - side].release()

    def beside(self, side: int, loop: Callable[[], None]) -> threading.Thread:
        """Start a loop in a thread; if it fails, the other loop is told."""

        def work():
            try:
                loop()
            except BaseException as error:  # the main thread raises it
                self._failure = error
                self.give(side)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread


class Stopwatch:
    """Times the steps of one loop and keeps its turns: `begin`, `rewarded`, `end` each step."""

    def __init__(self, turns: Turns, side: int):
        self.steps: list[StepTime] = []
        self._turns, self._side = turns, side
        self._marks: list[Seconds] = []

    def begin(self) -> None:
        self._turns.take(self._side)
        self._marks = [now()]

    def rewarded(self) -> None:
        self._marks.append(now())

    def end(self) -> None:
        began, rewarded, ended = *self._marks, now()
        self.steps.append(StepTime(rewarded - began, ended - rewarded))
        self._turns.give(self._side)
