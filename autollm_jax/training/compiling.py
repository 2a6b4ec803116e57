"""Measures the time in which this process traces, lowers and compiles, or reads from the cache."""

import functools
import time

import jax.monitoring

EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",  # a program found in the cache counts its reading
)


class Clock:
    """Wall-clock seconds of compilation so far; what is traced inside another trace counts once."""

    def __init__(self):
        self._spans: list[tuple[float, float]] = []  # disjoint, in order
        self._before = 0.0  # seconds of spans that nothing can enclose any more

    @property
    def seconds(self) -> float:
        return self._before + sum(end - start for start, end in self._spans)

    def hear(self, event: str, seconds: float, **_) -> None:
        """Add a span that has just ended; `jax.monitoring` calls it."""
        if event not in EVENTS:
            return
        end = time.perf_counter()
        start = end - seconds
        # An outer span ends after its inner ones.
        while self._spans and self._spans[-1][1] > start:
            start = min(start, self._spans.pop()[0])
        self._spans.append((start, end))
        if len(self._spans) > 10_000:
            self._before, self._spans = self.seconds, []


@functools.cache
def clock() -> Clock:
    """Return this process's clock; it runs from the first call on."""
    made = Clock()
    jax.monitoring.register_event_duration_secs_listener(made.hear)
    return made
