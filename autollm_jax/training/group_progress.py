"""Tracks a run group's progress: restores a checkpoint, saves periodically and on a stop."""

import time
from collections.abc import Callable

import jax

from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.cluster import preemption


class GroupProgress:
    """Steps done by a group of runs, and the seconds that they took, over all of its processes.

    Attributes:
      step: steps done.
    """

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        checkpoint_seconds: float,
        on_steps: Callable[[int], None],
    ):
        """Begin at no step.

        Args:
          checkpoints: where to save and to resume from; None saves nothing.
          checkpoint_seconds: between two checkpoints.
          on_steps: called with the number of steps done, for a progress bar.
        """
        self.step = 0
        self._checkpoints, self._every, self._on_steps = checkpoints, checkpoint_seconds, on_steps
        self._seconds = 0.0  # before this process
        self._began = self._saved = time.monotonic()

    def begin(self, make: Callable, sharding, *arguments):
        """Return the state to resume from: the newest checkpoint's, or make(*arguments)."""
        if self._checkpoints is None or self._checkpoints.latest() is None:
            state = make(*arguments)
        else:
            abstract = jax.tree.map(
                lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
                jax.eval_shape(make, *arguments),
            )
            state, extra = self._checkpoints.restore(abstract)
            self.step, self._seconds = extra["step"], extra["seconds"]
            self._on_steps(self.step)
        self._began = self._saved = time.monotonic()
        return state

    def advance(self, steps: int, state, stopping: bool) -> None:
        """Count steps, and save when a checkpoint is due.

        Raises:
          Preempted: the job was asked to stop; the group is saved.
        """
        self.step += steps
        self._on_steps(steps)
        due = time.monotonic() - self._saved > self._every or stopping
        if self._checkpoints is not None and due:
            self._save(state)
            self._saved = time.monotonic()
        if stopping:
            if self._checkpoints is not None:
                self._checkpoints.wait()
            raise preemption.Preempted

    def end(self, state) -> float:
        """Save the last state and return the seconds in all.

        Outcomes are written one by one; after a kill between two of them the group is finished.
        """
        seconds = self._spent()
        if self._checkpoints is not None and self._checkpoints.latest() != self.step:
            self._save(state)
            self._checkpoints.wait()
        return seconds

    def _save(self, state) -> None:
        self._checkpoints.save(self.step, state, {"step": self.step, "seconds": self._spent()})

    def _spent(self) -> float:
        return self._seconds + time.monotonic() - self._began
