"""Landscapes of every kind of space."""

import itertools

import numpy as np
import pytest

from autollm_jax.gym.spaces import Dimension, Space
from autollm_jax.report.landscape import MOST_AXES, Grid, Strips, lay_out
from tests.small import small


def laid_out(space, cells, outcomes, **fields):
    arguments = {"configurations": cells, "outcomes": outcomes, "status": ["ok"] * len(cells)}
    return lay_out(small("x", "low", space=space, **{**arguments, **fields}))


def test_a_grid_tells_measured_failed_and_unmeasured_cells_apart():
    grid = lay_out(small("cheap", "low"))
    assert isinstance(grid, Grid)
    assert (grid.status_YX[0, 0], grid.status_YX[2, 3]) == ("unmeasured", "failed")
    assert grid.regret_YX[grid.cell(grid.best_config)[::-1]] == 0


def test_of_many_dimensions_each_is_an_axis_that_says_how_much_it_tells():
    space = Space(tuple(Dimension(n, "ordinal", (0, 1, 2)) for n in "abc"))
    cells = [dict(zip("abc", c, strict=True)) for c in itertools.product(range(3), repeat=3)]
    strips = laid_out(space, cells, [10.0 * c["a"] + 2 * c["b"] for c in cells])
    assert isinstance(strips, Strips)
    a, b, c = (axis.explained for axis in strips.axes)
    assert a > 0.5 and a > b > c and c == pytest.approx(0)


def test_of_a_large_mixture_the_most_telling_components_are_axes():
    names = tuple(f"c{n}" for n in range(MOST_AXES + 3))
    space = Space((Dimension("mix", "simplex", names),))
    weights_RC = np.random.default_rng(0).dirichlet(np.ones(len(names)), 80)
    cells = [{"mix": dict(zip(names, w, strict=True))} for w in weights_RC.tolist()]
    strips = laid_out(space, cells, (-weights_RC[:, 4]).tolist())
    assert strips.axes[0].name == "c4" and strips.axes[0].explained > 0.5
    assert (len(strips.axes), strips.left_out) == (MOST_AXES, 3)


def test_what_could_not_be_run_does_not_tell():
    space = Space(tuple(Dimension(n, "ordinal", (0, 1)) for n in "abc"))
    cells = [dict(zip("abc", c, strict=True)) for c in itertools.product(range(2), repeat=3)]
    outcomes = [1.0 + c["b"] if not c["a"] else np.nan for c in cells]
    status = ["infeasible" if c["a"] else "ok" for c in cells]
    strips = laid_out(space, cells, outcomes, status=status)
    assert strips.ok_R.sum() == 4
    assert [axis.explained for axis in strips.axes] == pytest.approx([0, 1, 0])
