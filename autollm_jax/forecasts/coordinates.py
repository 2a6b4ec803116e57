"""Configurations of any space as points on a target space's own scale.

Spaces shift between fidelities: a learning-rate window slides, a model gets deeper. A numeric value
keeps its meaning across experiments, so it is placed on the target's scale and may fall outside
[0, 1]; only where the two ranges share nothing (10 to 12 layers against 22 to 24) does its place
within its own range stand for it. Listed and continuous numbers mix freely. A dimension that the
evidence lacks stands at the target's default.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from autollm_jax.gym.settings import Setting
from autollm_jax.gym.spaces import Dimension, Space

# Where a dimension that the evidence lacks stands if the target's default is not known.
NEUTRAL = 0.5


def relative_sizes(setting: Setting) -> np.ndarray:
    """Return how large each cell is among those of its space [R, 1]; [R, 0] where that is unknown.

    It is the standardised logarithm of the parameters, which are known before a run.
    """
    if setting.parameters_R is None:
        return np.zeros((len(setting.configurations), 0))
    log_R = np.log(np.maximum(setting.parameters_R, 1.0))
    return ((log_R - log_R.mean()) / max(log_R.std(), 1e-9))[:, None]


def columns(space: Space) -> dict[str, slice]:
    """Return each dimension's coordinate columns, by name."""
    spans, start = {}, 0
    for dimension in space.dimensions:
        spans[dimension.name] = slice(start, start + dimension.width)
        start += dimension.width
    return spans


def project(
    configs: Sequence[Mapping], source: Space, target: Space, default: Mapping | None = None
) -> np.ndarray:
    """Place configurations of one space on another space's scale.

    >>> low = Space((Dimension("rate", "log-ordinal", (1e-4, 1e-3)),))
    >>> high = Space((
    ...     Dimension("rate", "log-continuous", bounds=(1e-4, 1e-2)),
    ...     Dimension("layers", "ordinal", (2, 4, 6)),
    ... ))
    >>> project([{"rate": 1e-3}], low, high, default={"rate": 1e-4, "layers": 6})
    array([[0.5, 1. ]])

    Args:
      configs: N configurations of `source`.
      source: the space that they come from; `target` itself for the target's own cells.
      target: the space whose scale is wanted.
      default: the target's default configuration. A dimension that `source` lacks (or has as
        another kind of thing) stands there, or at NEUTRAL where no default is given.

    Returns:
      [N, D'] coordinates: one a numeric dimension (0 and 1 are the target's lowest and highest
      number, values outside them lie outside), one a choice for a categorical, one a component for
      a simplex.
    """
    sources = {dimension.name: dimension for dimension in source.dimensions}
    parts = []
    for dimension in target.dimensions:
        origin = sources.get(dimension.name)
        if origin is not None and _comparable(origin, dimension):
            values = [config[dimension.name] for config in configs]
            parts.append(_project_dimension(values, origin, dimension))
        elif default is not None:
            own_1D = _project_dimension([default[dimension.name]], dimension, dimension)
            parts.append(np.repeat(own_1D, len(configs), axis=0))
        else:
            parts.append(np.full((len(configs), dimension.width), NEUTRAL))
    return np.concatenate(parts, axis=1)


def lacks_dimensions(source: Space, target: Space) -> bool:
    """Whether `project` needs the target's default to place configurations of `source`."""
    sources = {dimension.name: dimension for dimension in source.dimensions}
    return any(
        d.name not in sources or not _comparable(sources[d.name], d) for d in target.dimensions
    )


def _comparable(source: Dimension, target: Dimension) -> bool:
    """Tell whether values of one dimension mean something on the other's scale."""
    if target.is_numeric:
        return source.is_numeric
    return (source.kind == "simplex") == (target.kind == "simplex")


def _project_dimension(values: list, source: Dimension, target: Dimension) -> np.ndarray:
    if not target.is_numeric:
        if target.kind == "simplex":
            rows = [[float(value.get(c, 0.0)) for c in target.choices] for value in values]
        else:
            rows = [[float(value == c) for c in target.choices] for value in values]
        return np.array(rows, float).reshape(len(values), target.width)
    low, high = _common_range(source, target)
    numbers = _scaled(np.array(values, float), target)
    unit = (numbers - low) / (high - low) if high > low else np.full(len(values), 0.5)
    return unit[:, None]


def _scaled(numbers: np.ndarray, target: Dimension) -> np.ndarray:
    """Bring numbers to the target's scale; what has no logarithm stands at its lowest number."""
    if not target.is_log:
        return numbers
    return np.log(np.where(numbers > 0, numbers, target.extent[0]))


def _common_range(source: Dimension, target: Dimension) -> tuple[float, float]:
    """Return the target's range where the source's meets it, else the source's own."""
    own, wanted = (
        _scaled(np.array(dimension.extent, float), target).tolist()
        for dimension in (source, target)
    )
    return tuple(wanted if own[0] <= wanted[1] and wanted[0] <= own[1] else own)
