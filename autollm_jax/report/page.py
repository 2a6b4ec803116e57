"""Writes report/summary.json and the self-contained page report/index.html."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from autollm_jax.errors import UserError
from autollm_jax.evaluation.ceiling import ceilings
from autollm_jax.evaluation.cost import Spending, cost_groups, summarise_costs
from autollm_jax.evaluation.reasoning import summarise_claims
from autollm_jax.evaluation.summary import (
    ALL,
    Results,
    experiment_id,
    stress_results,
    summarise,
    summarise_differences,
    summarise_stress,
)
from autollm_jax.files import read_json_lines, write_atomic, write_json_atomic
from autollm_jax.gym.experiments import Experiment
from autollm_jax.report import comparisons, details, maps, sections
from autollm_jax.report.curves import method_panels
from autollm_jax.report.formats import show_name, show_task
from autollm_jax.report.learning import intervention_rows, learning_curves
from autollm_jax.report.picture import picture

GLOSSARY = {
    "task": "The kind of run to configure: pretraining, architecture, grpo or data_mixture.",
    "experiment": "One concrete question of a task: a model size, a number of tokens, an objective "
    "and a space of configurations, with the measured outcomes.",
    "setting": "Experiments that share their runs, because they differ in their objective or limit "
    "alone. The bootstrap resamples them together.",
    "trial": "One configuration that a method asked for. It spends one of the budget.",
    "evidence": "The outcomes of the cheaper experiments. Every method sees the same.",
    "measured": "The number of configurations that were run, of all cells of the space's grid. A "
    "space with a mixture or a continuous dimension has no grid; there the runs are counted beside "
    "the configurations. Those over a limit were not run.",
    "regret": "clip((y - best) / (median - best), 0, 1) over the experiment's table: 0 is the best "
    "configuration, 1 no better than the median one. Diverged runs score 1. After k trials it is "
    "the regret of the best of the first k.",
    "all tasks": "The mean of the tasks' means, each the mean over its experiments. A task with "
    "many experiments weighs no more than another.",
    "interval": "95 % bootstrap interval. Within each task settings are resampled, within these "
    "their experiments, within these the seeds. With a single experiment nothing is known of "
    "others, and the interval is the whole range. With two settings it covers the truth in about "
    "60 % of cases, with three in 80, with four in 90, with six or more in about 95 %.",
    "difference": "Regret of one method minus another's, paired by experiment and seed. It counts "
    "as shown only where its interval excludes 0.",
    "noise floor": "The standard deviation between seeds of the same configuration (pooled, of "
    "those no worse than the median), in units of regret. Two regrets closer than this may swap "
    "order under another seed. It is known where configurations were run twice; in means it counts "
    "1 at most. A difference is compared with it where every experiment has one.",
    "matched": "The proposed configuration was not measured; the nearest measured one answered.",
    "invalid": "The proposal held no configuration that can be run. It costs a trial and scores 1.",
    "claim": "A statement of the thinking that can be checked: a number or a direction. Each is "
    "checked against the tables, not against the words of the prompt.",
    "could be known": "The regret of a yardstick that reads the held-out table itself: it predicts "
    "each configuration from all others in the table. The rest is luck of single runs, and what no "
    "smooth landscape explains. It is not a method.",
    "break-even": "The number of experiments from which the agent's cumulative FLOPs, training "
    "included, stay below every other method's.",
    "held out": "Never seen in training. Its outcomes come from trials alone.",
}


def write_report(
    results_path: str | os.PathLike,
    experiments: Sequence[Experiment],
    out_dir: str | os.PathLike,
    *,
    agent_method: str = "agent",
    provenance: Mapping | None = None,
    stress_paths: Mapping[str, Path] | None = None,
    spending: Spending | None = None,
    predict: Callable[[Experiment], np.ndarray] | None = None,
    metrics: Sequence[Mapping] = (),
    interventions: Mapping[str, Mapping[str, float]] | None = None,
) -> dict:
    """Write the summary and the page.

    Args:
      results_path: `results.parquet`; `transcripts.jsonl` is read beside it, where there is one.
      experiments: the scored experiments; one without results is left out.
      out_dir: folder of `summary.json`, `index.html`, and `picture.svg` where a scored experiment
        is a grid of one or two dimensions.
      agent_method: the method in focus; the best one where this one has no results.
      provenance: facts about the run to show: nested mappings of plain values.
      stress_paths: `results.parquet` under each stress, by its label.
      spending: FLOPs of training and evidence; without it there is no section on cost.
      predict: predicts an experiment's outcomes from one another (`ceiling.ceilings`); without it
        there is no section on what could be known.
      metrics: rows of `metrics.jsonl`; without those of GRPO there is no section on learning.
      interventions: result of `agent.interventions.intervene`, where there is one.

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
    targets = [e for e in sorted(experiments, key=lambda e: e.id) if e.id in scored]
    results = Results(table, targets)
    transcripts = _read_transcripts(Path(results_path).with_name("transcripts.jsonl"))
    stressed = stress_results(stress_paths or {}, targets)
    groups = cost_groups(results, targets, spending, transcripts) if spending else []
    summary = summarise(results) | {
        "difference": summarise_differences(results, agent_method),
        "claims": summarise_claims(transcripts),
        "stress": summarise_stress(stressed),
    }
    if interventions:
        summary["interventions"] = interventions
    if spending:
        summary["cost"] = summarise_costs(groups, agent_method, spending)
    if predict:
        summary["ceiling"] = ceilings(results, targets, predict)
    extra = {
        "claims": sections.claim_rows(summary["claims"], agent_method),
        "stress": sections.stress_rows(results, stressed, agent_method) if stressed else [],
        "ceiling": sections.ceiling_rows(results, summary.get("ceiling", {}), agent_method),
        "cost": sections.cost_view(groups, agent_method, spending.training) if spending else None,
        "learning": jinja2.filters.Markup(learning_curves(metrics)),
        "interventions": intervention_rows(interventions or {}),
        "provenance": _flatten(provenance or {}),
    }
    scored = Scored(results, rows, targets, transcripts)
    write_json_atomic(Path(out_dir) / "summary.json", summary)
    write_atomic(Path(out_dir) / "index.html", render(scored, agent_method, extra))
    drawn = picture(results, rows, targets, focus_of(results, agent_method))
    if drawn is not None:
        write_atomic(Path(out_dir) / "picture.svg", drawn)
    return summary


def focus_of(results: Results, agent_method: str) -> str:
    """Return the method in focus: the agent's, or the best one where this one has no results."""
    if agent_method in results.methods:
        return agent_method
    return min(results.methods, key=lambda m: results.curve(m, ALL)[-1].mean)


@dataclass(frozen=True)
class Scored:
    """An evaluation as the page shows it.

    Attributes:
      results: the results.
      rows: the same, one mapping per trial.
      targets: the scored experiments.
      transcripts: of any methods.
    """

    results: Results
    rows: Sequence[Mapping]
    targets: Sequence[Experiment]
    transcripts: Sequence[Mapping]


def render(scored: Scored, agent_method: str, extra: Mapping) -> str:
    """Return the page.

    Args:
      scored: the evaluation.
      agent_method: the method in focus; the best one where this one has no results.
      extra: template values of the sections on claims, stress, ceiling, cost and provenance; a
        section without values is left out.
    """
    results = scored.results
    focus = focus_of(results, agent_method)
    methods = [focus, *(m for m in results.methods if m != focus)]
    several = len(results.tasks) > 1
    # With one task, "all" is that task again.
    main_task = ALL if several else results.tasks[0]
    return _template().render(
        has_agent=focus == agent_method,
        focus=focus,
        methods=methods,
        tasks=results.tasks,
        budgets=results.budgets,
        budget=results.budget,
        counts=_counts(results, scored.rows),
        cards=comparisons.cards(results, focus),
        overview=comparisons.block(results, ALL, methods) if several else None,
        by_task=comparisons.side_by_side(results, methods, [(t, None) for t in results.tasks]),
        sections=[_section(scored, task, methods) for task in results.tasks],
        panels=method_panels({m: results.curve(m, main_task) for m in methods}, focus, "panels"),
        main_task=main_task,
        trials=[
            {"method": m, "invalid": results.invalid_rate[m], "matched": results.matched_rate[m]}
            for m in methods
        ],
        validity=sections.validity_rows(results, focus),
        **extra,
        glossary=GLOSSARY,
        label=show_name,
        label_task=show_task,
    )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autollm_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html")


def _section(scored: Scored, task: str, methods: Sequence[str]) -> dict:
    """Return the template values of a task's section."""
    results, focus = scored.results, methods[0]
    other = comparisons.best_other(results, focus, task)
    own = [e for e in scored.targets if e.task == task]
    drawn = details.choose_drawn(results, own, focus)
    sources = results.sources[task]
    rows_of: dict[str, list] = {}
    for row in scored.rows:
        rows_of.setdefault(experiment_id(row), []).append(row)
    return {
        **comparisons.block(results, task, methods),
        "other": other,
        "sources": sources,
        "by_source": comparisons.side_by_side(results, methods, [(task, s) for s in sources]),
        "table": [details.experiment_row(results, e, focus, other) for e in own],
        "drawn": [details.landscape(e, rows_of[e.id], focus, other) for e in own if e.id in drawn],
        "legend": maps.legend(other),
        "episode": details.episode(results, scored.transcripts, focus, task),
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


def _read_transcripts(path: Path) -> list[dict]:
    return read_json_lines(path, remedy="run --stage=evaluate again") if path.exists() else []
