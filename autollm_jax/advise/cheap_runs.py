"""Which cheap run would sharpen the answer most for its cost.

A Gaussian process over configuration and fidelity tells how much a run at a cheap fidelity would
lower the variance of the proposal's score. Cost is in FLOPs where they are known.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from autollm_jax.forecasts.coordinates import project
from autollm_jax.forecasts.gaussian_process import GaussianProcess
from autollm_jax.forecasts.panel import Panel
from autollm_jax.gym.cells import SAME_CELL
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Fidelity, Setting

MOST_ROWS, MOST_FIDELITIES = 60, 8  # that are looked at: configurations, experiments nearest first


@dataclasses.dataclass(frozen=True)
class CheapRun:
    """A cheap run worth making.

    Attributes:
      config: what to run.
      fidelity: the experiment that it would belong to.
      lowers: share of the proposal's variance that it takes away.
      cost: of the run over the cost of one at the target.
    """

    config: dict
    fidelity: str
    lowers: float
    cost: float


def most_telling(
    panel: Panel, evidence: Sequence[Experiment], setting: Setting, row: int
) -> CheapRun | None:
    """Return the cheap run with the greatest gain for its cost; None where no process was fitted.

    Args:
      panel: the advisers, a Gaussian process among them.
      evidence: experiments of cheaper fidelities.
      setting: the target.
      row: the proposal.
    """
    process = next((m for m in panel.members if isinstance(m, GaussianProcess)), None)
    costs = [e.fidelity.flops / max(setting.fidelity.flops, 1e-300) for e in evidence]
    cheaper = [(e, cost) for e, cost in zip(evidence, costs, strict=True) if 0 < cost < 1]
    if process is None or not cheaper:
        return None
    cheaper = [*cheaper[:MOST_FIDELITIES], *_between(evidence[0], setting)]
    rows = np.linspace(0, len(setting.cells) - 1, MOST_ROWS).astype(int)
    rows = np.unique(np.append(rows, row))
    lowers_FN = process.reduction(row, rows, [e.fidelity for e, _ in cheaper])
    found = []
    for (asked, cost), lowers_N in zip(cheaper, lowers_FN, strict=True):
        made_ND = np.full((1, setting.space.width), np.inf)
        if isinstance(asked, Experiment):
            made_ND = project(asked.configurations, asked.space, setting.space, setting.default)
        for place in np.argsort(-lowers_N):
            unit_D = setting.units_RD[rows[place]]
            if (np.abs(made_ND - unit_D).max(1) > SAME_CELL).all():
                lowers = float(lowers_N[place])
                run = CheapRun(dict(setting.configurations[rows[place]]), asked.name, lowers, cost)
                # A fourth root: nobody wants ten thousand tiny runs.
                found.append((lowers / cost**0.25, run))
                break
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _between(nearest: Experiment, setting: Setting) -> list[tuple[Setting, float]]:
    """Return a size halfway between the nearest experiment and the target, and its cost."""
    low, high = nearest.fidelity, setting.fidelity
    parameters, tokens, flops = (
        float(np.sqrt(getattr(low, name) * getattr(high, name)))
        for name in ("parameters", "tokens", "flops")
    )
    # Where the runs say no tokens, their steps or epochs stand for them.
    length = next((n for n in ("steps", "epochs", "hours") if f"{n}=" in nearest.name), "tokens")
    known = {"parameters": parameters, length: tokens}
    name = ",".join(f"{key}={value:.2g}" for key, value in known.items() if value)
    fidelity = Fidelity("low", parameters, tokens, flops)
    cost = flops / max(high.flops, 1e-300)
    return [(dataclasses.replace(setting, name=name, fidelity=fidelity), cost)] if cost < 1 else []
