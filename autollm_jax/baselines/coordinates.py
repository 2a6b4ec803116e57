"""Configurations of any space as points in a target space's own scale.

Spaces shift between fidelities: a learning-rate window slides, a model gets deeper. A numeric value
keeps its meaning across experiments, so it is placed on the target's scale and may fall outside
[0, 1]; only where the two ranges share nothing (10 to 12 layers against 22 to 24) does its place
within its own range stand for it. Per-layer dimensions (a group) are one thing with a mean and a
tilt, so that models of other depths can be compared.
"""

import dataclasses
from collections.abc import Sequence
from numbers import Real

import numpy as np

from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.groups import UNUSED, Group
from autollm_jax.gym.spaces import Dimension, Space

# What a dimension that an experiment does not have says about the target's: nothing.
NEUTRAL = 0.5
GROUP_WIDTH = 2  # a group's mean, and how much its later members exceed its earlier ones


def axes(space: Space) -> list[Dimension | Group]:
    """Return the space's dimensions in order, a group standing where its first member does."""
    group_of = {member: group for group in space.groups.values() for member in group.members}
    found: list[Dimension | Group] = []
    for dimension in space.dimensions:
        group = group_of.get(dimension.name)
        if group is None:
            found.append(dimension)
        elif dimension.name == group.members[0]:
            found.append(group)
    return found


def width(axis: Dimension | Group) -> int:
    """Return how many coordinates an axis takes."""
    if isinstance(axis, Group):
        return GROUP_WIDTH
    return len(axis.choices) if axis.kind in ("categorical", "simplex") else 1


def is_numeric(axis: Dimension | Group) -> bool:
    """Return whether an axis is a number (or a group's two) on a scale."""
    if isinstance(axis, Group):
        return True
    return axis.kind in ("ordinal", "log-ordinal") and all(
        isinstance(c, Real) and not isinstance(c, bool) for c in axis.choices
    )


def relative_sizes(experiment: Experiment) -> np.ndarray:
    """Return how large each cell is among those of its space [R, 1]; [R, 0] where that is unknown.

    It is the standardised logarithm of the parameters, which are known before a run.
    """
    if experiment.parameters_R is None:
        return np.zeros((len(experiment.configurations), 0))
    log_R = np.log(np.maximum(experiment.parameters_R, 1.0))
    return ((log_R - log_R.mean()) / max(log_R.std(), 1e-9))[:, None]


def columns(space: Space) -> dict[str, slice]:
    """Return each axis' coordinate columns, by name."""
    spans, start = {}, 0
    for axis in axes(space):
        spans[axis.name] = slice(start, start + width(axis))
        start += width(axis)
    return spans


def project(configs: Sequence[dict], source: Space, target: Space) -> np.ndarray:
    """Place configurations of one space on another space's scale.

    Args:
      configs: N configurations of `source`.
      source: the space that they come from; `target` itself for the target's own cells.
      target: the space whose scale is wanted.

    Returns:
      [N, D'] coordinates: one a numeric dimension (0 and 1 are the target's extreme choices, values
      outside them lie outside), two a group, one a choice for a categorical, one a component for a
      simplex.
    """
    sources = {axis.name: axis for axis in axes(source)}
    parts = []
    for axis in axes(target):
        origin = sources.get(axis.name)
        if origin is None or isinstance(origin, Group) != isinstance(axis, Group):
            parts.append(np.full((len(configs), width(axis)), NEUTRAL))
        elif isinstance(axis, Group):
            members = [[config[m] for m in origin.members] for config in configs]
            scales = source[origin.members[0]], target[axis.members[0]]
            parts.append(_project_group(np.array(members, float), *scales))
        else:
            values = [config.get(axis.name) for config in configs]
            parts.append(_project_dimension(values, origin, axis))
    return np.concatenate(parts, axis=1) if parts else np.zeros((len(configs), 0))


def _project_group(values_NM: np.ndarray, source: Dimension, target: Dimension) -> np.ndarray:
    used_NM = values_NM != UNUSED
    low, high = _common_range(_used(source), _used(target), np.asarray)
    unit_NM = np.where(used_NM, (values_NM - low) / max(high - low, 1e-12), 0.0)
    # A member's place among those used, from -1 (the first) to 1 (the last).
    count_N1 = np.maximum(used_NM.sum(1, keepdims=True), 1)
    place_NM = 2 * (np.cumsum(used_NM, axis=1) - 1) / np.maximum(count_N1 - 1, 1) - 1
    place_NM = np.where(used_NM, place_NM, 0.0)
    mean_N = unit_NM.sum(1) / count_N1[:, 0]
    tilt_N = (unit_NM * place_NM).sum(1) / count_N1[:, 0]
    return np.stack([mean_N, NEUTRAL + tilt_N], axis=1)


def _used(member: Dimension) -> Dimension:
    """Drop the choice that stands for "no such layer"."""
    choices = tuple(c for c in member.choices if c != UNUSED)
    return dataclasses.replace(member, choices=choices or member.choices)


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
