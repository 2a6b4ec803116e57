"""The measured cells of an experiment: the configurations that were run, and where each lies.

A cell holds no outcome. Experiments with the same rows (other objectives, other limits) therefore
share one `Cells`, and a player may look at all of it.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from autollm_jax.gym.spaces import InvalidConfiguration, Space

# In a simplex or a continuous dimension two spellings of one cell differ by a little: a valid
# configuration is the measured cell that is this near in every unit coordinate.
SAME_CELL = 1e-3
# Spaces up to this size are looked up in a dense array.
_MOST_DENSE = 1 << 20
_CODE_SEED = 2605_11518
# Two cells are of one crowd where they are nearer to each other than CROWD_SHARE of the distance
# that separates most cells, this quantile of them, from their nearest neighbours at most.
CROWD_SHARE, CROWD_QUANTILE = 0.5, 0.9
GRID_SHARE = 0.5  # of all combinations of their values: so many cells are a grid
LEAST_CROWDED = 32  # of fewer cells the distances do not tell a crowd from chance
_CHUNK = 512  # cells that are compared with all cells at once


class Match(NamedTuple):
    """A measured row; `matched` says that it replaces a proposal that was not measured."""

    row: int
    matched: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Cells:
    """The R measured configurations of a space, each once, in canonical form.

    >>> from autollm_jax.gym.spaces import Dimension
    >>> space = Space((Dimension("rate", "log-ordinal", (1e-4, 1e-3, 1e-2)),))
    >>> cells = Cells(space, ({"rate": 1e-4}, {"rate": 1e-2}))
    >>> cells.match({"rate": 0.009})
    Match(row=1, matched=True)

    Attributes:
      space: the configurations that may be proposed.
      configurations: the measured ones.
    """

    space: Space
    configurations: tuple[dict, ...] = dataclasses.field(repr=False)

    @classmethod
    def pool(cls, space: Space, configurations: Sequence[Mapping]) -> tuple["Cells", np.ndarray]:
        """Collect the cells of N runs, whose configurations are in canonical form.

        Returns:
          The cells, in the order of their first runs, and each run's row among them [N].
        """
        rows: dict = {}
        cells, row_N = [], []
        for config in configurations:
            row = rows.setdefault(space.key_of(config), len(cells))
            if row == len(cells):
                cells.append(dict(config))
            row_N.append(row)
        return cls(space, tuple(cells)), np.array(row_N, int)

    def __getstate__(self) -> dict:
        # Cached values hold closures, which do not pickle; they are quickly made again.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __len__(self) -> int:
        return len(self.configurations)

    @functools.cached_property
    def units_RD(self) -> np.ndarray:
        """The unit coordinates [R, D']."""
        units_RD = np.stack([self.space.to_unit(config) for config in self.configurations])
        units_RD.setflags(write=False)
        return units_RD

    @functools.cached_property
    def weights_R(self) -> np.ndarray:
        """How much each cell counts in a mean over the space [R]: 1 / the size of its crowd.

        Where optimisers chose the configurations, most lie crowded around a few places, and a plain
        mean over rows is a mean over these. A cell's crowd is the number of cells within a radius,
        itself included; the radius is half of what separates most cells from their nearest
        neighbours. In a grid, also one with gaps or uneven steps, every weight is 1. So it is in a
        space with a mixture, where the cells were drawn by a design, and in a table of few cells.

        >>> from autollm_jax.gym.spaces import Dimension
        >>> space = Space((Dimension("rate", "continuous", bounds=(0.0, 1.0)),))
        >>> places = [*np.linspace(0.0, 1.0, 41).tolist(), 0.499, 0.501]
        >>> cells = Cells(space, tuple({"rate": place} for place in places))
        >>> cells.weights_R[[0, 19, 20, 41, 42]].round(2)
        array([1.  , 1.  , 0.33, 0.33, 0.33])
        """
        drawn = any(dimension.kind == "simplex" for dimension in self.space.dimensions)
        plain = drawn or len(self) < LEAST_CROWDED or self._is_grid
        weights_R = np.ones(len(self)) if plain else 1.0 / self._crowds()
        weights_R.setflags(write=False)
        return weights_R

    @property
    def _is_grid(self) -> bool:
        """Whether the cells are at least `GRID_SHARE` of all combinations of their values."""
        dimensions = self.space.dimensions
        if not all(dimension.is_discrete for dimension in dimensions):
            return False
        values = [{c[dimension.name] for c in self.configurations} for dimension in dimensions]
        return len(self) >= GRID_SHARE * math.prod(map(len, values))

    def _crowds(self) -> np.ndarray:
        """Count the cells of each cell's crowd [R]."""
        units_RD = self.units_RD
        norms_R = (units_RD**2).sum(1)

        def squares(rows: slice) -> np.ndarray:
            away_CR = norms_R[rows, None] + norms_R - 2 * units_RD[rows] @ units_RD.T
            return np.maximum(away_CR, 0.0)

        chunks = [slice(start, start + _CHUNK) for start in range(0, len(self), _CHUNK)]
        # The least but one: the least is the cell itself.
        second = min(1, len(self) - 1)
        nearest = [np.partition(squares(rows), second, axis=1)[:, second] for rows in chunks]
        radius = CROWD_SHARE * np.sqrt(np.quantile(np.concatenate(nearest), CROWD_QUANTILE))
        crowds = [(squares(rows) <= radius**2).sum(1) for rows in chunks]
        return np.maximum(np.concatenate(crowds), 1)

    def uncrowded_first(self, order: np.ndarray) -> np.ndarray:
        """Bring about one row of each crowd to the front of some rows; the order stays otherwise.

        A row comes to the front where the weights of the rows before it pass a whole number: in a
        grid that is every row.

        Args:
          order: rows [N], the most wanted first.
        """
        weights_N = self.weights_R[order]
        passed_N = np.floor(np.cumsum(weights_N) - weights_N + 1e-9)
        front_N = np.diff(passed_N, prepend=-1.0) > 0
        return np.concatenate([order[front_N], order[~front_N]])

    @functools.cached_property
    def _row_by_key(self) -> dict:
        return {self.space.key_of(config): row for row, config in enumerate(self.configurations)}

    def nearest_row(self, unit_D: np.ndarray) -> int:
        """Return the row nearest to the unit coordinates [D'] (the first of equals)."""
        return int(np.argmin(((self.units_RD - unit_D) ** 2).sum(axis=1)))

    def match(self, config) -> Match:
        """Find the row that stands for `config`: itself, or the nearest measured one.

        Raises:
          InvalidConfiguration: there is nothing to match (wrong names, non-numbers, nan, inf).
        """
        try:
            row = self._row_by_key.get(self.space.key_of(self.space.validate(config)))
            if row is not None:
                return Match(row, False)
            valid = True
        except InvalidConfiguration:
            valid = False
        unit_D = self.space.to_unit(config)
        row = self.nearest_row(unit_D)
        discrete = all(dimension.is_discrete for dimension in self.space.dimensions)
        same = np.abs(self.units_RD[row] - unit_D).max() < SAME_CELL
        return Match(row, not (valid and same and not discrete))

    def find(self, config: Mapping) -> int:
        """Return the row of `config`, R where it was not measured; no matching.

        Raises:
          InvalidConfiguration: `config` is not in the space.
        """
        rows, key_of, width = self._finder
        try:
            if len(config) == width:
                return rows[key_of(config)]
        except (KeyError, TypeError):
            pass  # not spelled as in the table: validate it first
        return rows.get(key_of(self.space.validate(config)), len(self))

    @functools.cached_property
    def _finder(self) -> tuple:
        """The three things that `find` reads, in one attribute: it is called very often."""
        return self._row_by_key, self.space.key_of, len(self.space.dimensions)

    @functools.cached_property
    def _index(self) -> tuple:
        """Rows in a dense array, or sorted hash codes for spaces far too large for one."""
        dimensions = self.space.dimensions
        for dimension in dimensions:
            if not dimension.is_discrete:
                raise ValueError(
                    f"{dimension.name} is of kind {dimension.kind}, so its values have no choice "
                    "indices; look one configuration up at a time"
                )
        sizes_D = np.array([len(dimension.choices) for dimension in dimensions])
        index_RD = np.array(
            [[d.choices.index(c[d.name]) for d in dimensions] for c in self.configurations]
        )
        cells = math.prod(sizes_D.tolist())
        if cells <= _MOST_DENSE:
            weights_D = np.cumprod([1, *sizes_D[:0:-1]])[::-1]
            dense = np.full(cells, len(self), np.int32)
            dense[index_RD @ weights_D] = np.arange(len(self))
            return sizes_D, weights_D, None, None, dense
        random = np.random.default_rng(_CODE_SEED)
        while True:
            weights_D = random.integers(1, 2**63, len(sizes_D), dtype=np.int64) | 1
            code_R = index_RD @ weights_D  # wraps around, as a hash may
            order_R = np.argsort(code_R, kind="stable")
            code_R = code_R[order_R]
            if (code_R[1:] != code_R[:-1]).all():
                return sizes_D, weights_D, code_R, index_RD[order_R], order_R

    def find_many(self, index_ND: np.ndarray) -> np.ndarray:
        """Return the rows of N configurations given as choice indices per dimension.

        Args:
          index_ND: integers; column d counts into `space.dimensions[d].choices`.

        Returns:
          [N] rows, R where not measured.

        Raises:
          IndexError: an index is no choice's, or the array has another number of columns.
          ValueError: a dimension is continuous or a simplex, so that it has no choice indices.
        """
        sizes_D, weights_D, code_R, index_RD, rows = self._index
        index_ND = np.asarray(index_ND)
        if (
            index_ND.ndim != 2
            or index_ND.shape[1] != len(sizes_D)
            or index_ND.dtype.kind not in "iu"
        ):
            raise IndexError(f"expected integers of shape [N, {len(sizes_D)}]")
        # Column by column: numpy is several times slower along a short last axis.
        code_N = np.zeros(len(index_ND), np.int64)
        for d, (size, weight) in enumerate(zip(sizes_D.tolist(), weights_D.tolist(), strict=True)):
            index_N = index_ND[:, d]
            if len(index_N) and (index_N.min() < 0 or index_N.max() >= size):
                raise IndexError(f"{self.space.names[d]} has the indices 0 to {size - 1}")
            code_N += index_N.astype(np.int64) * weight
        if code_R is None:
            return rows[code_N]
        place_N = np.minimum(np.searchsorted(code_R, code_N), len(code_R) - 1)
        return np.where((index_RD[place_N] == index_ND).all(axis=1), rows[place_N], len(self))
