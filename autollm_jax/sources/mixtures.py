"""Data-mixture tables: one simplex `mixture`, several objectives on the same runs.

RegMix and ADMIRE share this code: an experiment is one (model, objective), and all the experiments
of a model have the same configurations.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from autollm_jax.errors import UserError
from autollm_jax.gym.spaces import SIMPLEX_SUM_TOLERANCE, Dimension, Space
from autollm_jax.sources.csv_file import finite_number

DIMENSION = "mixture"


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run: its mixture, its metrics by column name, nan where one is missing."""

    mixture: dict[str, float]
    metrics: dict[str, float]
    name: str


@dataclasses.dataclass(frozen=True)
class Model:
    """One model that was trained on many mixtures; `fidelity` and `context` as in the JSON file."""

    name: str
    fidelity: dict
    context: dict
    runs: Sequence[Run]


def read_mixture(row: Mapping[str, str], columns: Mapping[str, str], where: str) -> dict:
    """Return the weights in `row`, normalised.

    Args:
      row: fields by upstream column.
      columns: component -> upstream column.
      where: the row's name in messages.

    Raises:
      UserError: a weight is no number of 0 or more, or they do not sum to about 1.
    """
    weights = {name: finite_number(row[c], c, where, least=0.0) for name, c in columns.items()}
    total = math.fsum(weights.values())
    if abs(total - 1) > SIMPLEX_SUM_TOLERANCE:
        raise UserError(f"{where}: the weights sum to {total:.4g}; accepted is about 1")
    return {name: weight / total for name, weight in weights.items()}


def nearest_mixture(runs: Sequence[Run], wanted: Mapping[str, float]) -> dict[str, float]:
    """Return the measured mixture nearest to `wanted` (normalised here), in Euclidean distance."""
    total = math.fsum(wanted.values())
    wanted_D = np.array([wanted[name] / total for name in runs[0].mixture])
    mixtures_RD = np.array([list(run.mixture.values()) for run in runs])
    return dict(runs[int(np.argmin(((mixtures_RD - wanted_D) ** 2).sum(axis=1)))].mixture)


def experiments_of(
    models: Sequence[Model],
    objectives: Mapping[str, str],
    goal: str,
    prior: Mapping[str, float],
    origin: str,
) -> tuple[dict, list[dict], list[str]]:
    """Make one experiment per model and objective.

    Args:
      models: with their runs, whose mixtures all have the same components.
      objectives: the objective's part of the experiment's name -> its metric column.
      goal: `minimize` or `maximize`.
      prior: the mixture that a practitioner would take; the measured mixture nearest to it is the
        default.
      origin: one sentence on the origin of the prior.

    Returns:
      The JSON file's `experiments`, the rows, and the names of experiments without any outcome.
    """
    experiments, rows, left_out = {}, [], []
    for model in models:
        space = Space((Dimension(DIMENSION, "simplex", tuple(model.runs[0].mixture)),))
        seeds = _count_repeats(space, model.runs)
        for objective, metric in objectives.items():
            name = f"{model.name}_{objective}"
            measured = [place for place, run in enumerate(model.runs) if metric in run.metrics]
            measured = [p for p in measured if math.isfinite(model.runs[p].metrics[metric])]
            if not measured:
                left_out.append(name)
                continue
            experiments[name] = {
                "context": {"objective": objective} | model.context,
                "fidelity": model.fidelity,
                "space": space.to_json(),
                "objective": {"metric": metric, "goal": goal},
                "default": {
                    DIMENSION: nearest_mixture([model.runs[p] for p in measured], prior),
                },
                "default_origin": f"{origin}; the nearest measured mixture",
            }
            rows += [_row(name, model, model.runs[p], seeds[p]) for p in measured]
    return experiments, rows, left_out


def _row(experiment: str, model: Model, run: Run, seed: int) -> dict:
    weights = {f"config.{DIMENSION}.{name}": weight for name, weight in run.mixture.items()}
    fixed = {"flops": model.fidelity["flops"], "seconds": None, "seed": seed, "status": "ok"}
    return {"experiment": experiment} | weights | run.metrics | fixed | {"run": run.name}


def _count_repeats(space: Space, runs: Sequence[Run]) -> list[int]:
    """Number the runs of each mixture from 0."""
    seen: dict = {}
    seeds = []
    for run in runs:
        key = space.key_of({DIMENSION: run.mixture})
        seeds.append(seen.get(key, 0))
        seen[key] = seeds[-1] + 1
    return seeds
