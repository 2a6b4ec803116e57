"""Writes report/summary.json and the self-contained page report/index.html."""

import html
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq

from autollm_jax.errors import UserError
from autollm_jax.evaluation import figures
from autollm_jax.evaluation.landscape import Landscape, lay_out
from autollm_jax.evaluation.statistics import Interval
from autollm_jax.evaluation.summary import ALL, Results, summarise
from autollm_jax.files import write_atomic, write_json_atomic
from autollm_jax.gym.experiments import Experiment, reveal

# Landscapes beyond these are folded away.
LANDSCAPES_OPEN = 8

GLOSSARY = {
    "task": "What is being configured: pretraining, architecture, grpo or data_mixture.",
    "experiment": "One concrete setting of a task: a model size, a number of tokens, a space of "
    "configurations and the measured outcome of each.",
    "trial": "One configuration that a method asked for. It spends one of the budget.",
    "evidence": "The cheaper experiments' outcomes. Every method sees the same.",
    "regret": "clip((y - best) / (median - best), 0, 1) over the experiment's table: 0 is the best "
    "measured configuration, 1 is no better than a middling one. Diverged runs score 1. After k "
    "trials it is that of the best of the first k.",
    "interval": "95 % bootstrap interval over experiments and seeds. With a single experiment "
    "nothing is known of others, and it is the whole range.",
    "difference": "Regret of one method minus another's, paired by experiment and seed. It counts "
    "as shown only where its interval excludes 0.",
    "matched": "The proposed configuration was not measured; the nearest measured one answered.",
    "invalid": "The proposal held nothing that could be run. It spends a trial and scores 1.",
    "held out": "Not seen in training, by any method: its outcomes come from trials alone.",
}


def write_report(
    results_path: str | os.PathLike,
    experiments: Sequence[Experiment],
    transcripts_path: str | os.PathLike | None,
    out_dir: str | os.PathLike,
    agent_method: str = "agent",
    provenance: Mapping | None = None,
) -> dict:
    """Write the summary and the page.

    Args:
      results_path: `results.parquet`.
      experiments: the scored experiments, sealed or open; those without results are left out.
      transcripts_path: `transcripts.jsonl`; None or missing where there is none.
      out_dir: where `summary.json` and `index.html` go.
      agent_method: the method in focus; where it is not in the results, the best one is.
      provenance: what to state about the run: nested mappings of plain values.

    Returns:
      The summary.

    Raises:
      UserError: the results cannot be read or hold no trial.
    """
    table = _read_results(Path(results_path))
    results = Results(table)
    summary = summarise(table)
    page = render(
        results,
        table.to_pylist(),
        [reveal(experiment) for experiment in experiments],
        _read_transcripts(transcripts_path),
        agent_method,
        provenance or {},
    )
    write_json_atomic(Path(out_dir) / "summary.json", summary)
    write_atomic(Path(out_dir) / "index.html", page)
    return summary


def render(
    results: Results,
    rows: Sequence[Mapping],
    experiments: Sequence[Experiment],
    transcripts: Sequence[Mapping],
    agent_method: str,
    provenance: Mapping,
) -> str:
    """Return the page."""
    has_agent = agent_method in results.methods
    last = results.budget
    focus = agent_method
    if not has_agent:
        focus = min(results.methods, key=lambda m: results.interval(m, ALL, last).mean)
    methods = [focus, *(m for m in results.methods if m != focus)]
    # With one task, "all" is that task again.
    tasks = results.tasks if len(results.tasks) == 1 else [ALL, *results.tasks]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autollm_jax.evaluation", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html").render(
        has_agent=has_agent,
        focus=focus,
        methods=methods,
        tasks=tasks,
        budgets=results.budgets,
        budget=last,
        counts=_counts(results, rows),
        cards=_cards(results, focus, methods),
        headline=[_headline(results, task, methods) for task in tasks],
        differences=[
            {
                "task": task,
                "rows": [_differences(results, task, focus, other) for other in methods[1:]],
            }
            for task in tasks
        ],
        curves=[_curve_figure(results, task, methods, focus) for task in tasks],
        panels=figures.method_panels(_curves(results, tasks[0], methods), focus, "panels"),
        invalid=[
            {"method": m, "rate": results.invalid_rate(m), "matched": _matched_rate(rows, m)}
            for m in methods
        ],
        legend=figures.legend_swatches(),
        landscapes=_landscapes(experiments, rows, focus),
        landscapes_open=LANDSCAPES_OPEN,
        episode=_episode(results, transcripts, focus),
        provenance=_flatten(provenance),
        glossary=GLOSSARY,
        label=lambda name: name.replace("_", " "),
    )


def _curves(results: Results, task: str, methods: Sequence[str]) -> list[figures.Curve]:
    trials = range(1, results.budget + 1)
    return [figures.Curve(m, tuple(results.interval(m, task, k) for k in trials)) for m in methods]


def _curve_figure(results, task, methods, focus) -> dict:
    curves = _curves(results, task, methods)
    return {"task": task, "svg": figures.regret_curves(curves, focus, f"curve {task}")}


def _headline(results: Results, task: str, methods: Sequence[str]) -> dict:
    intervals = {m: {k: results.interval(m, task, k) for k in results.budgets} for m in methods}
    best = {k: min(round(intervals[m][k].mean, 3) for m in methods) for k in results.budgets}
    return {
        "task": task,
        "n": max(intervals[m][1].n for m in methods),
        "experiments": intervals[methods[0]][1].experiments,
        "rows": [
            {
                "method": m,
                "cells": [
                    {**_shown(intervals[m][k]), "best": round(intervals[m][k].mean, 3) <= best[k]}
                    for k in results.budgets
                ],
            }
            for m in methods
        ],
    }


def _differences(results: Results, task: str, focus: str, other: str) -> dict:
    cells = []
    for k in results.budgets:
        interval = results.difference(focus, other, task, k)
        verdict = "better" if interval.high < 0 else "worse" if interval.low > 0 else "open"
        cells.append({**_shown(interval, signed=True), "verdict": verdict})
    return {"method": other, "cells": cells}


def _shown(interval: Interval, signed: bool = False) -> dict:
    sign = "+" if signed else ""

    def number(value):
        # No "-0.00".
        return f"{round(value, 3) + 0.0:{sign}.3f}" if math.isfinite(value) else "–"

    ends = f"{number(interval.low)} … {number(interval.high)}"
    return {"mean": number(interval.mean), "ends": ends, "single": interval.experiments < 2}


def _cards(results: Results, focus: str, methods: Sequence[str]) -> list[dict]:
    """Return the focus's pooled regret per budget beside that of the best other method."""
    cards = []
    for k in results.budgets:
        ours = results.interval(focus, ALL, k)
        others = [(results.interval(m, ALL, k).mean, m) for m in methods[1:]]
        card = {"k": k, **_shown(ours), "other": None}
        if others:
            mean, name = min(others)
            card["other"] = {"method": name, **_differences(results, ALL, focus, name)}
            card["other"]["mean"] = f"{mean:.3f}"
            card["other"]["cell"] = card["other"]["cells"][results.budgets.index(k)]
        cards.append(card)
    return cards


def _counts(results: Results, rows: Sequence[Mapping]) -> dict:
    return {
        "experiments": len(results.task_of),
        "methods": len(results.methods),
        "seeds": len({row["seed"] for row in rows}),
        "trials": len(rows),
        "levels": ", ".join(sorted({row["fidelity"] for row in rows})),
    }


def _matched_rate(rows: Sequence[Mapping], method: str) -> float:
    matched = [row["matched"] for row in rows if row["method"] == method]
    return sum(matched) / max(len(matched), 1)


def _landscapes(experiments, rows, focus) -> list[dict]:
    found = []
    for experiment in experiments:
        place = (experiment.source, experiment.task, experiment.name)
        own = [
            row
            for row in rows
            if row["method"] == focus and (row["source"], row["task"], row["experiment"]) == place
        ]
        if not any((row["source"], row["task"], row["experiment"]) == place for row in rows):
            continue
        seed = min((row["seed"] for row in own), default=None)
        trials = [
            {**row, "config": json.loads(row["config"])} for row in own if row["seed"] == seed
        ]
        landscape = lay_out(experiment)
        marks = [figures.Mark(t["trial"], t["config"]) for t in trials if t["config"]]
        draw = figures.heat_map if landscape.is_grid else figures.scatter_map
        found.append(
            {
                "id": experiment.id,
                "name": experiment.name,
                "context": _context(experiment),
                "svg": draw(landscape, marks, experiment.id),
                "note": _projection(landscape),
                "seed": seed,
                "optimum": _number(experiment.optimum),
                "metric": experiment.objective_metric,
                "best": _config(landscape.best_config),
                "trials": [
                    {
                        "number": t["trial"],
                        "config": _config(t["config"]) if t["config"] else "no configuration",
                        "outcome": _number(t["outcome"]) if t["status"] == "ok" else t["status"],
                        "regret": f"{t['regret']:.3f}",
                        "matched": t["matched"],
                    }
                    for t in trials
                ],
            }
        )
    return found


def _projection(landscape: Landscape) -> str:
    if not landscape.projected:
        return ""
    if landscape.is_grid:
        return "each cell is the best over the other dimensions"
    return "the two components that go with regret most"


def _context(experiment: Experiment) -> str:
    fidelity = experiment.fidelity
    parts = [experiment.source, experiment.task, f"{fidelity.level} fidelity"]
    for word in ("parameters", "tokens"):
        value = getattr(fidelity, word)
        if value and math.isfinite(value):
            parts.append(f"{_magnitude(value)} {word}")
    return " · ".join(parts)


def _magnitude(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.4f}" if 0.001 <= abs(value) < 100 or value == 0 else f"{value:.4g}"


def _config(config: Mapping) -> str:
    parts = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            largest = sorted(value.items(), key=lambda item: -item[1])[:4]
            value = " ".join(f"{k}={v:.2f}" for k, v in largest) + (" …" if len(value) > 4 else "")
            parts.append(f"{name}: {value}")
        else:
            parts.append(f"{name.replace('_', ' ')} {figures.show_value(value)}")
    return ", ".join(parts)


def _episode(results: Results, transcripts: Sequence[Mapping], focus: str) -> dict | None:
    """Choose the focus's episode whose final regret is the median one: no pick of the best."""
    scores = results.scores(focus, ALL, results.budget)
    scored = []
    for transcript in transcripts:
        experiment = f"{transcript['source']}/{transcript['task']}/{transcript['experiment']}"
        regret = scores.get(experiment, {}).get(transcript["seed"])
        if transcript["method"] == focus and regret is not None:
            scored.append((regret, experiment, transcript["seed"], transcript["text"]))
    if not scored:
        return None
    regret, experiment, seed, text = sorted(scored)[len(scored) // 2]
    return {
        "experiment": experiment,
        "seed": seed,
        "regret": f"{regret:.3f}",
        "count": len(scored),
        "text": jinja2.filters.Markup(_mark_up(text)),
    }


def _mark_up(text: str) -> str:
    """Escape a transcript, then set its think and exec parts apart."""
    # A lone surrogate, which a byte-level decoder may leave, cannot be written as UTF-8.
    escaped = html.escape(text.encode("utf-8", "replace").decode())
    for part in ("think", "exec"):
        # Line ends around a block would show as gaps: a block starts a line of its own.
        pattern = rf"\s*&lt;{part}&gt;\s*((?:(?!&lt;{part}&gt;).)*?)\s*&lt;/{part}&gt;[ ]*\n?"
        block = rf'<span class="{part}"><b>{part}</b>\1</span>'
        escaped = re.sub(pattern, block, escaped, flags=re.DOTALL)
    return escaped


def _flatten(value: Mapping, prefix: str = "") -> list[tuple[str, str]]:
    flat = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            flat += _flatten(item, f"{name}.") if item else [(name, "–")]
        elif isinstance(item, list | tuple):
            flat.append((name, ", ".join(map(str, item))))
        else:
            flat.append((name, str(item)))
    return flat


def _read_results(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{path}: not readable as results.parquet; run the stage evaluate"
        ) from error
    if not table.num_rows:
        raise UserError(f"{path}: holds no trial; run the stage evaluate")
    return table


def _read_transcripts(path: str | os.PathLike | None) -> list[dict]:
    if path is None or not Path(path).exists():
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]
