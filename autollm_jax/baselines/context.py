"""A problem as arrays of one width, whatever its space: what meta-learned methods read.

Column P of the inputs is the same coordinate in every problem of a search space (a task of a
source): columns are found by the names of their axes and choices, so that a choice which only
dearer experiments have does not move the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autollm_jax.baselines import coordinates
from autollm_jax.baselines.base import Problem
from autollm_jax.baselines.evidence import gather
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.groups import Group
from autollm_jax.gym.spaces import Space

WIDTH = 32  # columns of coordinates; a space with more has some columns share a place
FIDELITIES = 2  # log parameters and log tokens, relative to the target's
INPUTS = WIDTH + 1 + FIDELITIES  # coordinates, the cell's relative size, fidelities
FIDELITY_SCALE = 3.0  # natural-log units that count as 1: a factor of 20


@dataclass(frozen=True)
class Context:
    """The evidence and the target's cells, in the target's scale.

    Attributes:
      rows_NZ: inputs of the evidence's rows, nearest experiment first.
      scores_N: their scores (see evidence.py).
      experiments_N: index of the experiment that a row is from.
      cells_RZ: inputs of the target's cells, whose relative fidelity is 0.
    """

    rows_NZ: np.ndarray
    scores_N: np.ndarray
    experiments_N: np.ndarray
    cells_RZ: np.ndarray


def search_space(experiment: Experiment) -> str:
    """Name the search space that an experiment belongs to."""
    return f"{experiment.source}/{experiment.task}"


def column_names(space: Space) -> list[str]:
    """Name each coordinate of a space (see coordinates.py)."""
    names: list[str] = []
    for axis in coordinates.axes(space):
        if isinstance(axis, Group):
            names += [f"{axis.name}:mean", f"{axis.name}:tilt"]
        elif coordinates.width(axis) == 1 and axis.kind != "categorical":
            names.append(axis.name)
        else:
            names += [f"{axis.name}={choice}" for choice in axis.choices]
    return names


def layout(experiments: Sequence[Experiment]) -> list[str]:
    """Return every column's name over the experiments of a search space, in order."""
    return list(dict.fromkeys(n for e in experiments for n in column_names(e.space)))


def read_problem(problem: Problem, known: Sequence[str], rows: int) -> Context:
    """Write a problem as arrays.

    Args:
      problem: the target, sealed or not, and its evidence.
      known: the search space's layout; empty where it was never met.
      rows: greatest number of the evidence's rows.
    """
    target = problem.experiment
    own = column_names(target.space)
    places = {name: i % WIDTH for i, name in enumerate(dict.fromkeys([*known, *own]))}
    place_D = np.array([places[name] for name in own])
    evidence = gather(problem, rows)
    cells_RD = coordinates.project(target.configurations, target.space, target.space)
    sizes_RS = coordinates.relative_sizes(target)[:, : evidence.sizes_NS.shape[1]]
    fidelities_RF = np.zeros((len(cells_RD), FIDELITIES))
    return Context(
        _inputs(evidence.points_ND, evidence.sizes_NS, evidence.fidelities_NF, place_D),
        evidence.scores_N.astype(np.float32),
        evidence.experiments_N,
        _inputs(cells_RD, sizes_RS, fidelities_RF, place_D),
    )


def _inputs(points_ND, sizes_NS, fidelities_NF, place_D) -> np.ndarray:
    inputs_NZ = np.zeros((len(points_ND), INPUTS), np.float32)
    np.add.at(inputs_NZ, (slice(None), place_D), points_ND)
    inputs_NZ[:, WIDTH : WIDTH + sizes_NS.shape[1]] = sizes_NS
    inputs_NZ[:, WIDTH + 1 :] = fidelities_NF / FIDELITY_SCALE
    return inputs_NZ


def bucket(rows: int) -> int:
    """Round a number of rows up, so that few shapes are ever compiled."""
    return max(64, 1 << (rows - 1).bit_length())


def pad(array: np.ndarray, rows: int) -> np.ndarray:
    """Fill an array with zeros up to a number of rows."""
    return np.pad(array, [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1))
