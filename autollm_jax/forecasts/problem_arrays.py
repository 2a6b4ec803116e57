"""A problem as arrays of one width for every space: the input of the meta-learned methods.

A search space is a task of a source. A column of the inputs is the same coordinate in every problem
of a search space: the names of dimensions and choices decide the column, so that a choice that only
dearer experiments have does not shift the other columns.

Letters: R target cells, N evidence rows, D coordinates, Z input columns, X evidence experiments.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autollm_jax.forecasts import coordinates
from autollm_jax.forecasts.gathering import gather
from autollm_jax.forecasts.relevance import relevant_evidence
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting
from autollm_jax.gym.spaces import Space

WIDTH = 32  # columns for coordinates; coordinates 32 apart share a column in a wider space
FIDELITIES = 2  # log parameters and log tokens, relative to the target
INPUTS = WIDTH + 1 + FIDELITIES  # coordinates, the cell's relative size, fidelities
SPACES = "spaces"  # the learned array of the search spaces' names
FIDELITY_SCALE = 3.0  # natural-log units that count as 1: a factor of 20


@dataclass(frozen=True)
class Context:
    """The evidence and the target's cells, in the target's scale.

    Attributes:
      rows_NZ: inputs of the evidence's rows, nearest experiment first.
      scores_N: their scores (see gathering.py).
      experiments_N: index of each row's experiment.
      cells_RZ: inputs of the target's cells; their relative fidelity is 0.
    """

    rows_NZ: np.ndarray
    scores_N: np.ndarray
    experiments_N: np.ndarray
    cells_RZ: np.ndarray


def search_space(setting: Setting) -> str:
    """Return the name of a setting's search space."""
    return f"{setting.source}/{setting.task}"


def column_names(space: Space) -> list[str]:
    """Return the name of each coordinate of a space (see coordinates.py)."""
    names: list[str] = []
    for dimension in space.dimensions:
        if dimension.is_numeric:
            names.append(dimension.name)
        else:
            names += [f"{dimension.name}={choice}" for choice in dimension.choices]
    return names


def layout(experiments: Sequence[Experiment]) -> list[str]:
    """Return every column's name over the experiments of a search space, in order."""
    return list(dict.fromkeys(n for e in experiments for n in column_names(e.space)))


def read_problem(
    target: Setting, experiments: Sequence[Experiment], known: Sequence[str], rows: int
) -> Context:
    """Write a problem as arrays.

    Args:
      target: the question.
      experiments: its evidence.
      known: the search space's layout; empty for a search space that was not learned.
      rows: greatest number of evidence rows.
    """
    own = column_names(target.space)
    places = {name: i % WIDTH for i, name in enumerate(dict.fromkeys([*known, *own]))}
    place_D = np.array([places[name] for name in own])
    evidence = gather(target, experiments, rows)
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
    for place, point_N in zip(place_D, points_ND.T, strict=True):
        inputs_NZ[:, place] += point_N
    inputs_NZ[:, WIDTH : WIDTH + sizes_NS.shape[1]] = sizes_NS
    inputs_NZ[:, WIDTH + 1 :] = fidelities_NF / FIDELITY_SCALE
    return inputs_NZ


@dataclass(frozen=True)
class Standard:
    """Standardises inputs [N, Z]: mean 0 and deviation 1 over the inputs given to `of`."""

    centre_Z: np.ndarray
    unit_Z: np.ndarray

    @property
    def active(self) -> int:
        """Count the inputs that vary."""
        return max(int(np.sum((self.unit_Z != 1) & (self.unit_Z != 0))), 1)

    @classmethod
    def of(cls, z_NZ: np.ndarray) -> "Standard":
        deviation_Z = z_NZ.std(0)
        varies_Z = deviation_Z > 1e-6
        # A constant coordinate keeps its scale, because it may vary in a later problem. A constant
        # fidelity is set to 0: nothing was learned about it, and a later problem's evidence would
        # lie far from everything learned.
        still_Z = np.where(np.arange(INPUTS) > WIDTH, 0.0, 1.0)
        unit_Z = np.where(varies_Z, 1 / np.maximum(deviation_Z, 1e-6), still_Z)
        centre_Z = np.where(varies_Z, z_NZ.mean(0), 0.0)
        return cls(centre_Z.astype(np.float32), unit_Z.astype(np.float32))

    def __call__(self, context: Context) -> Context:
        """Return a problem with its inputs standardised."""
        return dataclasses.replace(
            context,
            rows_NZ=(context.rows_NZ - self.centre_Z) * self.unit_Z,
            cells_RZ=(context.cells_RZ - self.centre_Z) * self.unit_Z,
        )


@dataclass(frozen=True)
class TrainingTask:
    """A training experiment as a target: its feasible cells, their scores, and its evidence.

    Attributes:
      context: the problem with standardised inputs. The evidence is every other experiment of the
        search space with the same objective, dearer experiments included, since two experiments say
        as much about each other in either order.
      scores_R: the cells' scores.
      cheaper_X: for each experiment of the evidence, whether it is cheaper than the target.
    """

    context: Context
    scores_R: np.ndarray
    cheaper_X: np.ndarray


@dataclass(frozen=True)
class TrainingSpace:
    """The training experiments of a search space."""

    name: str
    layout: list[str]
    standard: Standard
    tasks: list[TrainingTask]


def training_spaces(training: Sequence[Experiment], rows: int) -> list[TrainingSpace]:
    """Write the training experiments as arrays, with at most `rows` evidence rows each."""
    groups: dict[str, list[Experiment]] = {}
    for experiment in training:
        groups.setdefault(search_space(experiment), []).append(experiment)
    spaces = []
    for name, group in groups.items():
        known = layout(group)
        tasks = [_training_task(e, group, known, rows) for e in group]
        inputs = [a for t in tasks for a in (t.context.cells_RZ, t.context.rows_NZ)]
        standard = Standard.of(np.concatenate(inputs))
        tasks = [dataclasses.replace(t, context=standard(t.context)) for t in tasks]
        spaces.append(TrainingSpace(name, known, standard, tasks))
    return spaces


def describe_spaces(spaces: Sequence[TrainingSpace]) -> dict[str, np.ndarray]:
    """Return the arrays that describe the search spaces to `read_target`."""
    described = {SPACES: np.array([space.name for space in spaces])}
    for index, space in enumerate(spaces):
        described[f"layout {index}"] = np.array(space.layout)
        described[f"centre {index}"] = space.standard.centre_Z
        described[f"unit {index}"] = space.standard.unit_Z
    return described


def read_target(
    target: Setting,
    evidence: Sequence[Experiment],
    learned: Mapping[str, np.ndarray],
    rows: int,
) -> tuple[int | None, Context, Standard]:
    """Write a problem as arrays, standardised like the learned problems of its search space.

    Args:
      target: the question.
      evidence: cheaper experiments, with their outcomes.
      learned: arrays that include the result of `describe_spaces`.
      rows: greatest number of evidence rows.

    Returns:
      The index of the search space, the problem and the standard. For a search space that was not
      learned the index is None, and the problem's own inputs give the standard.
    """
    names, name = learned[SPACES].tolist(), search_space(target)
    index = names.index(name) if name in names else None
    known = [] if index is None else learned[f"layout {index}"].tolist()
    context = read_problem(target, evidence, known, rows)
    if index is None:
        standard = Standard.of(np.concatenate([context.rows_NZ, context.cells_RZ]))
    else:
        standard = Standard(learned[f"centre {index}"], learned[f"unit {index}"])
    return index, standard(context), standard


def _training_task(target: Experiment, group, known, rows: int) -> TrainingTask:
    metric = target.objective.metric
    others = tuple(e for e in group if e.id != target.id and e.objective.metric == metric)
    context = read_problem(target, others, known, rows)
    feasible_R = np.asarray(target.feasible_R)
    context = dataclasses.replace(context, cells_RZ=context.cells_RZ[feasible_R])
    cheaper_X = [
        e.fidelity.flops < target.fidelity.flops for e in relevant_evidence(others, target)
    ]
    scores_R = target.spread_regrets_R.astype(np.float32)[feasible_R]
    return TrainingTask(context, scores_R, np.array(cheaper_X, bool))


def bucket(rows: int) -> int:
    """Round a number of rows up to a power of 2, at least 64, so that few shapes are compiled."""
    return max(64, 1 << (rows - 1).bit_length())


def pad(array: np.ndarray, rows: int) -> np.ndarray:
    """Append rows of zeros until an array has `rows` rows."""
    return np.pad(array, [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1))
