"""Two loops work in turn, and each step's times are its own."""

import threading

import pytest

from autollm_jax.benchmarks.turns import Stopwatch, Turns
from autollm_jax.errors import UserError


def test_steps_alternate_and_the_first_side_begins():
    turns, order = Turns(), []
    watches = [Stopwatch(turns, side) for side in (0, 1)]

    def loop(side):
        for step in range(3):
            watches[side].begin()
            order.append((step, side, "begins"))
            watches[side].rewarded()
            order.append((step, side, "ends"))
            watches[side].end()

    thread = turns.beside(1, lambda: loop(1))
    loop(0)
    thread.join(timeout=30)
    expected = [(s, side, what) for s in range(3) for side in (0, 1) for what in ("begins", "ends")]
    assert order == expected
    assert [len(watch.steps) for watch in watches] == [3, 3]


def test_a_step_holds_its_own_work_and_not_the_wait_for_its_turn():
    turns, release = Turns(), threading.Event()
    ours, theirs = Stopwatch(turns, 0), Stopwatch(turns, 1)

    def loop():
        theirs.begin()
        release.wait(0.3)
        theirs.rewarded()
        theirs.end()

    thread = turns.beside(1, loop)
    for _ in range(2):
        ours.begin()
        ours.rewarded()
        ours.end()
    thread.join(timeout=30)
    assert theirs.steps[0].rollout.wall > 0.25 > theirs.steps[0].update.wall
    assert all(step.step.wall < 0.2 for step in ours.steps)
    assert theirs.steps[0].step.cpu < 0.2


def test_the_other_side_says_that_a_loop_failed():
    turns = Turns()
    watch = Stopwatch(turns, 0)

    def loop():
        turns.take(1)
        raise ValueError("no such shape")

    turns.beside(1, loop)
    watch.begin()
    watch.rewarded()
    watch.end()
    with pytest.raises(UserError, match="no such shape"):
        watch.begin()
