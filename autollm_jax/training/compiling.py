"""Measures the time in which this process traces, lowers and compiles, or reads from the cache."""

import functools
import threading
import time

import jax.monitoring

EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",  # a program found in the cache counts its reading
)


class _Spans:
    """Seconds of compilation of one thread; what is traced inside another trace counts once."""

    def __init__(self):
        self._spans: list[tuple[float, float]] = []  # disjoint, in order
        self._before = 0.0  # seconds of spans that nothing can enclose any more

    @property
    def seconds(self) -> float:
        return self._before + sum(end - start for start, end in self._spans)

    def add(self, end: float, seconds: float) -> None:
        """Add a span that has just ended."""
        start = end - seconds
        # An outer span ends after its inner ones.
        while self._spans and self._spans[-1][1] > start:
            start = min(start, self._spans.pop()[0])
        self._spans.append((start, end))
        if len(self._spans) > 10_000:
            self._before, self._spans = self.seconds, []


class Clock:
    """Wall-clock seconds of compilation so far, by thread: one may train while another plays."""

    def __init__(self):
        self._threads: dict[int, _Spans] = {}

    @property
    def seconds(self) -> float:
        """Seconds of all threads together."""
        return sum(spans.seconds for spans in list(self._threads.values()))

    @property
    def of_this_thread(self) -> float:
        """Seconds of the thread that asks."""
        spans = self._threads.get(threading.get_ident())
        return spans.seconds if spans else 0.0

    def hear(self, event: str, seconds: float, **_) -> None:
        """Add a span that has just ended in this thread; `jax.monitoring` calls it."""
        if event in EVENTS:
            spans = self._threads.setdefault(threading.get_ident(), _Spans())
            spans.add(time.perf_counter(), seconds)


@functools.cache
def clock() -> Clock:
    """Return this process's clock; it runs from the first call on."""
    made = Clock()
    jax.monitoring.register_event_duration_secs_listener(made.hear)
    return made
