"""Fills the report's sections on validity, reasoning, stress, what could be known, and cost."""

import math
from collections.abc import Mapping, Sequence

from autollm_jax.evaluation.cost import THRESHOLD, Group, break_even, cheaper_from
from autollm_jax.evaluation.summary import ALL, Results
from autollm_jax.report.comparisons import difference_cell
from autollm_jax.report.cost_figure import cost_panels
from autollm_jax.report.formats import show_magnitude, show_regret


def validity_rows(results: Results, method: str) -> list[dict]:
    """Return a method's invalid and matched shares by trial, a row per task and one for all."""
    tasks = [ALL, *results.tasks] if len(results.tasks) > 1 else results.tasks
    return [
        {
            "task": task,
            "cells": [
                {name: _percent(cell[name]) for name in ("invalid", "matched")}
                for cell in results.validity(method, task).values()
            ],
        }
        for task in tasks
    ]


def claim_rows(claims: Mapping[str, Mapping], method: str) -> list[dict]:
    """Return the checked claims of a method's thinking, a row per task and one for all."""
    by_task = claims.get(method, {})
    return [
        {
            "task": task,
            "n": cell["n"],
            **{name: _percent(cell[name]) for name in ("true", "unchecked", "unread")},
            "per_turn": f"{cell['n'] / cell['turns']:.1f}" if cell["turns"] else "–",
        }
        for task, cell in sorted(by_task.items(), key=lambda item: item[0] != ALL)
    ]


def stress_rows(plain: Results, stressed: Mapping[str, Results], focus: str) -> list[dict]:
    """Compare a method with the best other one, without stress first, then under each stress."""
    return [
        {
            "label": label.replace("_", " "),
            "cells": [_against_best(results, focus, k) for k in results.budgets],
        }
        for label, results in {"none": plain, **stressed}.items()
        if focus in results.methods and len(results.methods) > 1
    ]


def ceiling_rows(results: Results, ceiling: Mapping[str, Mapping], focus: str) -> list[dict]:
    """Set the yardstick beside a method and the best other one, all tasks first.

    Args:
      results: the results.
      ceiling: the return value of `ceiling.ceilings`; an empty one gives no rows.
      focus: the method.
    """
    if not ceiling or focus not in results.methods:
        return []
    tasks = [ALL, *results.tasks] if len(results.tasks) > 1 else results.tasks
    return [
        {
            "task": task,
            "cells": [
                {
                    "known": show_regret(ceiling[task][str(k)]),
                    "focus": show_regret(results.curve(focus, task)[k - 1].mean),
                    **_best_other(results, focus, task, k),
                }
                for k in results.budgets
            ],
        }
        for task in tasks
    ]


def _best_other(results: Results, focus: str, task: str, k: int) -> dict:
    """Return the best other method after k trials, and its regret."""
    means = {m: results.curve(m, task)[k - 1].mean for m in results.methods if m != focus}
    other = min(means, key=means.get, default=None)
    return {"method": other, "other": show_regret(means[other]) if means else "–"}


def _against_best(results: Results, focus: str, k: int) -> dict:
    """Compare a method with the best other one after k trials."""
    best = _best_other(results, focus, ALL, k)
    return {
        "focus": show_regret(results.curve(focus, ALL)[k - 1].mean),
        **best,
        **difference_cell(results, focus, best["method"], ALL, k),
    }


def cost_view(groups: Sequence[Group], focus: str, training: float) -> dict | None:
    """Return what the section on cost shows, in FLOPs; None where there is nothing to compare."""
    if not groups or focus not in groups[0].lines:
        return None
    return {
        "threshold": show_regret(THRESHOLD),
        "training": _flops(training),
        "unknown": [g.name for g in groups if math.isnan(g.run)],
        "groups": [_cost_group(group, focus) for group in groups],
        "figure": cost_panels(groups, focus, "cost")
        if any(math.isfinite(g.run) for g in groups)
        else None,
    }


def _cost_group(group: Group, focus: str) -> dict:
    number, against = break_even(group, focus)
    return {
        "name": group.name,
        "evidence": _flops(group.evidence),
        "run": _flops(group.run),
        "break_even": {"number": _number(number), "against": against},
        "methods": [
            {
                "method": method,
                "reached": _percent(line.reached),
                "trials": f"{line.trials:.1f}",
                "flops": _flops(line.per_experiment),
                "from": None
                if method == focus
                else _number(cheaper_from(group.lines[focus], line)),
            }
            for method, line in group.lines.items()
        ],
    }


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _number(number: float) -> str:
    if math.isnan(number):
        return "unknown"
    return "never" if math.isinf(number) else show_magnitude(number)


def _flops(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.1e}"
