"""A measured landscape laid out in two dimensions, whatever the space."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autollm_jax.gym.experiments import Experiment


@dataclass(frozen=True)
class Landscape:
    """An open experiment's regret over two of its dimensions.

    Attributes:
      names: of the two dimensions (x, y); y is empty where the space has but one.
      choices: the two dimensions' values.
      regret_YX: for grids, the least regret over all other dimensions; nan where not measured.
      status_YX: `ok`, `failed` (nothing but diverged and infeasible runs) or `unmeasured`.
      points_R2: for mixtures, each row's place.
      regret_R: each row's regret.
      status_R: each row's status.
      best_config: the optimum.
      projected: whether other dimensions were left out.
    """

    names: tuple[str, str]
    choices: tuple[tuple, tuple]
    regret_YX: np.ndarray
    status_YX: np.ndarray
    points_R2: np.ndarray
    regret_R: np.ndarray
    status_R: np.ndarray
    best_config: Mapping
    projected: bool

    @property
    def is_grid(self) -> bool:
        return self.regret_YX.size > 0

    def cell(self, config: Mapping) -> tuple[int, int]:
        """Return a configuration's cell (x, y) in the grid."""
        x = self.choices[0].index(config[self.names[0]])
        return x, self.choices[1].index(config[self.names[1]]) if self.names[1] else 0

    def point(self, config: Mapping) -> tuple[float, float]:
        """Return a mixture's place."""
        return tuple(float(_component(config, name)) for name in self.names)


def lay_out(experiment: Experiment) -> Landscape:
    """Lay an open experiment's outcomes out over the two dimensions that matter most.

    A space of up to two dimensions is shown whole, in its own order; of more, those whose choices
    move the mean regret most, each cell the best over the others. A mixture is shown over the two
    components that go with regret most.
    """
    grid = [d for d in experiment.space.dimensions if d.kind != "simplex"]
    regret_R = np.asarray(experiment.regrets_R, float)
    status_R = np.asarray(experiment.status_R)
    shared = {
        "regret_R": regret_R,
        "status_R": status_R,
        "best_config": experiment.configurations[experiment.best_row],
    }
    if not grid:
        return _mixture(experiment, regret_R, shared)
    if len(grid) > 2:
        effect = [_effect(experiment, d.name, regret_R) for d in grid]
        chosen = sorted(np.argsort(effect, kind="stable")[-2:])
        grid = [grid[i] for i in chosen]
    names = (grid[0].name, grid[1].name if len(grid) > 1 else "")
    choices = (grid[0].choices, grid[1].choices if len(grid) > 1 else ("",))
    regret_YX = np.full((len(choices[1]), len(choices[0])), np.nan)
    status_YX = np.full(regret_YX.shape, "unmeasured", dtype=object)
    for config, regret, status in zip(experiment.configurations, regret_R, status_R, strict=True):
        x = choices[0].index(config[names[0]])
        y = choices[1].index(config[names[1]]) if names[1] else 0
        regret_YX[y, x] = np.fmin(regret_YX[y, x], regret)
        if status == "ok":
            status_YX[y, x] = "ok"
        elif status_YX[y, x] == "unmeasured":
            status_YX[y, x] = "failed"
    return Landscape(
        names,
        choices,
        regret_YX,
        status_YX,
        np.zeros((0, 2)),
        projected=len(experiment.space.dimensions) > 2,
        **shared,
    )


def _mixture(experiment: Experiment, regret_R: np.ndarray, shared: dict) -> Landscape:
    components = [f"{d.name}.{c}" for d in experiment.space.dimensions for c in d.choices]
    weights_RC = np.array(
        [[_component(config, c) for c in components] for config in experiment.configurations]
    )
    spread_C = weights_RC.std(0) * (regret_R.std() or 1.0)
    covariance_C = ((weights_RC - weights_RC.mean(0)) * (regret_R - regret_R.mean())[:, None]).mean(
        0
    )
    telling_C = np.abs(covariance_C) / np.where(spread_C > 0, spread_C, np.inf)
    order = np.argsort(telling_C, kind="stable")[::-1]
    first, second = order[0], order[1] if len(order) > 1 else order[0]
    none = np.zeros((0, 0))
    return Landscape(
        (components[first], components[second]),
        ((), ()),
        none,
        none,
        weights_RC[:, [first, second]],
        projected=len(components) > 2,
        **shared,
    )


def _component(config: Mapping, name: str) -> float:
    dimension, component = name.split(".", 1)
    return config[dimension].get(component, 0.0)


def _effect(experiment: Experiment, name: str, regret_R: np.ndarray) -> float:
    """Return the variance of mean regret between a dimension's choices."""
    groups: dict = {}
    for config, regret in zip(experiment.configurations, regret_R, strict=True):
        groups.setdefault(str(config[name]), []).append(regret)
    return float(np.var([np.mean(g) for g in groups.values()]))
