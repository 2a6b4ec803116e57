"""Traces some steps of a stage with `jax.profiler`, to be looked at in TensorBoard or XProf.

tensorboard --logdir=WORKDIR/profile/STAGE        # pip install xprof tensorboard
"""

import dataclasses
from pathlib import Path

import jax


@dataclasses.dataclass(frozen=True)
class Window:
    """The steps to trace: first, first + 1, ..., last - 1; and the folder that traces go to."""

    first: int
    last: int
    folder: Path


class Profiler:
    """Traces the steps of a window; a context that ends the trace however the stage ends."""

    def __init__(self, window: Window | None):
        self._window, self._running = window, False

    def __enter__(self) -> "Profiler":
        return self

    def before(self, step: int, results) -> None:
        """Start the trace before the window's first step, or end it after the last.

        Args:
          step: number of the step that is next.
          results: arrays of the step before; both wait for them, so that whole steps are traced.
        """
        if self._window is None:
            return
        wanted = self._window.first <= step < self._window.last
        if wanted != self._running:
            jax.block_until_ready(results)
            self._start() if wanted else self._stop()

    def __exit__(self, *error) -> None:
        if self._running:
            self._stop()

    def _start(self) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # calls of Python would fill the trace
        jax.profiler.start_trace(self._window.folder, profiler_options=options)
        self._running = True

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running = False
