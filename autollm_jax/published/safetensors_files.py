"""Reads and writes folders of safetensors files: one file, or several with an index."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from autollm_jax.errors import UserError, one_line
from autollm_jax.files import read_json, write_json_atomic
from autollm_jax.published.pattern import Slices

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_ROWS = 8192  # rows that are compared at a time
_SHARD = r"[\w-][\w.-]*\.safetensors"
_WRITTEN_SHARD = "model-[0-9]*-of-[0-9]*.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
READ = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class SafetensorsFiles:
    """The tensors of a folder, read part by part.

    Attributes:
      shapes: shape of each tensor by name.
      dtypes: stored type of each tensor by name, a value of `READ`.

    Raises:
      UserError: a file is missing, damaged, or holds a tensor of a type that is not in `READ`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._open = {}
        self._file_of: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        indexed = _index(folder)
        for file in sorted(set(indexed.values())) if indexed else [SINGLE]:
            for name, shape, dtype in self._described(file):
                if name in self.shapes:
                    raise UserError(f"{folder / file}: {name} is also in {self._file_of[name]}")
                self._file_of[name] = file
                self.shapes[name], self.dtypes[name] = shape, READ[dtype]
        for name, file in indexed.items():
            if self._file_of.get(name) != file:
                raise UserError(f"{folder / INDEX}: {name} is not in {file}")

    def _described(self, file: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
        path = self.folder / file
        if not path.exists():
            refuse_pickled(sorted(self.folder.iterdir()))
            raise UserError(f"{path}: missing")
        if not _belongs(path):
            raise UserError(f"{path}: a link out of its folder; copy the file itself into it")
        try:
            self._open[file] = safe_open(path, framework="np")
            for name in self._open[file].keys():  # noqa: SIM118, it is no mapping
                part = self._open[file].get_slice(name)
                dtype = part.get_dtype()
                if dtype not in READ:
                    raise UserError(f"{path}: {name} is {dtype}; accepted are {', '.join(READ)}")
                yield name, tuple(part.get_shape()), dtype
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a whole safetensors file: {one_line(error)}") from error

    def read(self, name: str, slices: Slices) -> np.ndarray:
        """Read a block of a tensor as float32; `slices` has one slice for each axis."""
        block = self._open[self._file_of[name]].get_slice(name)[slices]
        return np.asarray(block).astype(np.float32)

    def equal(self, name: str, other: str) -> bool:
        """Return whether two tensors are equal; they are compared some rows at a time."""
        if self.shapes[name] != self.shapes[other]:
            return False
        length = self.shapes[name][0]
        blocks = (slice(row, min(row + _ROWS, length)) for row in range(0, length, _ROWS))
        return all(np.array_equal(self.read(name, (b,)), self.read(other, (b,))) for b in blocks)


def _index(folder: Path) -> dict[str, str]:
    """Read the file of each tensor from the index; empty where there is no index."""
    path = folder / INDEX
    if not path.exists():
        return {}
    values = read_json(path)
    weights = values.get("weight_map")
    if not isinstance(weights, dict) or not all(
        isinstance(file, str) and re.fullmatch(_SHARD, file) for file in weights.values()
    ):
        raise UserError(f"{path}: weight_map does not name files of this folder")
    return weights


def _belongs(path: Path) -> bool:
    """Return whether a file lies in its folder, or is a link of the Hub's cache to its `blobs`."""
    folder, target = path.parent.resolve(), path.resolve()
    cached = folder.parent.name == "snapshots" and target.parent == folder.parents[1] / "blobs"
    return cached or target.parent == folder


def refuse_pickled(paths: Iterable[Path]) -> None:
    """Refuse pickled checkpoints: reading one runs the code in it.

    Raises:
      UserError: one of the paths is a pickled checkpoint.
    """
    for path in paths:
        if path.suffix in PICKLED:
            raise UserError(
                f"{path}: a pickled checkpoint, which can run code when it is read and is never "
                "opened; convert it to safetensors where you trust it (transformers' "
                "save_pretrained)"
            )


def write(folder: Path, shards: Iterator[Mapping[str, np.ndarray]]) -> None:
    """Write tensors, one file a shard, and an index where there are several shards.

    Files get their final names after all are written. Just before, the files of an earlier export
    are deleted, its index first: a kill at any moment leaves no loadable mixture of the two.

    Args:
      folder: output, made if needed.
      shards: tensors by name; one shard at a time is held in memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written, weights, total = [], {}, 0
    for number, shard in enumerate(shards):
        path = folder / f".part-{number}.safetensors"
        save_file(dict(shard), path, metadata={"format": "pt"})
        path.chmod(0o644)  # the library makes it readable for its owner alone
        written.append((path, list(shard)))
        total += sum(array.nbytes for array in shard.values())
    alone = len(written) == 1
    earlier = [folder / INDEX, *folder.glob(_WRITTEN_SHARD)]
    for path in earlier if alone else [*earlier, folder / SINGLE]:
        path.unlink(missing_ok=True)
    for number, (path, names) in enumerate(written):
        name = SINGLE if alone else f"model-{number + 1:05}-of-{len(written):05}.safetensors"
        path.rename(folder / name)
        weights |= dict.fromkeys(names, name)
    if not alone:
        index = {"metadata": {"total_size": total}, "weight_map": weights}
        write_json_atomic(folder / INDEX, index)
