"""Fills the report's tables of methods: regrets, paired differences, tasks and sources."""

import math
from collections.abc import Sequence

from autollm_jax.evaluation.statistics import Interval
from autollm_jax.evaluation.summary import ALL, Results
from autollm_jax.report.curves import regret_curves
from autollm_jax.report.formats import show_interval, show_name, show_regret


def best_other(results: Results, focus: str, task: str) -> str | None:
    """Return the method other than the focus with the least final regret on a task (or `all`)."""
    others = [m for m in results.methods if m != focus]
    return min(others, key=lambda m: results.curve(m, task)[-1].mean, default=None)


def cards(results: Results, focus: str) -> list[dict]:
    """Return the focus's pooled regret per budget beside that of the best other method there."""
    found = []
    for k in results.budgets:
        others = [(results.curve(m, ALL)[k - 1].mean, m) for m in results.methods if m != focus]
        card = {"k": k, **show_interval(results.curve(focus, ALL)[k - 1]), "other": None}
        if others:
            mean, name = min(others)
            cell = difference_cell(results, focus, name, ALL, k)
            card["other"] = {"method": name, "mean": show_regret(mean), "cell": cell}
        found.append(card)
    return found


def block(results: Results, task: str, methods: Sequence[str]) -> dict:
    """Return a task's (or `all`'s) regrets, differences from the first method, and curve."""
    focus, *others = methods
    floor, known = results.floor(task)
    comparable = _comparable_floor(results, task)
    bootstrap = results.bootstrap(task)
    counts = {
        "experiments": bootstrap.experiments,
        "clusters": sum(bootstrap.clusters.values()),
        "single": [t for t, number in bootstrap.clusters.items() if number == 1],
        "with_floor": known,
    }
    best = best_other(results, focus, task)
    return {
        "task": task,
        "n": results.curve(focus, task)[0].n,
        **counts,
        "floor": show_regret(floor) if math.isfinite(floor) else None,
        "rows": _regrets(results, task, methods),
        "differences": [
            {
                "method": other,
                "best": other == best,
                "cells": [
                    _difference(results.difference(focus, other, task)[k - 1], comparable)
                    for k in results.budgets
                ],
            }
            for other in others
        ],
        "words": _words(results, focus, best, task, comparable) if best else None,
        "curve": regret_curves(
            {m: results.curve(m, task) for m in methods},
            focus,
            f"curve {task}",
            floor,
            f"{known} of {bootstrap.experiments} experiments",
        ),
    }


def side_by_side(results: Results, methods: Sequence[str], columns: Sequence[tuple]) -> list[dict]:
    """Return each method's first and last regret, by task or source.

    Args:
      results: the results.
      methods: one row each.
      columns: (task, source or None) each.
    """
    first, last = results.budgets[0], results.budgets[-1]

    def ends(method, task, source):
        curve = results.curve(method, task, source)
        return curve[first - 1].mean, curve[last - 1].mean

    table = {m: [ends(m, *column) for column in columns] for m in methods}
    least = [
        [min(round(table[m][c][end], 3) for m in methods) for end in (0, 1)]
        for c in range(len(columns))
    ]
    return [
        {
            "method": m,
            "cells": [
                [
                    {"mean": show_regret(value), "best": round(value, 3) <= least[c][end]}
                    for end, value in enumerate(pair)
                ]
                for c, pair in enumerate(table[m])
            ],
        }
        for m in methods
    ]


def _regrets(results: Results, task: str, methods: Sequence[str]) -> list[dict]:
    curves = {m: results.curve(m, task) for m in methods}
    least = {k: min(round(curves[m][k - 1].mean, 3) for m in methods) for k in results.budgets}
    return [
        {
            "method": m,
            "cells": [
                {
                    **show_interval(curves[m][k - 1]),
                    "best": round(curves[m][k - 1].mean, 3) <= least[k],
                }
                for k in results.budgets
            ],
        }
        for m in methods
    ]


def _difference(interval: Interval, floor: float) -> dict:
    verdict = "better" if interval.high < 0 else "worse" if interval.low > 0 else "open"
    noisy = math.isfinite(floor) and abs(interval.mean) < floor and interval.mean != 0
    return {**show_interval(interval, signed=True), "verdict": verdict, "noisy": noisy}


def difference_cell(results: Results, method: str, other: str, task: str, k: int) -> dict:
    """Return by how much a method's regret after k trials is below another's, and the verdict."""
    difference = results.difference(method, other, task)[k - 1]
    return _difference(difference, _comparable_floor(results, task))


def _comparable_floor(results: Results, task: str) -> float:
    """Return the task's noise floor if every experiment has one, else nan."""
    floor, known = results.floor(task)
    return floor if known == results.bootstrap(task).experiments else math.nan


def _words(results: Results, focus: str, other: str, task: str, floor: float) -> str:
    """Describe the difference between the focus and the best other method in words."""
    says = {"better": "lower", "worse": "higher", "open": "no difference shown"}
    parts = []
    for k in results.budgets:
        cell = _difference(results.difference(focus, other, task)[k - 1], floor)
        within = ", less than the noise floor" if cell["noisy"] else ""
        trials = f"{k} trial{'' if k == 1 else 's'}"
        parts.append(f"{cell['mean']} after {trials} ({says[cell['verdict']]}{within})")
    return f"{show_name(focus)} against {show_name(other)}: {'; '.join(parts)}"
