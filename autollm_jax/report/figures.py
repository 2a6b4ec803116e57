"""The shared style of the report's figures, and their conversion to SVG text."""

import contextlib
import io
import re
from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

# Okabe and Ito's colours, distinct for every colour vision; yellow is too pale for a line.
PALETTE = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F", "#8C6D31")
FOCUS = "#0B4F8A"
LINES = ("-", "--", "-.", ":")
INK, FAINT, RULE = "#1F2933", "#9AA5B1", "#E8ECF0"
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


@contextlib.contextmanager
def style(name: str, size: float = 9) -> Iterator[None]:
    """Draw in the report's style; the name makes the SVG's ids unique on a page."""
    with matplotlib.rc_context({**STYLE, "font.size": size, "svg.hashsalt": name}):
        yield


def colours(methods: Sequence[str], focus: str) -> dict[str, tuple[str, str]]:
    """Return (colour, line style) per method; the method in focus has its own."""
    others = [m for m in methods if m != focus]
    found = {
        m: (PALETTE[i % len(PALETTE)], LINES[i // len(PALETTE) % len(LINES)])
        for i, m in enumerate(others)
    }
    return {**found, focus: (FOCUS, "-")}


def dark(colour: str) -> tuple:
    """Darken a colour for text."""
    return tuple(0.62 * np.array(to_rgb(colour)) + 0.38 * np.array(to_rgb(INK)) * 0.6)


def svg(figure: Figure) -> str:
    """Return the figure as SVG text without a fixed size."""
    buffer = io.StringIO()
    # Without a date the same results give the same bytes.
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", text, count=1)
