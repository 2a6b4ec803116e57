"""Reads the header of a GGUF file: its metadata and the places of its tensors.

The format is llama.cpp's (ggml-org/ggml, docs/gguf.md), versions 2 and 3, little-endian. The
`gguf` library trusts the counts and lengths in a file, and takes seconds for a vocabulary; this
reader checks each against the bytes that are left before it reads on.
"""

import dataclasses
import math
import mmap
import struct
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

_VERSIONS = (2, 3)
_MOST_AXES = 4  # GGML_MAX_DIMS
_LEAST_ENTRY = 12  # bytes of the shortest metadata entry or tensor description
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """The type, shape and place of a tensor.

    Attributes:
      kind: type of its stored numbers.
      shape: its shape, the outer axis first as in numpy.
      start, end: its first byte in the file, and the byte after its last.
    """

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(data: mmap.mmap) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the metadata and the tensors' places, each by name.

    Args:
      data: the whole file.

    Raises:
      ValueError: the file is not GGUF, of another version or byte order, ends too early, or states
        something impossible.
    """
    cursor = _Cursor(data)
    if cursor.take(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = cursor.number("I")
    if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
        raise ValueError(
            "its byte order is big-endian; accepted is little-endian (convert this GGUF version "
            "with the gguf package's gguf-convert-endian)"
        )
    if version not in _VERSIONS:
        raise ValueError(f"version {version}; accepted are {', '.join(map(str, _VERSIONS))}")
    tensors, fields = cursor.count(_LEAST_ENTRY), cursor.count(_LEAST_ENTRY)
    metadata = _unique((cursor.text(), cursor.value(cursor.kind())) for _ in range(fields))
    described = _unique(_described(cursor) for _ in range(tensors))
    alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment!r}, not a power of two")
    first = -(-cursor.at // alignment) * alignment
    placed = {name: _placed(first, *where) for name, where in described.items()}
    _check_places(placed, len(data))
    return metadata, placed


class _Cursor:
    """Reads a file from front to back, never beyond its end."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise ValueError(f"it ends before the {size:,} bytes after byte {self.at:,}")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str) -> Any:
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return value

    def count(self, size: int) -> int:
        """Read the number of entries that follow, each of at least `size` bytes."""
        count = self.number("Q")
        if count * size > len(self.data) - self.at:
            raise ValueError(f"it is too short for {count:,} entries from byte {self.at:,} on")
        return count

    def text(self) -> str:
        return str(self.take(self.number("Q")), "utf-8")

    def kind(self) -> GGUFValueType:
        return GGUFValueType(self.number("I"))

    def value(self, kind: GGUFValueType) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        return self.text() if kind == GGUFValueType.STRING else self._array()

    def _array(self) -> list:
        kind = self.kind()
        if kind == GGUFValueType.STRING:
            return [self.text() for _ in range(self.count(8))]
        if kind not in _SCALARS:
            raise ValueError("an array of arrays is not supported")
        dtype = np.dtype(f"<{_SCALARS[kind]}" if kind != GGUFValueType.BOOL else "?")
        return np.frombuffer(self.take(self.count(dtype.itemsize) * dtype.itemsize), dtype).tolist()


def _unique(pairs) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} occurs twice")
        found[name] = value
    return found


def _described(cursor: _Cursor) -> tuple[str, tuple[tuple[int, ...], GGMLQuantizationType, int]]:
    name, axes = cursor.text(), cursor.number("I")
    if not 1 <= axes <= _MOST_AXES:
        raise ValueError(f"{name!r} has {axes} axes; accepted are 1 to {_MOST_AXES}")
    shape = tuple(cursor.number("Q") for _ in range(axes))[::-1]
    if 0 in shape:
        raise ValueError(f"{name!r} has shape {shape}; an axis of length 0 holds no weights")
    return name, (shape, GGMLQuantizationType(cursor.number("I")), cursor.number("Q"))


def _placed(first: int, shape, kind: GGMLQuantizationType, offset: int) -> Tensor:
    start = first + offset
    return Tensor(kind, shape, start, start + math.prod(shape[:-1]) * row_bytes(kind, shape[-1]))


def row_bytes(kind: GGMLQuantizationType, length: int) -> int:
    """Return the number of bytes of a row of `length` numbers.

    Raises:
      ValueError: the row is not a whole number of blocks.
    """
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if length % block:
        raise ValueError(
            f"a row of {length} numbers does not divide into {kind.name} blocks of {block}"
        )
    return length // block * size


def _check_places(placed: dict[str, Tensor], size: int) -> None:
    end, before = 0, ""
    for name, tensor in sorted(placed.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.end > size:
            raise ValueError(f"{name!r} ends at byte {tensor.end:,} of {size:,}")
        if tensor.start < end:
            raise ValueError(f"{name!r} and {before!r} overlap")
        end, before = tensor.end, name
