"""Draws cumulative FLOPs against the number of configured experiments."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from autollm_jax.evaluation.cost import Group, break_even
from autollm_jax.report.figures import FAINT, RULE, colours, style, svg
from autollm_jax.report.formats import show_magnitude, show_name, show_task

MOST = 10_000  # experiments


def cost_panels(groups: Sequence[Group], focus: str, name: str) -> str:
    """Draw each group's cumulative FLOPs, both axes logarithmic; break-even is a dashed line.

    Args:
      groups: costs; a group of unknown FLOPs is left out, and at least one must be known.
      focus: the method that stands out.
      name: the figure's name, unique on a page.
    """
    groups = [group for group in groups if math.isfinite(group.run)]
    columns = min(2, len(groups))
    rows = math.ceil(len(groups) / columns)
    number_N = np.unique(np.geomspace(1, MOST, 60).round())
    with style(name):
        figure = Figure(figsize=(4.9 * columns, 2.7 * rows + 0.5), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        looks = colours(list(groups[0].lines), focus)
        for axes, group in zip(panels, groups, strict=False):
            for method, line in sorted(group.lines.items(), key=lambda item: item[0] == focus):
                colour, dash = looks[method]
                axes.plot(
                    number_N, line.at(number_N), dash, color=colour,
                    linewidth=2.6 if method == focus else 1.3, label=show_name(method),
                )  # fmt: skip
            even, _ = break_even(group, focus)
            if even <= MOST:
                axes.axvline(even, color=FAINT, linewidth=1, linestyle="--")
            says = f"from {show_magnitude(even)} on" if math.isfinite(even) else "never cheapest"
            axes.set_title(f"{show_task(group.name)}: {says}", loc="left", fontsize=9)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.grid(color=RULE, linewidth=0.8)
        for axes in panels[len(groups) :]:
            axes.set_visible(False)
        for axes in panels[: len(groups)][-columns:]:
            axes.set_xlabel("configured experiments")
        figure.supylabel("cumulative FLOPs", fontsize=9)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False
        )
        return svg(figure)
