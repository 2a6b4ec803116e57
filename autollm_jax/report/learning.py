"""Draws what reinforcement learning changed, step by step."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from autollm_jax.report.figures import FOCUS, RULE, style, svg

# A metric of stage grpo, and what a panel calls it.
PANELS = (
    ("reward", "return of an episode"),
    ("decision_entropy", "entropy of the choice, nats"),
    ("kept_out_regret", "regret on kept-out pairs"),
)


def learning_curves(rows: Sequence[Mapping]) -> str:
    """Draw the metrics of GRPO against its steps; "" where there are none.

    Args:
      rows: of `metrics.jsonl`; those of other stages are left out.
    """
    steps = [row for row in rows if row["stage"] == "grpo"]
    shown = [(key, title) for key, title in PANELS if any(key in row for row in steps)]
    if not shown:
        return ""
    with style("learning", 9):
        figure = Figure(figsize=(8.2, 2.4), layout="constrained")
        for axes, (key, title) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown,
                                      strict=True):  # fmt: skip
            points = [(row["step"], row[key]) for row in steps if key in row]
            axes.plot(*zip(*points, strict=True), color=FOCUS, marker="o", markersize=3)
            axes.set_title(title, loc="left", fontsize=9)
            axes.set_xlabel("step of GRPO")
            axes.grid(axis="y", color=RULE)
        return svg(figure)


def intervention_rows(found: Mapping[str, Mapping[str, float]]) -> list[dict]:
    """Return a row per kind of `agent.interventions.intervene`'s result."""
    asked = {
        "trusted": "another panel is named: the letter becomes its pick",
        "reading": "the latest trial is read the other way round",
        "control": "the prompt counts one configuration more",
    }
    return [
        {
            "kind": asked[kind],
            "n": cell["n"],
            "changed": f"{cell['changed']:.0%}" if cell["n"] else "–",
            "followed": f"{cell['followed']:.0%}" if kind == "trusted" and cell["n"] else "–",
        }
        for kind, cell in found.items()
    ]
