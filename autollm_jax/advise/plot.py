"""A page that shows a question and its answer: evidence, drift of the optimum, prediction."""

import html
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from autollm_jax.advise.advisor import Advice, Advisor
from autollm_jax.advise.words import advice_text
from autollm_jax.gym.spaces import Dimension
from autollm_jax.report.figures import FAINT, FOCUS, INK, RULE, style, svg

MOST_AXES = 4
SIZES = matplotlib.colormaps["viridis_r"]
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>What to try next</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;
color:#1F2933}}figure{{margin:0;overflow-x:auto}}svg{{width:100%;min-width:34rem;max-width:64rem;
height:auto}}pre{{white-space:pre-wrap;background:#F5F7FA;
padding:1rem;border-radius:6px}}h2{{font-size:1.1rem;margin-top:2rem}}p{{color:#52606D}}</style>
<h1>What to try next</h1><pre>{words}</pre>
<h2>Your runs, by size, and what is expected at the target</h2>
<p>Regret: 0 is the best run of a size, 1 its median run.
Points: your runs, dark ones dearer; a ring is the best of a size. Line: the least regret that
the advisers together expect at the target. Dashed: the proposal. Numbers: expensive runs.</p>
<figure>{landscape}</figure>
<h2>How the best value moves with size</h2>
<p>The best run of each size, and the proposal at the target.</p>
<figure>{drift}</figure>
</html>
"""


def page(advisor: Advisor, advice: Advice) -> str:
    """Return an HTML page without any part from elsewhere."""
    axes = _numeric(advisor)
    return PAGE.format(
        words=html.escape(advice_text(advisor, advice)),
        landscape=_landscape(advisor, advice, axes)
        if axes
        else "<p>No numeric hyperparameter.</p>",
        drift=_drift(advisor, advice, axes) if axes else "",
    )


def _numeric(advisor: Advisor) -> list[Dimension]:
    """Return the numeric dimensions, those that explain most of the nearest experiment first."""
    space, evidence = advisor.question.setting.space, advisor.question.evidence
    numeric = [d for d in space.dimensions if d.is_numeric]
    if evidence:
        nearest = evidence[0]
        regrets_R = nearest.outcomes.regrets_R

        def explained(dimension: Dimension) -> float:
            x_R = np.array(
                [dimension.to_unit(c[dimension.name])[0] for c in nearest.configurations]
            )
            degree = min(len(np.unique(x_R)) - 1, 2)
            if degree == 0 or len(x_R) < 4:
                return 0.0
            fitted_R = np.polyval(np.polyfit(x_R, regrets_R, degree), x_R)
            return float(fitted_R.var())

        numeric.sort(key=lambda d: -explained(d))
    return numeric[:MOST_AXES]


def _axes_of(figure: Figure, dimensions: Sequence[Dimension]) -> list:
    made = figure.subplots(1, len(dimensions), squeeze=False, sharey=True)[0]
    for axes, dimension in zip(made, dimensions, strict=True):
        if dimension.is_log:
            axes.set_xscale("log")
        axes.set_xlim(*_limits(dimension))
        axes.set_xlabel(dimension.name)
        axes.grid(axis="y", color=RULE)
    return list(made)


def _limits(dimension: Dimension) -> tuple[float, float]:
    """Return the ends of an axis: of all that may be chosen, and a little more."""
    low, high = map(float, dimension.extent)
    if low == high:
        return (0.9 * low, 1.1 * high) if low > 0 else (low - 1.0, high + 1.0)
    if dimension.is_log:
        margin = (high / low) ** 0.05
        return low / margin, high * margin
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def _landscape(advisor: Advisor, advice: Advice, dimensions: Sequence[Dimension]) -> str:
    question, panel = advisor.question, advisor.panel
    setting = question.setting
    predicted_R = panel.predict(question.trials).mean_R
    predicted_R = np.clip(predicted_R - predicted_R.min(), 0, 1.2)
    with style("landscape", 9):
        figure = Figure(figsize=(3.2 * len(dimensions) + 0.8, 3.2), layout="constrained")
        for axes, dimension in zip(_axes_of(figure, dimensions), dimensions, strict=True):
            for place, experiment in enumerate(reversed(question.evidence)):
                colour = SIZES((place + 0.5) / len(question.evidence))
                x_R = [config[dimension.name] for config in experiment.configurations]
                axes.scatter(x_R, experiment.outcomes.regrets_R, s=9, color=colour, alpha=0.6)
                best = experiment.outcomes.best_row
                axes.scatter([x_R[best]], [0], s=50, facecolors="none", edgecolors=[colour])
            x_R = np.array([config[dimension.name] for config in setting.configurations], float)
            values, least = _envelope(x_R, predicted_R)
            axes.plot(values, least, color=FOCUS)
            for trial in question.trials:
                if trial.config is not None and trial.row is not None:
                    axes.annotate(str(trial.number), (trial.config[dimension.name],
                                  predicted_R[trial.row]), color=INK, weight="bold")  # fmt: skip
            if advice.ranked:
                axes.axvline(advice.config[dimension.name], color=FOCUS, linestyle="--")
        figure.axes[0].set_ylabel("regret, in the range from best to median")
        return svg(figure)


def _envelope(x_R: np.ndarray, y_R: np.ndarray, parts: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Return the least y along x, in parts of about as many points."""
    order = np.argsort(x_R, kind="stable")
    values = np.unique(x_R)
    if len(values) <= parts:
        return values, np.array([y_R[x_R == value].min() for value in values])
    pieces = np.array_split(order, parts)
    return (
        np.array([np.median(x_R[piece]) for piece in pieces]),
        np.array([y_R[piece].min() for piece in pieces]),
    )


def _drift(advisor: Advisor, advice: Advice, dimensions: Sequence[Dimension]) -> str:
    question = advisor.question
    sizes = [e.fidelity.flops for e in question.evidence]
    with style("drift", 9):
        figure = Figure(figsize=(3.2 * len(dimensions) + 0.8, 2.6), layout="constrained")
        for axes, dimension in zip(_axes_of(figure, dimensions), dimensions, strict=True):
            best = [
                e.configurations[e.outcomes.best_row][dimension.name] for e in question.evidence
            ]
            axes.scatter(best, sizes, color=FAINT, s=22)
            if advice.ranked:
                axes.scatter([advice.config[dimension.name]], [question.setting.fidelity.flops],
                             marker="*", s=120, color=FOCUS)  # fmt: skip
            if min([*sizes, question.setting.fidelity.flops]) > 0:
                axes.set_yscale("log")
        figure.axes[0].set_ylabel("size of a run")
        return svg(figure)
