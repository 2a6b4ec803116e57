"""Draws regret against trials."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from autollm_jax.evaluation.statistics import Interval
from autollm_jax.report.figures import FAINT, INK, RULE, colours, dark, style, svg
from autollm_jax.report.formats import show_name

# By method: its mean regret and interval after 1, 2, … trials.
Curves = Mapping[str, Sequence[Interval]]


def regret_curves(
    curves: Curves, focus: str, name: str, floor: float = math.nan, floor_of: str = ""
) -> str:
    """Draw all methods' regret against trials, labelled at their ends; the focus has its band.

    Args:
      curves: by method.
      focus: the method that stands out.
      name: the figure's name, unique on a page.
      floor: the noise floor, drawn as a band from 0; nan for none.
      floor_of: the experiments that have a noise floor, in words.
    """
    with style(name, 10):
        figure = Figure(figsize=(8.2, 4.0), layout="constrained")
        draw_curves(figure.subplots(), curves, focus, floor, floor_of)
        return svg(figure)


def draw_curves(
    axes, curves: Curves, focus: str, floor: float = math.nan, floor_of: str = ""
) -> None:
    """Draw what `regret_curves` draws into axes."""
    looks = colours(list(curves), focus)
    for method in sorted(curves, key=lambda m: m == focus):
        colour, line = looks[method]
        strong = method == focus
        if strong:
            _band(axes, curves[method], colour, 0.16)
        axes.plot(
            *_series(curves[method]),
            line,
            color=colour,
            linewidth=3 if strong else 1.8,
            marker="o",
            markersize=7 if strong else 5,
            zorder=4 if strong else 3,
        )
    means = [i.mean for curve in curves.values() for i in curve]
    focus_high = max((i.high for i in curves[focus]), default=0)
    shown_floor = floor if math.isfinite(floor) else 0.0
    limit = max(0.1, *means, focus_high * 0.8, min(shown_floor, 1) * 1.1)
    limit = min(1.02, limit * 1.08)
    last = max(map(len, curves.values()))
    _ends(axes, curves, focus, last, limit * 0.062)
    if math.isfinite(floor):
        _floor(axes, floor, floor_of, limit)
    axes.set_xlim(0.85, last + 0.1)
    axes.set_ylim(-limit * 0.03, limit)
    axes.set_xticks(range(1, last + 1))
    axes.set_xlabel("trials")
    axes.set_ylabel("mean regret of the best trial so far")
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)


def method_panels(curves: Curves, focus: str, name: str) -> str:
    """Draw a small panel per method: its regret with its interval's band, the others in grey."""
    columns = min(4, len(curves))
    rows = math.ceil(len(curves) / columns)
    with style(name):
        figure = Figure(figsize=(9.4, 2.3 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        looks = colours(list(curves), focus)
        last = max(map(len, curves.values()))
        for axes, (method, curve) in zip(panels, curves.items(), strict=False):
            for other in curves.values():
                axes.plot(*_series(other), color="#DDE2E8", linewidth=1, zorder=1)
            colour, _ = looks[method]
            _band(axes, curve, colour, 0.22)
            axes.plot(*_series(curve), color=colour, linewidth=2.2, marker="o", markersize=4)
            axes.set_title(show_name(method), color=dark(colour), fontweight="bold", loc="left")
            axes.set_ylim(-0.03, 1.03)
            axes.set_xticks(range(1, last + 1))
            axes.set_xlim(0.8, last + 0.2)
            axes.grid(axis="y", color=RULE, linewidth=0.8)
        for axes in panels[len(curves) :]:
            axes.set_visible(False)
        figure.supxlabel("trials", fontsize=9)
        figure.supylabel("mean regret", fontsize=9)
        return svg(figure)


def _ends(axes, curves: Curves, focus: str, last: int, gap: float) -> None:
    """Write each method and its last regret beside the end of its line."""
    looks = colours(list(curves), focus)
    ends = [curve[-1].mean for curve in curves.values()]
    for (method, curve), end, place in zip(curves.items(), ends, _spread(ends, gap), strict=True):
        colour, _ = looks[method]
        axes.annotate(
            f"{show_name(method)}  {end:.2f}",
            (len(curve), end),
            (last + 0.16, place),
            color=dark(colour),
            va="center",
            annotation_clip=False,
            fontweight="bold" if method == focus else "normal",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.7, "relpos": (0, 0.5)},
        )


def _floor(axes, floor: float, floor_of: str, limit: float) -> None:
    """Draw the noise floor as a band from 0, named at its upper edge."""
    top = min(floor, limit)
    axes.axhspan(0, top, color=FAINT, alpha=0.16, lw=0, zorder=0)
    axes.axhline(top, color=INK, lw=0.9, ls=(0, (2, 2)), alpha=0.7, zorder=1)
    axes.annotate(
        f"noise floor {floor:.2f} ({floor_of})",
        (1, top),
        (-4, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
        zorder=8,
        bbox={"fc": "white", "ec": "none", "pad": 0.6, "alpha": 0.75},
    )


def _series(curve: Sequence[Interval]) -> tuple[range, list[float]]:
    return range(1, len(curve) + 1), [i.mean for i in curve]


def _band(axes, curve: Sequence[Interval], colour: str, alpha: float) -> None:
    low, high = [i.low for i in curve], [i.high for i in curve]
    axes.fill_between(_series(curve)[0], low, high, color=colour, alpha=alpha, lw=0, zorder=2)


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Return label places near the values, at least `gap` apart, none below 0."""
    order = np.argsort(values, kind="stable")
    places = np.array(values, float)
    floor = 0.0
    for index in order:
        places[index] = max(places[index], floor)
        floor = places[index] + gap
    return places.tolist()
