"""A page that shows a question and its answer: evidence, drift of the optimum, prediction."""

import html
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from autollm_jax.advise.advisor import Advice, Advisor
from autollm_jax.advise.axes import Axis, axes_of
from autollm_jax.advise.words import advice_text
from autollm_jax.gym.experiments import Experiment
from autollm_jax.report.figures import FAINT, FOCUS, INK, RULE, style, svg

MOST_AXES = 6
MOST_NAMED = 10  # sizes in the legend
ENVELOPE = 24  # points of the predicted line, about
HIGHEST = 1.2  # regret that is drawn
TALLEST_TICKS = 8  # sizes that are named at the axis of sizes
SIZES = matplotlib.colormaps["viridis_r"]
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>What to try next</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto;
  padding: 0 1rem; color: #1F2933 }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 .5rem }} p {{ color: #52606D; margin: .5rem 0 }}
.words {{ font: 13px/1.55 ui-monospace, monospace; background: #F5F7FA; padding: 1rem;
  border-radius: 6px; overflow-wrap: anywhere }}
.words div {{ white-space: pre-wrap; padding-left: 4ch; text-indent: -4ch }}
.figures {{ display: grid; gap: .5rem 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)) }}
figure {{ margin: 0; max-width: 34rem }} svg {{ width: 100%; height: auto; display: block }}
ul {{ list-style: none; padding: 0; margin: .5rem 0; display: flex; flex-wrap: wrap;
  gap: .1rem 1.2rem; font-size: 13px }}
li {{ overflow-wrap: anywhere }}
li b {{ display: inline-block; min-width: 1.6em; text-align: center }}
details {{ margin-top: 1rem }} summary {{ cursor: pointer; color: #52606D }}
</style>
<h1>What to try next</h1>
<div class="words">{words}</div>
<details><summary>How your file was understood</summary>
<div class="words">{understood}</div></details>
<h2>Your runs, by size, and what is expected at the target</h2>
<p>Regret: 0 is the best configuration, 1 no better than the median one. Of your runs it is that
within their size.</p>
<ul class="legend">{legend}</ul>
<div class="figures">{landscapes}</div>
<h2>How the best value moves with size</h2>
<p>The best run of each size, from the cheapest up, and the proposal at the target (star).</p>
<div class="figures">{drifts}</div>
</html>
"""
MARKS = (  # symbol, its colour, and what it stands for; then the sizes' dots
    ("◯", FAINT, "the best run of a size"),
    ("×", FAINT, "diverged or infeasible"),
    ("━━", FOCUS, "the least regret that the advisers together expect at the target"),
    ("╍╍", FOCUS, "the proposal"),
)


def page(advisor: Advisor, advice: Advice) -> str:
    """Return an HTML page without any part from elsewhere."""
    question = advisor.question
    axes = axes_of(question.setting.space, next(iter(question.evidence), None), MOST_AXES)
    return PAGE.format(
        words=_lines(advice_text(advisor, advice)),
        understood=_lines(advisor.describe()),
        legend="".join(f"<li>{entry}</li>" for entry in _legend(advisor)),
        landscapes=_figures(_landscape(advisor, advice, axis) for axis in axes),
        drifts=_figures(_drift(advisor, advice, axis) for axis in axes),
    )


def _lines(text: str) -> str:
    return "".join(f"<div>{html.escape(line)}</div>" for line in text.splitlines())


def _figures(drawn) -> str:
    return "".join(f"<figure>{each}</figure>" for each in drawn)


def _coloured(advisor: Advisor) -> list[tuple[Experiment, str]]:
    """Return the experiments with their colours, the cheapest first; dearer ones are darker."""
    evidence = sorted(advisor.question.evidence, key=lambda e: e.fidelity.flops)
    shades = np.linspace(0.1, 1.0, len(evidence)) if len(evidence) > 1 else [0.6]
    return [(e, to_hex(SIZES(shade))) for e, shade in zip(evidence, shades, strict=True)]


def _legend(advisor: Advisor) -> list[str]:
    """Name each size by its colour, and every mark that is drawn."""
    coloured = _coloured(advisor)
    named = np.unique(np.linspace(0, len(coloured) - 1, min(len(coloured), MOST_NAMED)).astype(int))
    marks = [
        ("●", coloured[place][1], f"{coloured[place][0].name}: {_rows(coloured[place][0])}")
        for place in named[::-1]
    ]
    if hidden := len(coloured) - len(named):
        marks.append(("", INK, f"and {hidden} sizes between these"))
    marks += MARKS
    if advisor.question.trials:
        marks.append(("1", INK, "an expensive run, by its number"))
    return [f'<b style="color:{colour}">{mark}</b> {html.escape(t)}' for mark, colour, t in marks]


def _rows(experiment: Experiment) -> str:
    count = int(experiment.outcomes.runs_R.sum())
    return f"{count} run{'' if count == 1 else 's'}"


def _landscape(advisor: Advisor, advice: Advice, axis: Axis) -> str:
    """Draw all runs along one axis, and the least regret that is expected there."""
    question, panel = advisor.question, advisor.panel
    predicted_R = panel.predict(question.trials).mean_R
    predicted_R = np.clip(predicted_R - predicted_R.min(), 0, HIGHEST)
    with style(f"landscape {axis.name}", 9):
        figure, axes = _figure(axis, 2.9)
        for experiment, colour in _coloured(advisor):
            outcomes = experiment.outcomes
            x_R = np.array([axis.value(config) for config in experiment.configurations])
            for ran_R, mark in ((outcomes.ok_R, "o"), (~outcomes.ok_R, "x")):
                axes.scatter(x_R[ran_R], outcomes.regrets_R[ran_R], s=14, color=colour,
                             alpha=0.7, marker=mark, linewidths=0.8)  # fmt: skip
            best = outcomes.best_row
            axes.scatter([x_R[best]], [0], s=60, facecolors="none", edgecolors=[colour])
        x_R = np.array([axis.value(config) for config in question.setting.configurations])
        values, least = _envelope(x_R, predicted_R)
        axes.plot(values, least, "-" if axis.is_ordered else "_", color=FOCUS, markersize=14)
        for trial in question.trials:
            if trial.config is not None and trial.row is not None:
                axes.annotate(
                    str(trial.number), (axis.value(trial.config), predicted_R[trial.row]),
                    (5, 5), textcoords="offset points", color=INK, weight="bold", zorder=4,
                    bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8,
                          "edgecolor": "none"},
                )  # fmt: skip
        if advice.ranked:
            axes.axvline(axis.value(advice.config), color=FOCUS, linestyle="--", linewidth=1.2)
        axes.set_ylim(-0.08, HIGHEST + 0.05)
        axes.set_ylabel("regret")
        return svg(figure)


def _figure(axis: Axis, height: float):
    figure = Figure(figsize=(3.7, height), layout="constrained")
    axes = figure.subplots()
    axis.lay_out(axes)
    axes.grid(axis="y", color=RULE)
    axes.set_axisbelow(True)
    return figure, axes


def _envelope(x_R: np.ndarray, y_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the least y along x, in ENVELOPE parts of about as many points."""
    order = np.argsort(x_R, kind="stable")
    values = np.unique(x_R)
    if len(values) <= ENVELOPE:
        return values, np.array([y_R[x_R == value].min() for value in values])
    pieces = np.array_split(order, ENVELOPE)
    return (
        np.array([np.median(x_R[piece]) for piece in pieces]),
        np.array([y_R[piece].min() for piece in pieces]),
    )


def _drift(advisor: Advisor, advice: Advice, axis: Axis) -> str:
    """Draw the best value of each size, cheap ones below, and the proposal above them."""
    setting, coloured = advisor.question.setting, _coloured(advisor)
    sizes = [e.fidelity.flops for e, _ in coloured]
    best = [axis.value(e.configurations[e.outcomes.best_row]) for e, _ in coloured]
    with style(f"drift {axis.name}", 9):
        figure, axes = _figure(axis, 2.4)
        axes.plot(best, sizes, color=FAINT, linewidth=0.8, zorder=1)
        axes.scatter(best, sizes, color=[colour for _, colour in coloured], s=26, zorder=2)
        target = setting.fidelity.flops
        if advice.ranked:
            axes.scatter([axis.value(advice.config)], [target],
                         marker="*", s=120, color=FOCUS, zorder=3)  # fmt: skip
        if min([*sizes, target]) > 0:
            axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        ticks = _some([*sizes, target])
        axes.set_yticks(ticks, [f"{tick:.1e}" for tick in ticks])
        known = setting.fidelity.parameters > 0 and setting.fidelity.tokens > 0
        axes.set_ylabel("FLOPs of a run" if known else "size of a run")
        return svg(figure)


def _some(sizes: Sequence[float]) -> list[float]:
    """Return sizes to name at an axis: the least and the largest, others well apart from these."""
    low, high = min(sizes), max(sizes)
    if low <= 0 or low == high:
        return sorted({low, high})
    step = np.log(high / low) / TALLEST_TICKS
    kept = [low]
    for size in sorted(sizes):
        if np.log(size / kept[-1]) >= step and np.log(high / size) >= step:
            kept.append(size)
    return [*kept, high]
