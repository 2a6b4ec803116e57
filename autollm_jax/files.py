"""Files: written atomically (a reader sees the old content or the new), read, hashed."""

import functools
import hashlib
import json
import os
import socket
from pathlib import Path

from autollm_jax.errors import UserError, one_line


def write_atomic(path: str | os.PathLike, data: bytes | str) -> None:
    """Write `data` to `path` so that a kill at any moment leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Host and process id keep two writers of one path from sharing a temporary file.
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    with open(partial, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json_atomic(path: str | os.PathLike, value) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
      UserError: it cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a text file: {one_line(error)}") from error


def read_json(path: Path) -> dict:
    """Read a JSON object.

    Raises:
      UserError: the file cannot be read, or holds none.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object")
    return values


@functools.cache
def code_digest(*folders: str) -> str:
    """Hash the modules of some of the package's folders: what depends on their code names it."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((Path(__file__).parent / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def package_digest() -> str:
    """Hash all of the package's modules."""
    digest, package = hashlib.sha256(), Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()
