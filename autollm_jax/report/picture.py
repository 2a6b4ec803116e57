"""Draws the picture of an evaluation: one held-out landscape, and regret against trials."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from autollm_jax.evaluation.summary import ALL, Results, experiment_id
from autollm_jax.gym.experiments import Experiment
from autollm_jax.report.curves import draw_curves
from autollm_jax.report.details import first_seed, marks_of
from autollm_jax.report.figures import style, svg
from autollm_jax.report.formats import show_magnitude, show_name
from autollm_jax.report.landscape import Grid, lay_out
from autollm_jax.report.maps import draw_heat_map

OTHERS = 4  # methods beside the one in focus: the best ones after the last trial
YARDSTICK = "random"  # drawn too, where it was scored


def picture(
    results: Results, rows: Sequence[Mapping], experiments: Sequence[Experiment], focus: str
) -> str | None:
    """Draw a landscape with the focus's numbered trials beside the regret curves, as SVG.

    The landscape is that of the grid, of one or two dimensions, where the focus's final regret is
    the median: neither its best nor its worst.

    Args:
      results: the results.
      rows: the same, one mapping per trial.
      experiments: the scored experiments.
      focus: the method in focus.

    Returns:
      The figure; None where no scored experiment is such a grid.
    """
    grids = [(e, laid_out) for e in experiments if isinstance(laid_out := lay_out(e), Grid)]
    if not grids:
        return None
    grids.sort(key=lambda pair: (float(results.regret(focus, pair[0].id)[-1]), pair[0].id))
    experiment, grid = grids[len(grids) // 2]
    own = first_seed([row for row in rows if experiment_id(row) == experiment.id], focus)
    everything = ALL if len(results.tasks) > 1 else results.tasks[0]
    curves = {method: results.curve(method, everything) for method in results.methods}
    others = sorted(curves.keys() - {focus, YARDSTICK}, key=lambda m: (curves[m][-1].mean, m))
    shown = [focus, *others[:OTHERS], *({YARDSTICK} & curves.keys() - {focus})]
    with style("picture", 10):
        figure = Figure(figsize=(11.5, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
        draw_heat_map(left, grid, marks_of(own, True))
        size, tokens = experiment.fidelity.parameters, experiment.fidelity.tokens
        left.set_title(
            f"{show_name(focus)} configures a held-out run: {show_magnitude(size)} parameters,\n"
            f"{show_magnitude(tokens)} tokens; trials in order, the optimum a star",
            loc="left",
            fontsize=10,
        )
        draw_curves(right, {method: curves[method] for method in shown}, focus)
        right.set_title(
            f"all {len(experiments)} held-out experiments, 0 is the best configuration,\n"
            "1 no better than the median one",
            loc="left",
            fontsize=10,
        )
        return svg(figure)
