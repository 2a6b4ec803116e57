"""Patterns such as "(H A) D -> D H A": where a stored array's parts lie in a parameter, and back.

Reading works on a part of the parameter: only what it is made of is read from the file.
"""

import functools
import math
import re
from collections.abc import Mapping

import numpy as np

Slices = tuple[slice, ...]


@functools.lru_cache(maxsize=256)
def _parsed(pattern: str) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Split a pattern into its two sides, each a tuple of axes, each a tuple of letters."""
    return tuple(
        tuple(tuple((group or letter).split()) for group, letter in re.findall(_AXIS, side))
        for side in pattern.split("->")
    )


_AXIS = r"\(([^)]*)\)|(\w)"


def stored_shape(pattern: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return the shape that an array has in the file."""
    return tuple(math.prod(sizes[letter] for letter in axis) for axis in _parsed(pattern)[0])


def stored_slices(pattern: str, sizes: Mapping[str, int], index: Slices) -> Slices:
    """Return which part of the stored array a part of the parameter is made of.

    Args:
      pattern: how the array lies.
      sizes: of every letter.
      index: one slice for each axis of the parameter, with a start and an end.

    Raises:
      ValueError: the part is not a block of the stored array: an axis is cut that is not the first
        in its brackets, or that is made of several.
    """
    stored, kept = _parsed(pattern)
    cut = {}
    for axis, part in zip(kept, index, strict=True):
        if part != slice(0, math.prod(sizes[letter] for letter in axis)):
            if len(axis) > 1 or not any(axis[0] == group[0] for group in stored):
                raise ValueError(f"{pattern}: axis {' '.join(axis)} cannot be cut")
            cut[axis[0]] = part
    slices = []
    for first, *rest in stored:
        part, inner = cut.get(first, slice(0, sizes[first])), math.prod(sizes[r] for r in rest)
        slices.append(slice(part.start * inner, part.stop * inner))
    return tuple(slices)


def to_parameter(pattern: str, sizes: Mapping[str, int], array: np.ndarray) -> np.ndarray:
    """Lay a stored array, or a block of it, out as the parameter does."""
    return _moved(array, *_parsed(pattern), sizes)


def to_stored(pattern: str, sizes: Mapping[str, int], array: np.ndarray) -> np.ndarray:
    """Lay a whole parameter out as the file does."""
    stored, kept = _parsed(pattern)
    return _moved(array, kept, stored, sizes)


def _moved(array, before, after, sizes) -> np.ndarray:
    letters = [letter for axis in before for letter in axis]
    shape = []
    for axis, length in zip(before, array.shape, strict=True):
        inner = [sizes[letter] for letter in axis[1:]]
        shape += [length // math.prod(inner), *inner]  # the first letter may be cut
    split = array.reshape(shape)
    order = [letters.index(letter) for axis in after for letter in axis]
    turned = split.transpose(order)
    lengths = iter(turned.shape)
    return turned.reshape([math.prod(next(lengths) for _ in axis) for axis in after])
