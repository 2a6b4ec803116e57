"""Draws the regret over a space, with the trials of two methods marked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from autollm_jax.report.figures import FOCUS, INK, REGRET_COLOURS, RULE, style, svg
from autollm_jax.report.formats import show_name, show_value
from autollm_jax.report.landscape import PARTS, Axis, Grid, Strips, parts

UNMEASURED, FAILED = "#D3D8DE", "#F7EDE8"
FAILED_INK, BOX, DOT, OTHER = "#C0563B", "#B9CDE1", "#8FADC9", "#52606D"
# A strip shows more configurations than this as boxes, fewer as dots.
MOST_DOTS = 300
# The place of the share of failed runs in a strip, above regret 1.
FAILED_FROM, FAILED_TO = 1.12, 1.42


@dataclass(frozen=True)
class Mark:
    """A trial to be drawn; `focus` is False for the other method's trials."""

    number: int
    config: Mapping
    regret: float
    focus: bool


def landscape_figure(landscape: Grid | Strips, marks: Sequence[Mark], name: str) -> str:
    """Draw a grid or strips: the optimum is a star, trials are numbered."""
    draw = heat_map if isinstance(landscape, Grid) else strips
    return draw(landscape, marks, name)


def heat_map(grid: Grid, marks: Sequence[Mark], name: str) -> str:
    """Draw regret over two dimensions, failures hatched."""
    height = len(grid.regret_YX)
    with style(name):
        figure = Figure(
            figsize=(5.6, min(5.4, max(1.9, 1.35 + 0.29 * height))), layout="constrained"
        )
        draw_heat_map(figure.subplots(), grid, marks)
        return svg(figure)


def draw_heat_map(axes, grid: Grid, marks: Sequence[Mark]) -> None:
    """Draw a grid's regrets, its optimum, the trials and the scale of colours into axes."""
    height, width = grid.regret_YX.shape
    axes.set_facecolor(UNMEASURED)
    failed = grid.status_YX == "failed"
    mesh = axes.pcolormesh(
        np.arange(width + 1) - 0.5,
        np.arange(height + 1) - 0.5,
        np.ma.masked_invalid(np.where(failed, np.nan, grid.regret_YX)),
        cmap=REGRET_COLOURS,
        vmin=0,
        vmax=1,
        edgecolors="white",
        linewidth=0.6,
    )
    for y, x in np.argwhere(failed):
        _hatched(axes, x - 0.5, y - 0.5, 1, 1)
    cells: dict[tuple, dict[bool, list[int]]] = {}
    for mark in marks:
        cell = cells.setdefault(grid.cell(mark.config), {})
        cell.setdefault(mark.focus, []).append(mark.number)
    best = grid.cell(grid.best_config)
    aside = 0.2 if best in cells else 0.0
    _star(axes, best[0] + aside, best[1] + aside)
    for (x, y), numbers in cells.items():
        back = aside if (x, y) == best else 0.0
        apart = 0.24 if len(numbers) > 1 else 0.0
        for focus, shown in numbers.items():
            _number(axes, x - back, y - back + (apart if focus else -apart), shown, focus)
    _ticks(axes, grid)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = axes.figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.02, aspect=24)
    bar.outline.set_visible(False)
    bar.set_label("regret")


def strips(landscape: Strips, marks: Sequence[Mark], name: str) -> str:
    """Draw regret along each axis by itself.

    A choice has a box over the middle half of its configurations, a line to their best and a tick
    at their median. A continuous axis has a dot per configuration, or boxes where there are many.
    The share of failed runs is hatched above. The right title is the explained variance.
    """
    count = len(landscape.axes)
    columns = count if count <= 5 else 4
    rows = -(-count // columns)
    with style(name, 8):
        figure = Figure(figsize=(9.8, 2.15 * rows + 0.2), layout="constrained")
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axes, axis in zip(panels, landscape.axes, strict=False):
            _strip(axes, axis, landscape)
            _strip_marks(axes, axis, landscape, marks)
            axes.set_ylim(-0.07, 1.12 if landscape.ok_R.all() else FAILED_TO + 0.05)
            axes.set_yticks([0, 0.5, 1])
            axes.grid(axis="y", color=RULE, linewidth=0.8)
            axes.set_axisbelow(True)
            axes.set_title(show_name(axis.name), fontsize=8.5, fontweight="bold", loc="left", pad=2)
            axes.set_title(f"{axis.explained:.0%}", fontsize=7.5, loc="right", pad=2)
        for axes in panels[count:]:
            axes.set_visible(False)
        figure.supylabel("regret", fontsize=8.5)
        return svg(figure)


def _strip(axes, axis: Axis, landscape: Strips) -> None:
    ok_R, regret_R = landscape.ok_R, landscape.regret_R
    if axis.choices:
        numbers_R, places = axis.places_R.astype(int), range(len(axis.choices))
        axes.set_xticks(places, [show_value(choice) for choice in axis.choices])
        axes.set_xlim(-0.6, len(axis.choices) - 0.4)
        if sum(len(show_value(choice)) for choice in axis.choices) > 22:
            axes.tick_params(axis="x", rotation=40)
        half = 0.26
    else:
        numbers_R = parts(axis.places_R)
        places = [float(np.median(axis.places_R[numbers_R == n])) for n in range(PARTS)
                  if (numbers_R == n).any()]  # fmt: skip
        numbers_R = np.unique(numbers_R, return_inverse=True)[1]
        low, high = axis.extent
        span = high - low or 1.0
        half = 0.035 * span
        axes.set_xlim(low - 0.07 * span, high + 0.07 * span)
        if axis.bounds is not None:
            _bound_ticks(axes, axis)
    if not axis.choices and len(regret_R) <= MOST_DOTS:
        axes.scatter(axis.places_R[ok_R], regret_R[ok_R], s=9, c=DOT, alpha=0.75, lw=0, zorder=2)
    for number, place in enumerate(places):
        here_R = numbers_R == number
        good = regret_R[here_R & ok_R]
        if len(good) and (axis.choices or len(regret_R) > MOST_DOTS):
            low, quarter, middle, three, high = np.percentile(good, [0, 25, 50, 75, 100])
            axes.vlines(place, low, high, color=BOX, lw=1.1, zorder=1.5)
            box = Rectangle((place - half, quarter), 2 * half, three - quarter, fc=BOX, lw=0)
            axes.add_patch(box)
            axes.hlines(middle, place - half, place + half, color=INK, lw=1.2, zorder=2)
            axes.hlines(low, place - half, place + half, color=FOCUS, lw=1.6, zorder=2)
        if here_R.any() and not ok_R.all():
            track = (FAILED_FROM, 2 * half, FAILED_TO - FAILED_FROM)
            failed = float(1 - ok_R[here_R].mean())
            axes.add_patch(Rectangle((place - half, track[0]), *track[1:], fc=RULE, lw=0))
            _hatched(axes, place - half, track[0], track[1], failed * track[2])


def _bound_ticks(axes, axis: Axis) -> None:
    """Label a continuous axis at its bounds and halfway between them, on its own scale."""
    low, high = axis.extent
    places = [low, (low + high) / 2, high]
    axes.set_xticks(places, [show_value(10**x if axis.is_log else x) for x in places])


def _strip_marks(axes, axis: Axis, landscape: Strips, marks: Sequence[Mark]) -> None:
    """Draw the trials as dots (beside a choice's box); the focus's have their numbers."""
    low, high = axes.get_xlim()
    _star(axes, axis.place(landscape.best_config), 0, 80)
    numbered: dict[tuple, list] = {}
    for mark in marks:
        side = (-0.38 if mark.focus else 0.38) if axis.choices else 0.0
        place = axis.place(mark.config) + side
        if not mark.focus:
            axes.plot(place, mark.regret, "s", ms=4, mfc=OTHER, mec="white", mew=0.6, zorder=5)
            continue
        axes.plot(place, mark.regret, "o", ms=5, mfc=FOCUS, mec="white", mew=0.7, zorder=6)
        # Numbers that would hide each other are written as one.
        near = (round(16 * (place - low) / (high - low)), round(9 * mark.regret))
        numbered.setdefault(near, [place, mark.regret]).append(mark.number)
    for place, regret, *numbers in numbered.values():
        axes.annotate(
            ",".join(map(str, numbers)),
            (place, regret),
            (0, 3.5),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            fontweight="bold",
            color=FOCUS,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            zorder=7,
        )


def legend(other: str | None) -> str:
    """Draw the legend that all landscapes share.

    Args:
      other: the other method with marked trials; None for none.
    """
    with style(f"legend {other}", 10):
        figure = Figure(figsize=(10.4, 0.36))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, 10.4)
        axes.set_ylim(-0.18, 0.18)
        _number(axes, 0.2, 0, [1], True)
        axes.text(0.4, 0, "trial, in order", va="center")
        if other:
            _number(axes, 1.75, 0, [1], False)
            axes.text(1.95, 0, f"of {show_name(other)}", va="center")
        _star(axes, 3.9, 0)
        axes.text(4.08, 0, "optimum", va="center")
        axes.imshow(
            np.linspace(0, 1, 64)[None],
            extent=(4.95, 5.55, -0.09, 0.09),
            cmap=ListedColormap(REGRET_COLOURS(np.linspace(0, 1, 64))),
            aspect="auto",
        )
        axes.text(5.63, 0, "regret 0 to 1", va="center")
        _hatched(axes, 6.72, -0.09, 0.26, 0.18)
        axes.text(7.06, 0, "diverged, infeasible", va="center")
        axes.add_patch(Rectangle((8.6, -0.09), 0.26, 0.18, fc=UNMEASURED, ec="none"))
        axes.text(8.94, 0, "not measured", va="center")
        return svg(figure)


def _hatched(axes, x: float, y: float, width: float, height: float) -> None:
    """Fill a rectangle with the hatching of failed runs."""
    axes.add_patch(Rectangle((x, y), width, height, fc=FAILED, ec="white", lw=0.6, zorder=2))
    axes.add_patch(
        Rectangle((x, y), width, height, fill=False, ec=FAILED_INK, hatch="////", lw=0, zorder=2.1)
    )


def _star(axes, x: float, y: float, size: float = 150) -> None:
    axes.scatter(
        [x], [y], marker="*", s=size, c="#FFD23F", edgecolors=INK, linewidths=0.9, zorder=5
    )


def _number(axes, x: float, y: float, numbers: Sequence[int], focus: bool) -> None:
    """Write trial numbers: in a white circle for the focus, in a grey square for the other."""
    shape = "circle" if len(numbers) == 1 and focus else "round" if focus else "square"
    axes.annotate(
        ",".join(map(str, numbers)),
        (x, y),
        ha="center",
        va="center",
        fontsize=8,
        fontweight="bold" if focus else "normal",
        color=INK if focus else "white",
        zorder=6 if focus else 5.5,
        bbox={
            "boxstyle": f"{shape},pad=0.22",
            "fc": "white" if focus else OTHER,
            "ec": FOCUS if focus else "white",
            "lw": 1.2 if focus else 0.6,
        },
    )


def _ticks(axes, grid: Grid) -> None:
    x_choices, y_choices = grid.choices
    axes.set_xticks(range(len(x_choices)), [show_value(c) for c in x_choices])
    axes.set_yticks(range(len(y_choices)), [show_value(c) for c in y_choices])
    if sum(len(show_value(c)) for c in x_choices) > 34:
        axes.tick_params(axis="x", rotation=45)
    axes.set_xlabel(show_name(grid.names[0]))
    axes.set_ylabel(show_name(grid.names[1]))
