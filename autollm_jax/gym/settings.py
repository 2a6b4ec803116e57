"""Settings: the question a method answers. A setting holds no outcome.

An `Experiment` (experiments.py) is a setting with its outcomes. A setting can also be made for a
run without measured outcomes: `make_setting` lays out configurations to choose from.

    >>> from autollm_jax.gym.spaces import Dimension, Space
    >>> space = Space((Dimension("learning_rate", "log-ordinal", (1e-4, 2e-4, 4e-4)),))
    >>> setting = make_setting(
    ...     source="mine", task="pretraining", name="7B", space=space,
    ...     fidelity=Fidelity("high", parameters=7e9, tokens=2e11, flops=8.4e21),
    ...     default={"learning_rate": 2e-4},
    ... )
    >>> len(setting.configurations)
    3
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from autollm_jax.errors import UserError
from autollm_jax.gym.cells import Cells, Match
from autollm_jax.gym.outcomes import Objective
from autollm_jax.gym.spaces import Space

MOST_DESIGNED = 512  # most configurations of a setting without measured runs


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How expensive an experiment is: its level, and parameters, tokens and FLOPs of one run."""

    level: str
    parameters: float
    tokens: float
    flops: float

    @functools.cached_property
    def log(self) -> np.ndarray:
        """(log parameters, log tokens) [2]; nan where a number is missing or not positive."""
        numbers = (self.parameters, self.tokens)
        return np.array([np.log(n) if n is not None and n > 0 else np.nan for n in numbers])


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Setting:
    """One concrete question: which configuration of this space should be run?

    Attributes:
      source, task, name: together the `id`, "source/task/name".
      facts: what is fixed, by name (model kind, width, corpus, device, ...).
      fidelity: how expensive one run is.
      objective: the outcome's name and direction.
      default: the configuration a practitioner would take untuned.
      default_origin: the reason for that default.
      cells: the space, and the configurations to choose from (of a table: the measured ones).
      limit: `{"quantity": "parameters", "at_most": NUMBER}`; a run over it is `infeasible`.
      parameters_R: the parameters of each configuration [R], known before any run, or None.
    """

    source: str
    task: str
    name: str
    facts: Mapping
    fidelity: Fidelity
    objective: Objective
    default: dict
    default_origin: str
    cells: Cells = dataclasses.field(repr=False)
    limit: Mapping | None = None
    parameters_R: np.ndarray | None = dataclasses.field(default=None, repr=False)

    @property
    def id(self) -> str:
        return f"{self.source}/{self.task}/{self.name}"

    @property
    def space(self) -> Space:
        """The configurations that may be proposed."""
        return self.cells.space

    @property
    def configurations(self) -> tuple[dict, ...]:
        """The configurations to choose from, R of them."""
        return self.cells.configurations

    @property
    def units_RD(self) -> np.ndarray:
        """The configurations' unit coordinates [R, D']."""
        return self.cells.units_RD

    @functools.cached_property
    def feasible_R(self) -> np.ndarray:
        """Whether each configuration is within the limit [R]: arithmetic, not an outcome."""
        if self.limit is None:
            return np.ones(len(self.cells), bool)
        return self.sizes_R <= self.limit["at_most"]

    @property
    def sizes_R(self) -> np.ndarray:
        """The parameters of each configuration [R], of a setting that knows them.

        Raises:
          ValueError: it does not.
        """
        if self.parameters_R is None:
            raise ValueError(f"{self.id}: the parameters of its configurations are not known")
        return self.parameters_R

    def nearest_row(self, unit_D: np.ndarray) -> int:
        """Return the row nearest to the unit coordinates [D'] (the first of equals)."""
        return self.cells.nearest_row(unit_D)

    def match(self, config) -> Match:
        """Find the row that stands for `config`: the same configuration, or the nearest one.

        Raises:
          InvalidConfiguration: there is nothing to match (wrong names, non-numbers, nan, inf).
        """
        return self.cells.match(config)


def setting_fields(setting: Setting) -> dict:
    """Return the fields of the question alone, by name."""
    return {field.name: getattr(setting, field.name) for field in dataclasses.fields(Setting)}


def make_setting(
    *,
    source: str,
    task: str,
    name: str,
    space: Space,
    fidelity: Fidelity,
    default: Mapping,
    default_origin: str = "given",
    facts: Mapping | None = None,
    objective: Objective | None = None,
    configurations: Sequence[Mapping] | None = None,
    parameters: Sequence[float] | None = None,
    limit: Mapping | None = None,
) -> Setting:
    """Make a setting for a run without measured outcomes.

    Args:
      source, task, name: together the `id`.
      space: the configurations that may be proposed.
      fidelity: how expensive one run is.
      default: the configuration a practitioner would take untuned; `default_origin` says why.
      facts: what is fixed, by name.
      objective: the outcome's name and direction; a loss to be minimised by default.
      configurations: those to choose from; `design(space)` and the default where None.
      parameters: of each of the configurations; needed where there is a limit.
      limit: `{"quantity": "parameters", "at_most": NUMBER}`.

    Raises:
      InvalidConfiguration: a configuration or the default is not in the space.
      UserError: there is a limit and the parameters are missing or of another number.
    """
    default = space.validate(default)
    if configurations is None:
        configurations = [default, *design(space)]
    cells, row_N = Cells.pool(space, [space.validate(config) for config in configurations])
    parameters_R = pooled_parameters(
        len(cells), row_N, parameters, limit, f"{source}/{task}/{name}"
    )
    return Setting(
        source=source,
        task=task,
        name=name,
        facts=dict(facts or {}),
        fidelity=fidelity,
        objective=objective or Objective(),
        default=default,
        default_origin=default_origin,
        cells=cells,
        limit=None if limit is None else dict(limit),
        parameters_R=parameters_R,
    )


def design(space: Space, most: int = MOST_DESIGNED, seed: int = 0) -> list[dict]:
    """Lay out configurations over a space: its whole grid, or a Latin hypercube of `most` points.

    Args:
      space: any space.
      most: the number of configurations, at most.
      seed: of the hypercube's draws.
    """
    finite = all(d.kind in ("ordinal", "log-ordinal", "categorical") for d in space.dimensions)
    if finite and math.prod(len(d.choices) for d in space.dimensions) <= most:
        grid = np.meshgrid(*[range(len(d.choices)) for d in space.dimensions], indexing="ij")
        places = np.stack([axis.ravel() for axis in grid], axis=1).tolist()
        return [
            {d.name: d.choices[i] for d, i in zip(space.dimensions, place, strict=True)}
            for place in places
        ]
    random = np.random.default_rng(seed)
    strata = [random.permutation(most) for _ in range(space.width)]
    units_ND = (np.stack(strata, axis=1) + random.random((most, space.width))) / most
    start = 0
    for dimension in space.dimensions:
        span = slice(start, start + dimension.width)
        if dimension.kind == "simplex":  # uniform over the simplex: exponential weights, normalised
            units_ND[:, span] = -np.log1p(-units_ND[:, span])
        start += dimension.width
    return [space.from_unit(unit_D) for unit_D in units_ND]


def pooled_parameters(
    rows: int, row_N: np.ndarray, parameters: Sequence | None, limit: Mapping | None, where: str
) -> np.ndarray | None:
    """Bring the parameters of N runs together as one number for each of R rows.

    Raises:
      UserError: a limit without parameters, or a configuration's parameters differ or are nan.
    """
    if parameters is None:
        if limit is not None:
            raise UserError(f"{where}: has a limit, so every run needs its `parameters`")
        return None
    parameters_N = np.array([math.nan if n is None else float(n) for n in parameters])
    if len(parameters_N) != len(row_N):
        raise UserError(
            f"{where}: {len(parameters_N)} `parameters` for {len(row_N)} configurations"
        )
    parameters_R = np.full(rows, math.nan)
    parameters_R[row_N] = parameters_N
    if not (parameters_R[row_N] == parameters_N).all():  # nan differs from itself: refused here
        raise UserError(f"{where}: a configuration's `parameters` differ between runs, or are nan")
    parameters_R.setflags(write=False)
    return parameters_R
