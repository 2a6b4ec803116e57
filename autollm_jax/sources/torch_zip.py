"""Reads the tensors of a PyTorch file without PyTorch and without executing the pickle inside.

`torch.save` writes a zip of stored (never compressed) members: `NAME/data.pkl`, which describes the
tensors, and their bytes in `NAME/data/KEY`. A pickle is a program. Here a small machine walks its
opcodes one by one and knows only those that a state dict of float tensors needs. It imports nothing
and calls nothing: the few names that a state dict uses are compared as text, and any other name or
opcode is refused.
"""

import dataclasses
import math
import pickletools
import struct
import zipfile
from pathlib import Path

import numpy as np

from autollm_jax.errors import UserError

# Upstream's files have 0.3 MB and a pickle of 1 kB.
MOST_BYTES = 64 << 20
MOST_PICKLE_BYTES = 1 << 20

ORDERED_DICT = "collections OrderedDict"
REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
FLOAT_STORAGE = "torch FloatStorage"
_NAMES = (ORDERED_DICT, REBUILD_TENSOR, FLOAT_STORAGE)

_MARK = object()
_CONSTANTS = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None}
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE")
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Refused(ValueError):
    """The file is no state dict of float tensors."""


@dataclasses.dataclass(frozen=True)
class _Name:
    """A name that the pickle would import: only its text."""

    text: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    size: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Return the float tensors of a PyTorch state dict by name, as f32 arrays.

    Raises:
      UserError: it is not such a file, it is truncated, or its pickle asks for anything else than
        float tensors (nothing is executed in any case).
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise _Refused(f"has over {MOST_BYTES >> 20} MiB")
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive)
    # zipfile raises these on damaged or hostile files.
    except (
        zipfile.BadZipFile,
        EOFError,
        NotImplementedError,
        OSError,
        RuntimeError,
        ValueError,
        struct.error,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path}: not a PyTorch file of float tensors (truncated?): {reason}; nothing in it "
            "was executed"
        ) from error


def _read_archive(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    members = {info.filename: info for info in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise _Refused("two members of the zip have one name")
    # Stored members are as long as they declare; overlapping ones are caught by the sum.
    if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
        raise _Refused("a member of the zip is compressed; PyTorch stores them")
    if sum(info.file_size for info in members.values()) > MOST_BYTES:
        raise _Refused(f"the members of the zip declare over {MOST_BYTES >> 20} MiB")
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise _Refused(f"the zip has {len(pickles)} members NAME/data.pkl; accepted is one")
    root = pickles[0].removesuffix("data.pkl")
    if members[pickles[0]].file_size > MOST_PICKLE_BYTES:
        raise _Refused("data.pkl has over 1 MiB")
    if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
        raise _Refused("its byte order is not little-endian")
    tensors = walk(archive.read(pickles[0]))
    arrays = {}
    for name, tensor in tensors.items():
        member = f"{root}data/{tensor.storage.key}"
        if member not in members or members[member].file_size != 4 * tensor.storage.size:
            raise _Refused(
                f"{member}, of {tensor.storage.size} floats, is missing or of other size"
            )
        values = np.frombuffer(archive.read(member), "<f4")
        values = values[tensor.offset : tensor.offset + math.prod(tensor.shape)]
        arrays[name] = values.reshape(tensor.shape).astype(np.float32)
    return arrays


def walk(data: bytes) -> dict[str, _Tensor]:
    """Walk a pickle's opcodes and return the state dict that it describes.

    Raises:
      ValueError: the pickle is malformed, or holds something else.
    """
    stack: list = []
    memo: dict = {}
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "STOP":
            break
        _step(opcode.name, argument, stack, memo)
    if len(stack) != 1 or not isinstance(stack[0], dict):
        raise _Refused("data.pkl holds no state dict")
    for name, tensor in stack[0].items():
        if not isinstance(tensor, _Tensor):
            raise _Refused(f"data.pkl: {name!r:.40} is no tensor")
    return stack[0]


def _step(name: str, argument, stack: list, memo: dict) -> None:
    if name in _VALUES:
        stack.append(argument)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name == "GLOBAL":
        if argument not in _NAMES:
            raise _Refused(f"data.pkl asks for {argument!r:.80}; accepted are {', '.join(_NAMES)}")
        stack.append(_Name(argument))
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "EMPTY_DICT":
        stack.append({})
    elif name in _TUPLES:
        count = _TUPLES[name]
        stack.append(tuple(_pop(stack) for _ in range(count))[::-1])
    elif name == "TUPLE":
        stack.append(tuple(_pop_to_mark(stack)))
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = _top(stack)
    elif name in ("BINGET", "LONG_BINGET"):
        if argument not in memo:
            raise _Refused("data.pkl refers to what it has not put down")
        stack.append(memo[argument])
    elif name == "BINPERSID":
        stack.append(_storage(_pop(stack)))
    elif name == "REDUCE":
        arguments = _pop(stack)
        stack.append(_reduce(_pop(stack), arguments))
    elif name in ("SETITEM", "SETITEMS"):
        items = _pop_to_mark(stack) if name == "SETITEMS" else [_pop(stack), _pop(stack)][::-1]
        _set_items(_top(stack), items)
    elif name == "BUILD":
        # The state of the dict itself: module versions, which say nothing about the tensors.
        if not isinstance(_pop(stack), dict) or not isinstance(_top(stack), dict):
            raise _Refused("data.pkl sets the state of something else than a dict")
    elif name != "PROTO":
        raise _Refused(f"data.pkl uses the opcode {name}, which no state dict needs")


def _top(stack: list):
    if not stack or stack[-1] is _MARK:
        raise _Refused("data.pkl is malformed: it takes from an empty stack")
    return stack[-1]


def _pop(stack: list):
    value = _top(stack)
    stack.pop()
    return value


def _pop_to_mark(stack: list) -> list:
    items = []
    while stack and stack[-1] is not _MARK:
        items.append(stack.pop())
    if not stack:
        raise _Refused("data.pkl is malformed: it takes up to a mark that is not there")
    stack.pop()
    return items[::-1]


def _set_items(target, items: list) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise _Refused("data.pkl is malformed: it sets items of no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str) or key in target:
            raise _Refused("data.pkl has a key that is no text, or comes twice")
        target[key] = value


def _reduce(function, arguments):
    if function == _Name(ORDERED_DICT) and arguments == ():
        return {}
    if function == _Name(REBUILD_TENSOR) and isinstance(arguments, tuple) and len(arguments) == 6:
        storage, offset, shape, stride, _, _ = arguments
        return _tensor(storage, offset, shape, stride)
    raise _Refused("data.pkl makes something else than a dict or a tensor")


def _storage(value) -> _Storage:
    match value:
        case ("storage", _Name(text=text), str(key), str(), int(size)) if text == FLOAT_STORAGE:
            if key.isalnum() and 0 <= size <= MOST_BYTES // 4:
                return _Storage(key, size)
    raise _Refused("data.pkl refers to something else than a storage of f32 numbers")


def _tensor(storage, offset, shape, stride) -> _Tensor:
    whole = [isinstance(v, tuple) and all(type(n) is int for n in v) for v in (shape, stride)]
    if not isinstance(storage, _Storage) or type(offset) is not int or not all(whole):
        raise _Refused("data.pkl describes a tensor by other things than numbers")
    steps = [math.prod(shape[place + 1 :]) for place in range(len(shape))]
    used = list(zip(shape, stride, steps, strict=False))
    if len(shape) != len(stride) or any(n > 1 and s != step for n, s, step in used):
        raise _Refused("data.pkl describes a tensor that is not contiguous")
    if offset < 0 or min(shape, default=1) < 1 or offset + math.prod(shape) > storage.size:
        raise _Refused("data.pkl describes a tensor that reaches beyond its storage")
    return _Tensor(storage, offset, shape)
