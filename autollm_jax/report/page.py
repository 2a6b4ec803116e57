"""Writes report/summary.json and the self-contained page report/index.html."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from autollm_jax.errors import UserError
from autollm_jax.evaluation import comparisons, proof
from autollm_jax.evaluation.ceiling import ceilings
from autollm_jax.evaluation.cost import Spending, cost_groups, summarise_costs
from autollm_jax.evaluation.reasoning import summarise_claims
from autollm_jax.evaluation.summary import (
    ALL,
    Results,
    experiment_id,
    summarise,
    summarise_differences,
)
from autollm_jax.files import read_json_lines, write_atomic, write_json_atomic
from autollm_jax.gym.experiments import Experiment
from autollm_jax.report import details, maps
from autollm_jax.report.curves import method_panels
from autollm_jax.report.formats import show_name, show_task

GLOSSARY = {
    "task": "What is being configured: pretraining, architecture, grpo or data_mixture.",
    "experiment": "One concrete setting of a task: a model size, a number of tokens, an objective, "
    "a space of configurations and the measured outcome of each.",
    "setting": "Experiments that are answered by the same runs, because they differ in their "
    "objective or limit alone. They are resampled together.",
    "trial": "One configuration that a method asked for. It spends one of the budget.",
    "evidence": "The cheaper experiments' outcomes. Every method sees the same.",
    "regret": "clip((y - best) / (median - best), 0, 1) over the experiment's table: 0 is the best "
    "measured configuration, 1 is no better than a middling one. Diverged runs score 1. After k "
    "trials it is that of the best of the first k.",
    "all tasks": "The mean of the tasks' means, each the mean over its experiments: a task with "
    "many experiments weighs no more than another.",
    "interval": "95 % bootstrap interval. Within each task settings are resampled, within these "
    "their experiments, within these the seeds. With a single experiment nothing is known of "
    "others, and it is the whole range; with two settings it covers the truth in about 60 % of "
    "cases, with three in 80, with four in 90, with six or more in about 95 %.",
    "difference": "Regret of one method minus another's, paired by experiment and seed. It counts "
    "as shown only where its interval excludes 0.",
    "noise floor": "The deviation between seeds of the same configuration (pooled, of those no "
    "worse than the median) over |median - best|, so in units of regret. What differs by less, "
    "another seed may put the other way round. Known where configurations were run twice; in "
    "means it counts 1 at most. A difference is compared with it where every experiment has one.",
    "matched": "The proposed configuration was not measured; the nearest measured one answered.",
    "invalid": "The proposal held nothing that could be run. It spends a trial and scores 1.",
    "claim": "A statement of the thinking that can be checked: a number or a direction. Each is "
    "checked against the tables that were seen, not against the prompt's words.",
    "could be known": "The regret of somebody who reads the held-out table itself: each "
    "configuration is predicted from all the others in it. What is left is the luck of single "
    "runs, and what no smooth landscape explains. A yardstick, no method.",
    "break-even": "The number of experiments from which the agent's cumulative cost, training "
    "included, stays below every other method's.",
    "held out": "Not seen in training, by any method: its outcomes come from trials alone.",
}


def write_report(
    results_path: str | os.PathLike,
    experiments: Sequence[Experiment],
    transcripts_path: str | os.PathLike | None,
    out_dir: str | os.PathLike,
    agent_method: str = "agent",
    provenance: Mapping | None = None,
    stress_paths: Mapping[str, Path] | None = None,
    spending: Spending | None = None,
    predict: Callable[[Experiment], np.ndarray] | None = None,
) -> dict:
    """Write the summary and the page.

    Args:
      results_path: `results.parquet`.
      experiments: the scored experiments, sealed or open; those without results are left out.
      transcripts_path: `transcripts.jsonl`; None or missing where there is none.
      out_dir: where `summary.json` and `index.html` go.
      agent_method: the method in focus; where it is not in the results, the best one is.
      provenance: what to state about the run: nested mappings of plain values.
      stress_paths: `results.parquet` of each stress, by its label.
      spending: what training and evidence cost; without it there is no section on cost.
      predict: predicts an experiment's cells from one another (`ceiling.ceilings`); without it
        nothing is said of what could be known.

    Returns:
      The summary: see `summarise`, and under "difference", "claims", "stress", "cost" and "ceiling"
      `summarise_differences`, `summarise_claims`, `summarise_stress`, `summarise_costs` and
      `ceilings` (the last two only with `spending` and `predict`).

    Raises:
      UserError: the results cannot be read or hold no trial.
    """
    table = _read_results(Path(results_path))
    rows = table.to_pylist()
    scored = {experiment_id(row) for row in rows}
    opened = [e for e in sorted(experiments, key=lambda e: e.id) if e.id in scored]
    results = Results(table, opened)
    transcripts = _read_transcripts(transcripts_path)
    stressed = proof.stress_results(stress_paths or {}, opened)
    groups = cost_groups(results, opened, spending, transcripts) if spending else []
    summary = summarise(results) | {
        "difference": summarise_differences(results, agent_method),
        "claims": summarise_claims(transcripts),
        "stress": proof.summarise_stress(stressed),
    }
    if spending:
        summary["cost"] = summarise_costs(groups, agent_method, spending)
    if predict:
        summary["ceiling"] = ceilings(results, opened, predict)
    page = render(
        results,
        rows,
        opened,
        transcripts,
        agent_method,
        provenance or {},
        {
            "claims": proof.claim_rows(summary["claims"], agent_method),
            "stress": proof.stress_rows(results, stressed, agent_method) if stressed else [],
            "ceiling": proof.ceiling_rows(results, summary.get("ceiling", {}), agent_method),
            "cost": proof.cost_view(groups, agent_method, spending.training) if spending else None,
        },
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
    proofs: Mapping,
) -> str:
    """Return the page.

    Args:
      results: the results.
      rows: the same, row by row.
      experiments: those of the results, open.
      transcripts: of any methods.
      agent_method: the method in focus, or the best one where it is not in the results.
      provenance: see `write_report`.
      proofs: what the sections on claims, stress, ceiling and cost show; empty ones are left out.
    """
    has_agent = agent_method in results.methods
    focus = agent_method
    if not has_agent:
        focus = min(results.methods, key=lambda m: results.curve(m, ALL)[-1].mean)
    methods = [focus, *(m for m in results.methods if m != focus)]
    drawn = details.choose_drawn(results, experiments, focus)
    several = len(results.tasks) > 1
    # With one task, "all" is that task again.
    main_task = ALL if several else results.tasks[0]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autollm_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html").render(
        has_agent=has_agent,
        focus=focus,
        methods=methods,
        tasks=results.tasks,
        budgets=results.budgets,
        budget=results.budget,
        counts=_counts(results, rows),
        cards=comparisons.cards(results, focus),
        overview=comparisons.block(results, ALL, methods) if several else None,
        by_task=comparisons.side_by_side(results, methods, [(t, None) for t in results.tasks]),
        sections=[
            _section(results, task, rows, experiments, transcripts, methods, drawn)
            for task in results.tasks
        ],
        panels=method_panels({m: results.curve(m, main_task) for m in methods}, focus, "panels"),
        main_task=main_task,
        trials=[
            {"method": m, "invalid": results.invalid_rate[m], "matched": results.matched_rate[m]}
            for m in methods
        ],
        validity=proof.validity_rows(results, focus),
        **proofs,
        provenance=_flatten(provenance),
        glossary=GLOSSARY,
        label=show_name,
        label_task=show_task,
    )


def _section(results, task, rows, experiments, transcripts, methods, drawn) -> dict:
    """Return all of a task's section."""
    focus = methods[0]
    other = comparisons.best_other(results, focus, task)
    own = [e for e in experiments if e.task == task]
    sources = results.sources[task]
    rows_of: dict[str, list] = {}
    for row in rows:
        rows_of.setdefault(experiment_id(row), []).append(row)
    return {
        **comparisons.block(results, task, methods),
        "other": other,
        "sources": sources,
        "by_source": comparisons.side_by_side(results, methods, [(task, s) for s in sources]),
        "table": [details.experiment_row(results, e, focus, other) for e in own],
        "drawn": [details.landscape(e, rows_of[e.id], focus, other) for e in own if e.id in drawn],
        "legend": maps.legend(other),
        "episode": details.episode(results, transcripts, focus, task),
    }


def _counts(results: Results, rows: Sequence[Mapping]) -> dict:
    return {
        "experiments": len(results.floors),
        "methods": len(results.methods),
        "seeds": len({row["seed"] for row in rows}),
        "levels": ", ".join(sorted({row["fidelity"] for row in rows})),
    }


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
    return read_json_lines(path, remedy="run --stage=evaluate again")
