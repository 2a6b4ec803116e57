"""The report's figures, each an SVG text to be set into a page."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from autollm_jax.evaluation.landscape import Landscape
from autollm_jax.evaluation.statistics import Interval

# Okabe and Ito's colours, told apart with any colour vision; yellow is too pale for a line.
PALETTE = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F", "#8C6D31")
FOCUS = "#0B4F8A"
LINES = ("-", "--", "-.", ":")
INK, FAINT, UNMEASURED, FAILED = "#1F2933", "#9AA5B1", "#D3D8DE", "#F7EDE8"
REGRET_COLOURS = matplotlib.colormaps["YlGnBu_r"]
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Segoe UI", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "auto",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "hatch.color": "#C0563B",
    "hatch.linewidth": 0.8,
}


@dataclass(frozen=True)
class Curve:
    """A method's mean regret and interval after 1, 2, … trials."""

    method: str
    intervals: tuple[Interval, ...]


@dataclass(frozen=True)
class Mark:
    """A trial to be drawn on a landscape."""

    number: int
    config: Mapping


def colours(methods: Sequence[str], focus: str) -> dict[str, tuple[str, str]]:
    """Return colour and line style per method; the method in focus has its own."""
    others = [m for m in methods if m != focus]
    found = {
        m: (PALETTE[i % len(PALETTE)], LINES[i // len(PALETTE) % len(LINES)])
        for i, m in enumerate(others)
    }
    return {**found, focus: (FOCUS, "-")}


def regret_curves(curves: Sequence[Curve], focus: str, name: str) -> str:
    """Draw all methods' regret against trials, labelled at their ends; the focus has its band."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(8.2, 4.3), layout="constrained")
        axes = figure.subplots()
        style = colours([c.method for c in curves], focus)
        for curve in sorted(curves, key=lambda c: c.method == focus):
            colour, line = style[curve.method]
            trials, mean = _series(curve)
            strong = curve.method == focus
            if strong:
                _band(axes, curve, colour, 0.16)
            axes.plot(
                trials,
                mean,
                line,
                color=colour,
                linewidth=3 if strong else 1.8,
                marker="o",
                markersize=7 if strong else 5,
                zorder=4 if strong else 3,
            )
        top = max([i.mean for c in curves for i in c.intervals if math.isfinite(i.mean)] + [0.1])
        focus_high = [i.high for c in curves if c.method == focus for i in c.intervals]
        limit = min(1.02, max(top, max(focus_high, default=0) * 0.8) * 1.08)
        ends = [c.intervals[-1].mean for c in curves]
        places = _spread(ends, limit * 0.058)
        last = max(len(c.intervals) for c in curves)
        for curve, end, place in zip(curves, ends, places, strict=True):
            colour, _ = style[curve.method]
            axes.annotate(
                f"{curve.method.replace('_', ' ')}  {end:.2f}",
                (last, end),
                (last + 0.16, place),
                color=_dark(colour),
                va="center",
                annotation_clip=False,
                fontweight="bold" if curve.method == focus else "normal",
                arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.7, "relpos": (0, 0.5)},
            )
        axes.set_xlim(0.85, last + 0.1)
        axes.set_ylim(min(0.0, *places) - limit * 0.03, limit)
        _axes_words(axes, last)
        return _svg(figure)


def method_panels(curves: Sequence[Curve], focus: str, name: str) -> str:
    """Draw one small panel a method: its regret with its interval's band, the others in grey."""
    columns = min(4, len(curves))
    rows = math.ceil(len(curves) / columns)
    with matplotlib.rc_context({**STYLE, "font.size": 9, "svg.hashsalt": name}):
        figure = Figure(figsize=(9.4, 2.3 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        style = colours([c.method for c in curves], focus)
        last = max(len(c.intervals) for c in curves)
        for axes, curve in zip(panels, curves, strict=False):
            for other in curves:
                axes.plot(*_series(other), color="#DDE2E8", linewidth=1, zorder=1)
            colour, _ = style[curve.method]
            _band(axes, curve, colour, 0.22)
            axes.plot(*_series(curve), color=colour, linewidth=2.2, marker="o", markersize=4)
            axes.set_title(
                curve.method.replace("_", " "), color=_dark(colour), fontweight="bold", loc="left"
            )
            axes.set_ylim(-0.03, 1.03)
            axes.set_xticks(range(1, last + 1))
            axes.set_xlim(0.8, last + 0.2)
            axes.grid(axis="y", color="#E8ECF0", linewidth=0.8)
        for axes in panels[len(curves) :]:
            axes.set_visible(False)
        figure.supxlabel("trials", fontsize=9)
        figure.supylabel("mean regret", fontsize=9)
        return _svg(figure)


def heat_map(landscape: Landscape, marks: Sequence[Mark], name: str) -> str:
    """Draw a grid landscape: failures hatched, trials numbered, the optimum a star."""
    regret = landscape.regret_YX
    height, width = regret.shape
    with matplotlib.rc_context({**STYLE, "font.size": 9, "svg.hashsalt": name}):
        figure = Figure(
            figsize=(5.6, min(5.4, max(1.9, 1.35 + 0.29 * height))), layout="constrained"
        )
        axes = figure.subplots()
        axes.set_facecolor(UNMEASURED)
        failed = landscape.status_YX == "failed"
        shown = np.ma.masked_invalid(np.where(failed, np.nan, regret))
        mesh = axes.pcolormesh(
            np.arange(width + 1) - 0.5,
            np.arange(height + 1) - 0.5,
            shown,
            cmap=REGRET_COLOURS,
            vmin=0,
            vmax=1,
            edgecolors="white",
            linewidth=0.6,
        )
        for y, x in np.argwhere(failed):
            axes.add_patch(
                Rectangle((x - 0.5, y - 0.5), 1, 1, fc=FAILED, ec="white", lw=0.6, zorder=2)
            )
            axes.add_patch(
                Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="////", lw=0, zorder=2.1)
            )
        cells: dict[tuple, list[int]] = {}
        for mark in marks:
            cells.setdefault(landscape.cell(mark.config), []).append(mark.number)
        best_x, best_y = landscape.cell(landscape.best_config)
        shift = 0.2 if (best_x, best_y) in cells else 0.0
        _star(axes, best_x + shift, best_y + shift)
        for (x, y), numbers in cells.items():
            back = shift if (x, y) == (best_x, best_y) else 0.0
            _number(axes, x - back, y - back, numbers)
        _ticks(axes, landscape)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        bar = figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.02, aspect=24)
        bar.outline.set_visible(False)
        bar.set_label("regret")
        return _svg(figure)


def scatter_map(landscape: Landscape, marks: Sequence[Mark], name: str) -> str:
    """Draw a landscape without a grid (mixtures) over its two most telling coordinates."""
    with matplotlib.rc_context({**STYLE, "font.size": 9, "svg.hashsalt": name}):
        figure = Figure(figsize=(5.6, 4.2), layout="constrained")
        axes = figure.subplots()
        x_R, y_R = landscape.points_R2.T
        ok = landscape.status_R == "ok"
        dots = axes.scatter(
            x_R[ok], y_R[ok], c=landscape.regret_R[ok], cmap=REGRET_COLOURS, vmin=0, vmax=1, s=28
        )
        axes.scatter(x_R[~ok], y_R[~ok], marker="x", c="#C0563B", s=24)
        places: dict[tuple, list[int]] = {}
        for mark in marks:
            places.setdefault(landscape.point(mark.config), []).append(mark.number)
        best = landscape.point(landscape.best_config)
        _star(axes, *best)
        aside = 0.04 * np.ptp(landscape.points_R2, axis=0)
        for (x, y), numbers in places.items():
            step_x, step_y = aside if (x, y) == best else (0.0, 0.0)
            _number(axes, x + step_x, y + step_y, numbers)
        axes.set_xlabel(landscape.names[0])
        axes.set_ylabel(landscape.names[1])
        bar = figure.colorbar(dots, ax=axes, fraction=0.05, pad=0.02, aspect=24)
        bar.outline.set_visible(False)
        bar.set_label("regret")
        return _svg(figure)


def legend_swatches() -> str:
    """Draw the heat maps' shared legend."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "legend", "font.size": 10}):
        figure = Figure(figsize=(8.6, 0.36))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, 8.6)
        axes.set_ylim(-0.18, 0.18)
        _number(axes, 0.2, 0, [1])
        axes.text(0.42, 0, "trial, in order", va="center")
        _star(axes, 1.85, 0)
        axes.text(2.07, 0, "optimum", va="center")
        axes.imshow(
            np.linspace(0, 1, 64)[None],
            extent=(3.0, 4.1, -0.09, 0.09),
            cmap=ListedColormap(REGRET_COLOURS(np.linspace(0, 1, 64))),
            aspect="auto",
        )
        axes.text(4.2, 0, "regret 0 to 1", va="center")
        axes.add_patch(Rectangle((5.4, -0.09), 0.26, 0.18, fc=FAILED, ec="none"))
        axes.add_patch(Rectangle((5.4, -0.09), 0.26, 0.18, fill=False, hatch="////", lw=0))
        axes.text(5.76, 0, "diverged, infeasible", va="center")
        axes.add_patch(Rectangle((7.4, -0.09), 0.26, 0.18, fc=UNMEASURED, ec="none"))
        axes.text(7.76, 0, "not measured", va="center")
        return _svg(figure)


def show_value(value) -> str:
    """Write a choice as a short plain value: 3.5e-4, 256, 1.5."""
    if isinstance(value, bool | str) or value is None:
        return str(value)
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value)}" if abs(value) < 1e6 else _scientific(value)
    return f"{value:.3g}" if 0.1 <= abs(value) < 1e6 else _scientific(value)


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _dark(colour: str) -> tuple:
    """Return a colour dark enough for words."""
    return tuple(0.62 * np.array(to_rgb(colour)) + 0.38 * np.array(to_rgb(INK)) * 0.6)


def _series(curve: Curve):
    return range(1, len(curve.intervals) + 1), [i.mean for i in curve.intervals]


def _band(axes, curve: Curve, colour: str, alpha: float) -> None:
    low, high = [i.low for i in curve.intervals], [i.high for i in curve.intervals]
    axes.fill_between(_series(curve)[0], low, high, color=colour, alpha=alpha, lw=0, zorder=2)


def _axes_words(axes, last: int) -> None:
    axes.set_xticks(range(1, last + 1))
    axes.set_xlabel("trials")
    axes.set_ylabel("mean regret of the best trial so far")
    axes.grid(axis="y", color="#E8ECF0", linewidth=0.8)
    axes.set_axisbelow(True)


def _star(axes, x: float, y: float) -> None:
    axes.scatter([x], [y], marker="*", s=150, c="#FFD23F", edgecolors=INK, linewidths=0.9, zorder=5)


def _number(axes, x: float, y: float, numbers: Sequence[int]) -> None:
    shape = "circle,pad=0.22" if numbers[1:] == [] and numbers[0] < 10 else "round,pad=0.25"
    axes.annotate(
        ",".join(map(str, numbers)),
        (x, y),
        ha="center",
        va="center",
        fontsize=8,
        fontweight="bold",
        color=INK,
        zorder=6,
        bbox={"boxstyle": shape, "fc": "white", "ec": INK, "lw": 1},
    )


def _ticks(axes, landscape: Landscape) -> None:
    x_choices, y_choices = landscape.choices
    axes.set_xticks(range(len(x_choices)), [show_value(c) for c in x_choices])
    axes.set_yticks(range(len(y_choices)), [show_value(c) for c in y_choices])
    if sum(len(show_value(c)) for c in x_choices) > 34:
        axes.tick_params(axis="x", rotation=45)
    axes.set_xlabel(landscape.names[0].replace("_", " "))
    axes.set_ylabel(landscape.names[1].replace("_", " "))


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Return label places near the values, at least `gap` apart, none below 0."""
    order = np.argsort(values, kind="stable")
    places = np.array(values, float)
    floor = 0.0
    for index in order:
        places[index] = max(places[index], floor)
        floor = places[index] + gap
    return places.tolist()


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # Without a date the same results give the same bytes.
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", text, count=1)
