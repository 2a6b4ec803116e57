"""Files as `torch.save` writes them, made without PyTorch: opcodes put together by hand."""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def integers(values) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor(
    key: str, shape, stride, offset=0, size=None, storage=b"ctorch\nFloatStorage\n"
) -> bytes:
    """Return the opcodes of one tensor."""
    size = int(np.prod(shape)) if size is None else size
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + (b"(" + text("storage") + storage + text(key) + text("cuda:0") + integer(size) + b"tQ")
        + (integer(offset) + integers(shape) + integers(stride))
        + b"\x89ccollections\nOrderedDict\n)Rt"
        + b"R"
    )


def state_dict(items: Mapping[str, bytes]) -> bytes:
    """Return a pickle of an ordered dict with a `_metadata` state, as a module's is."""
    pairs = b"".join(text(name) + value for name, value in items.items())
    metadata = b"}" + text("_metadata") + b"}s"
    return b"\x80\x02ccollections\nOrderedDict\n)Rq\x00(" + pairs + b"u" + metadata + b"b."


def write_zip(path: Path, members: Mapping[str, bytes], compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"{path.stem}/{name}", data)
    return path


def torch_file(path: Path, arrays: Mapping[str, np.ndarray], **changes: bytes) -> Path:
    """Write arrays as a state dict; `changes` replaces or adds members of the zip."""
    items, members = {}, {}
    for key, (name, array) in enumerate(arrays.items()):
        stride = [s // array.itemsize for s in array.strides]
        items[name] = tensor(str(key), array.shape, stride)
        members[f"data/{key}"] = array.astype("<f4").tobytes()
    described = {"data.pkl": state_dict(items), "byteorder": b"little", "version": b"3\n"}
    return write_zip(path, described | members | changes)
