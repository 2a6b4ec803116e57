"""Configurations of any space as points in a target space's own scale.

Spaces shift between fidelities: a learning-rate window slides, a model gets deeper. A numeric value
keeps its meaning across experiments, so it is placed on the target's scale and may fall outside
[0, 1]; only where the two ranges share nothing (10 to 12 layers against 22 to 24) does its place
within its own range stand for it.
"""

from collections.abc import Sequence

import numpy as np

from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.spaces import Dimension, Space

# What a dimension that an experiment does not have says about the target's: nothing.
NEUTRAL = 0.5


def relative_sizes(experiment: Experiment) -> np.ndarray:
    """Return how large each cell is among those of its space [R, 1]; [R, 0] where that is unknown.

    It is the standardised logarithm of the parameters, which are known before a run.
    """
    if experiment.parameters_R is None:
        return np.zeros((len(experiment.configurations), 0))
    log_R = np.log(np.maximum(experiment.parameters_R, 1.0))
    return ((log_R - log_R.mean()) / max(log_R.std(), 1e-9))[:, None]


def columns(space: Space) -> dict[str, slice]:
    """Return each dimension's coordinate columns, by name."""
    spans, start = {}, 0
    for dimension in space.dimensions:
        spans[dimension.name] = slice(start, start + dimension.width)
        start += dimension.width
    return spans


def project(configs: Sequence[dict], source: Space, target: Space) -> np.ndarray:
    """Place configurations of one space on another space's scale.

    Args:
      configs: N configurations of `source`.
      source: the space that they come from; `target` itself for the target's own cells.
      target: the space whose scale is wanted.

    Returns:
      [N, D'] coordinates: one a numeric dimension (0 and 1 are the target's extreme choices, values
      outside them lie outside), one a choice for a categorical, one a component for a simplex.
    """
    sources = {dimension.name: dimension for dimension in source.dimensions}
    parts = []
    for dimension in target.dimensions:
        origin = sources.get(dimension.name)
        if origin is None:
            parts.append(np.full((len(configs), dimension.width), NEUTRAL))
        else:
            values = [config.get(dimension.name) for config in configs]
            parts.append(_project_dimension(values, origin, dimension))
    return np.concatenate(parts, axis=1)


def _project_dimension(values: list, source: Dimension, target: Dimension) -> np.ndarray:
    if target.kind == "simplex":
        weights = [value or {} for value in values]
        return np.array(
            [[float(w.get(c, 0.0)) for c in target.choices] for w in weights], float
        ).reshape(len(values), len(target.choices))
    if target.kind == "categorical":
        return np.array([[float(v == c) for c in target.choices] for v in values], float).reshape(
            len(values), len(target.choices)
        )
    if target.is_numeric and source.is_numeric:
        scale = np.log if target.kind == "log-ordinal" else np.asarray
        low, high = _common_range(source, target, scale)
        numbers = scale(np.array(values, float))
        unit = (numbers - low) / (high - low) if high > low else np.full(len(values), 0.5)
        return unit[:, None]
    # Words in an order: their place in their own order.
    place = {c: i / max(len(source.choices) - 1, 1) for i, c in enumerate(source.choices)}
    return np.array([[place.get(v, NEUTRAL)] for v in values], float).reshape(len(values), 1)


def _common_range(source: Dimension, target: Dimension, scale) -> tuple[float, float]:
    """Return the target's range where the source's meets it, else the source's own."""
    own, wanted = _range(source, scale), _range(target, scale)
    return wanted if own[0] <= wanted[1] and wanted[0] <= own[1] else own


def _range(dimension: Dimension, scale) -> tuple[float, float]:
    scaled = scale(np.array([float(c) for c in dimension.choices]))
    return float(scaled.min()), float(scaled.max())
