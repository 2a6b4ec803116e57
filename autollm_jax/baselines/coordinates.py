"""Configurations of any space as points in a target space's own scale.

Spaces shift between fidelities: a learning-rate window slides, a model gets deeper. A numeric value
keeps its meaning across experiments, so it is placed on the target's scale and may fall outside
[0, 1]; only where the two ranges share nothing (10 to 12 layers against 22 to 24) does its place
within its own range stand for it.
"""

from collections.abc import Sequence
from numbers import Real

import numpy as np

from autollm_jax.gym.spaces import Dimension, Space

# What a dimension that an experiment does not have says about the target's: nothing.
NEUTRAL = 0.5


def width(dimension: Dimension) -> int:
    """Return how many coordinates a dimension takes."""
    return len(dimension.choices) if dimension.kind in ("categorical", "simplex") else 1


def is_numeric(dimension: Dimension) -> bool:
    """Return whether a dimension is one number on a scale."""
    return dimension.kind in ("ordinal", "log-ordinal") and all(
        isinstance(c, Real) and not isinstance(c, bool) for c in dimension.choices
    )


def columns(space: Space) -> dict[str, slice]:
    """Return each dimension's coordinate columns, by name."""
    spans, start = {}, 0
    for dimension in space.dimensions:
        spans[dimension.name] = slice(start, start + width(dimension))
        start += width(dimension)
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
    sources = {d.name: d for d in source.dimensions}
    parts = []
    for dimension in target.dimensions:
        origin = sources.get(dimension.name)
        if origin is None:
            parts.append(np.full((len(configs), width(dimension)), NEUTRAL))
        else:
            values = [config.get(dimension.name) for config in configs]
            parts.append(_project_dimension(values, origin, dimension))
    return np.concatenate(parts, axis=1) if parts else np.zeros((len(configs), 0))


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
    if is_numeric(target) and is_numeric(source):
        scale = np.log if target.kind == "log-ordinal" else np.asarray
        source_range, target_range = _range(source, scale), _range(target, scale)
        overlap = source_range[0] <= target_range[1] and target_range[0] <= source_range[1]
        low, high = target_range if overlap else source_range
        # A value that this configuration lacks (a layer that it does not have) says nothing.
        known = np.array([isinstance(v, Real) for v in values], bool)
        numbers = np.array([float(v) if k else 1.0 for v, k in zip(values, known, strict=True)])
        unit = (scale(numbers) - low) / (high - low) if high > low else np.full(len(values), 0.5)
        return np.where(known, unit, NEUTRAL)[:, None]
    # Words in an order: their place in their own order.
    place = {c: i / max(len(source.choices) - 1, 1) for i, c in enumerate(source.choices)}
    return np.array([[place.get(v, NEUTRAL)] for v in values], float).reshape(len(values), 1)


def _range(dimension: Dimension, scale) -> tuple[float, float]:
    scaled = scale(np.array([float(c) for c in dimension.choices]))
    return float(scaled.min()), float(scaled.max())
