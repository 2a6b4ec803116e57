"""Moves the axes of a stored array to those of a parameter, and back, by patterns.

The pattern "(H A) D -> D H A" reads: the file stores an array of shape [H * A, D], the parameter is
[D, H, A]. A device's block of a parameter is read alone: `stored_slices` finds its place in
the file.
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
    """Return the shape of an array in the file; `sizes` gives the size of every letter."""
    return tuple(math.prod(sizes[letter] for letter in axis) for axis in _parsed(pattern)[0])


def stored_slices(pattern: str, sizes: Mapping[str, int], index: Slices) -> Slices:
    """Return the place in the stored array of a block of the parameter.

    Args:
      pattern: axes in the file -> axes of the parameter.
      sizes: size of every letter.
      index: the block: one slice for each axis of the parameter, with a start and an end.

    Returns:
      One slice for each axis of the stored array.

    Raises:
      ValueError: the block is not a block of the stored array: it cuts an axis that is not the
        first in its brackets, or that has several letters.
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
    """Move the axes of a stored array, or of a block of it, to those of the parameter."""
    return _moved(array, *_parsed(pattern), sizes)


def to_stored(pattern: str, sizes: Mapping[str, int], array: np.ndarray) -> np.ndarray:
    """Move the axes of a whole parameter to those of the file."""
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
