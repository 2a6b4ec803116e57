"""The report's details: a row per experiment, the drawn landscapes, one episode per task."""

import html
import json
import math
import re
from collections.abc import Mapping, Sequence

import jinja2
import numpy as np

from autollm_jax.evaluation.summary import Results, experiment_id
from autollm_jax.gym.experiments import Experiment
from autollm_jax.report.formats import (
    show_config,
    show_magnitude,
    show_name,
    show_outcome,
    show_regret,
)
from autollm_jax.report.landscape import Strips, lay_out
from autollm_jax.report.maps import Mark, landscape_figure

# A source and task with more experiments than this has only the median one drawn.
ALL_DRAWN = 2


def choose_drawn(results: Results, experiments: Sequence[Experiment], focus: str) -> set[str]:
    """Choose the experiments to draw: of each source and task the one of median final regret.

    The regret is the focus's, so neither its best nor its worst experiment is picked. Where there
    are no more than `ALL_DRAWN`, all are drawn.
    """
    groups: dict[tuple, list] = {}
    for e in experiments:
        final = float(results.regret(focus, e.id)[-1])
        groups.setdefault((e.task, e.source), []).append((final, e.id))
    chosen = set()
    for found in groups.values():
        median = sorted(found)[len(found) // 2]
        chosen.update(name for _, name in (found if len(found) <= ALL_DRAWN else [median]))
    return chosen


def experiment_row(results: Results, experiment: Experiment, focus: str, other: str | None) -> dict:
    """Return a row of a task's table of experiments."""
    default = int(experiment.match(experiment.default).row)

    def regrets(method):
        curve_K = results.regret(method, experiment.id)
        return [show_regret(curve_K[k - 1]) for k in results.budgets]

    return {
        "id": anchor(experiment),
        "name": experiment.name,
        "source": experiment.source,
        "size": _size(experiment),
        "metric": show_metric(experiment),
        "measured": show_measured(experiment),
        "failed": float(np.mean(~experiment.outcomes.ok_R)),
        "optimum": show_outcome(experiment.outcomes.optimum),
        "median": show_outcome(experiment.outcomes.median),
        "default": show_regret(float(experiment.outcomes.regrets_R[default])),
        "floor": show_regret(results.floors[experiment.id]),
        "focus": regrets(focus),
        "other": regrets(other) if other else [],
    }


def landscape(
    experiment: Experiment, rows: Sequence[Mapping], focus: str, other: str | None
) -> dict:
    """Return an experiment's figure with two methods' trials, and a table of the focus's trials.

    Args:
      experiment: the experiment.
      rows: its results, one mapping per trial; the first seed's are shown.
      focus: the method in focus.
      other: the method with marks beside it; None for none.
    """
    laid_out = lay_out(experiment)
    trials = {m: first_seed(rows, m) for m in (focus, other) if m}
    marks = [mark for method, own in trials.items() for mark in marks_of(own, method == focus)]
    wide = isinstance(laid_out, Strips)
    left_out = laid_out.left_out if wide else 0
    return {
        "id": anchor(experiment),
        "name": experiment.name,
        "context": _context(experiment),
        "wide": wide,
        "note": " · ".join(_notes(experiment, left_out)),
        "svg": landscape_figure(laid_out, marks, experiment.id),
        "metric": experiment.objective.metric,
        "trials": [
            {
                "number": t["trial"],
                "config": _config(experiment, t["config"]),
                "outcome": show_outcome(t["outcome"]) if t["status"] == "ok" else t["status"],
                "regret": show_regret(t["regret"]),
                "matched": t["matched"],
            }
            for t in trials[focus]
        ],
        "optimum": _measured(experiment, experiment.outcomes.best_row),
        "default": _measured(experiment, experiment.match(experiment.default).row),
    }


def episode(results: Results, transcripts: Sequence[Mapping], focus: str, task: str) -> dict | None:
    """Choose the focus's episode of median final regret in a task."""
    known = {(unit.experiment, unit.seed) for unit in results.units}
    scored = []
    for transcript in transcripts:
        name = experiment_id(transcript)
        seed = transcript["seed"]
        of_focus = (transcript["method"], transcript["task"]) == (focus, task)
        if of_focus and (name, seed) in known:
            regret = float(results.regret(focus, name, seed)[-1])
            scored.append((regret, name, seed, transcript["text"]))
    if not scored:
        return None
    regret, name, seed, text = sorted(scored)[len(scored) // 2]
    return {
        "experiment": name,
        "seed": seed,
        "regret": show_regret(regret),
        "count": len(scored),
        "text": jinja2.filters.Markup(_mark_up(text)),
    }


def show_metric(experiment: Experiment) -> str:
    """Write the metric's name and direction, without a part that the experiment's name repeats."""
    first, _, rest = experiment.objective.metric.partition(".")
    shown = first if rest in experiment.name else experiment.objective.metric
    return f"{show_name(shown)} {'↓' if experiment.objective.minimize else '↑'}"


def show_measured(experiment: Experiment) -> str:
    """Write how much of a space is measured.

    In a space of choices: 96 of 128 cells. Otherwise there is no grid: 7,500 runs of 5,200
    configurations, no grid. A configuration over the limit was not run and does not count.
    """
    ran_R, dimensions = experiment.feasible_R, experiment.space.dimensions
    rows, runs = int(ran_R.sum()), int(experiment.outcomes.runs_R[ran_R].sum())
    if not all(d.is_discrete for d in dimensions):
        return f"{runs:,} runs of {rows:,} configurations, no grid"
    everything = math.prod(len(d.choices) for d in dimensions)
    return f"{rows:,} of {f'{everything:,}' if everything < 1e6 else f'{everything:.1e}'} cells"


def anchor(experiment: Experiment) -> str:
    """Return a name that a page can link to."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", experiment.id)


def _measured(experiment: Experiment, row: int) -> dict:
    measured = experiment.outcomes.measured(row)
    return {
        "config": _config(experiment, experiment.configurations[row]),
        "outcome": show_outcome(measured.outcome) if measured.status == "ok" else measured.status,
        "regret": show_regret(measured.regret),
    }


def _config(experiment: Experiment, config: Mapping | None) -> str:
    return show_config(experiment.space, config) if config else "no configuration"


def _notes(experiment: Experiment, left_out: int) -> list[str]:
    notes = [f"measured {show_measured(experiment)}"]
    if left_out:
        notes.append(f"{left_out} axes that explain less are left out")
    return notes


def marks_of(trials: Sequence[Mapping], focus: bool) -> list[Mark]:
    """Return the marks of a method's trials in a landscape."""
    return [Mark(t["trial"], t["config"], t["regret"], focus) for t in trials if t["config"]]


def first_seed(rows: Sequence[Mapping], method: str) -> list[dict]:
    """Return a method's trials in the first of its seeds, their configurations read."""
    own = [row for row in rows if row["method"] == method]
    seed = min((row["seed"] for row in own), default=None)
    return [{**row, "config": json.loads(row["config"])} for row in own if row["seed"] == seed]


def _size(experiment: Experiment) -> str:
    fidelity = experiment.fidelity
    shown = []
    # Where there is a limit, it is written instead of the parameters.
    for word in ("tokens",) if experiment.limit else ("parameters", "tokens"):
        value = getattr(fidelity, word)
        if value and math.isfinite(value):
            shown.append(f"{show_magnitude(value)} {word}")
    return ", ".join(shown)


def _context(experiment: Experiment) -> str:
    stated = [experiment.source, f"{experiment.fidelity.level} fidelity", _size(experiment)]
    if experiment.limit:
        at_most = show_magnitude(experiment.limit["at_most"])
        stated.append(f"at most {at_most} {experiment.limit['quantity']}")
    goal = "lower" if experiment.objective.minimize else "higher"
    stated.append(f"{show_name(experiment.objective.metric)}, {goal} is better")
    return " · ".join(part for part in stated if part)


def _mark_up(text: str) -> str:
    """Escape a transcript, then set its think and exec parts apart."""
    # A lone surrogate, which a byte-level decoder may leave, cannot be written as UTF-8.
    escaped = html.escape(text.encode("utf-8", "replace").decode())
    for part in ("think", "exec"):
        # A block starts its own line, so the line ends around it would show as gaps.
        pattern = rf"\s*&lt;{part}&gt;\s*((?:(?!&lt;{part}&gt;).)*?)\s*&lt;/{part}&gt;[ ]*\n?"
        block = rf'<span class="{part}"><b>{part}</b>\1</span>'
        escaped = re.sub(pattern, block, escaped, flags=re.DOTALL)
    return escaped
