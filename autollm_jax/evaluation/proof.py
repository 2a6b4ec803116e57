"""The report's sections on validity, reasoning, cost and stress: what their tables show."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from autollm_jax.evaluation.comparisons import difference_cell
from autollm_jax.evaluation.cost import THRESHOLD, Group, break_even, cheaper_from
from autollm_jax.evaluation.run_costs import MEASURES
from autollm_jax.evaluation.summary import ALL, Results, summarise
from autollm_jax.gym.experiments import Experiment
from autollm_jax.report.cost_figure import cost_panels
from autollm_jax.report.formats import show_magnitude, show_regret


def validity_rows(results: Results, method: str) -> list[dict]:
    """Return a method's invalid and matched shares by trial, a row for each task and for all."""
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
    """Return how true a method's thinking is, a row for each task and for all."""
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


def stress_results(paths: Mapping[str, Path], experiments: Sequence[Experiment]) -> dict:
    """Read the results under each stress, by its label."""
    return {label: Results(pq.read_table(path), experiments) for label, path in paths.items()}


def summarise_stress(stressed: Mapping[str, Results]) -> dict:
    """Return {LABEL: {METHOD: {TASK: {"1": {"mean", "low", "high", "n"}, …}}}}."""
    return {label: summarise(results)["regret"] for label, results in stressed.items()}


def stress_rows(plain: Results, stressed: Mapping[str, Results], focus: str) -> list[dict]:
    """Compare a method with the best other one under each stress, the first row without any."""
    return [
        {
            "label": label.replace("_", " "),
            "cells": [_against_best(results, focus, k) for k in results.budgets],
        }
        for label, results in {"none": plain, **stressed}.items()
        if focus in results.methods and len(results.methods) > 1
    ]


def ceiling_rows(results: Results, ceiling: Mapping[str, Mapping], focus: str) -> list[dict]:
    """Set what could be known beside a method and the best other one, all tasks first.

    Args:
      results: the results.
      ceiling: what `ceiling.ceilings` returned; nothing gives no rows.
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
    """Name the method that is best after k trials, other than the one in focus."""
    means = {m: results.curve(m, task)[k - 1].mean for m in results.methods if m != focus}
    other = min(means, key=means.get, default=None)
    return {"method": other, "other": show_regret(means[other]) if means else "–"}


def _against_best(results: Results, focus: str, k: int) -> dict:
    """Compare a method after k trials with the other one that is best there."""
    best = _best_other(results, focus, ALL, k)
    return {
        "focus": show_regret(results.curve(focus, ALL)[k - 1].mean),
        **best,
        **difference_cell(results, focus, best["method"], ALL, k),
    }


def cost_view(groups: Sequence[Group], focus: str, training) -> dict | None:
    """Return what the section on cost shows; None where there is nothing to compare."""
    if not groups or focus not in groups[0].lines:
        return None
    return {
        "threshold": show_regret(THRESHOLD),
        "training": {m: _amount(getattr(training, m), m) for m in MEASURES},
        "unknown": [g.name for g in groups if math.isnan(g.run.flops)],
        "without_hours": [g.name for g in groups if g.name != ALL and math.isnan(g.run.hours)],
        "groups": [_cost_group(group, focus) for group in groups],
        "figure": cost_panels(groups, focus, "cost")
        if any(math.isfinite(g.run.flops) for g in groups)
        else None,
    }


def _cost_group(group: Group, focus: str) -> dict:
    even = {measure: break_even(group, focus, measure) for measure in MEASURES}
    ours = group.lines[focus]
    return {
        "name": group.name,
        "evidence": {m: _amount(getattr(group.evidence, m), m) for m in MEASURES},
        "run": {m: _amount(getattr(group.run, m), m) for m in MEASURES},
        "break_even": {
            m: {"number": _number(number), "against": against}
            for m, (number, against) in even.items()
        },
        "methods": [
            {
                "method": method,
                "reached": _percent(line.reached),
                "trials": f"{line.trials:.1f}",
                **{m: _amount(getattr(line.per_experiment, m), m) for m in MEASURES},
                "from": None if method == focus else _number(cheaper_from(ours, line, "flops")),
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


def _amount(value: float, measure: str) -> str:
    """Write FLOPs, or hours, with two digits."""
    if math.isnan(value):
        return "unknown"
    return f"{value:.1e}" if measure == "flops" else f"{value:.2g}"
