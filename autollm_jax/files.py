"""Files: atomic writes (a reader sees the old content or the new), JSON, JSON Lines, hashes."""

import functools
import hashlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from autollm_jax.errors import UserError, one_line


def writable_folder(path: str | os.PathLike) -> Path:
    """Make a folder where there is none, and check that files can be made in it.

    Raises:
      UserError: it cannot be made or written, or a file is in its place.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; accepted is a folder")
    probe = path / f".writable_{socket.gethostname()}_{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); accepted is a folder in which files "
            "can be made"
        ) from error
    return path


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
      UserError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a text file: {one_line(error)}") from error


def read_json(path: Path) -> dict:
    """Read a JSON object.

    Raises:
      UserError: the file cannot be read, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object")
    return values


def read_json_lines(
    path: str | os.PathLike,
    parse: Callable[[str], Any] = json.loads,
    *,
    log: bool = False,
    remedy: str = "write the file again",
) -> list:
    """Read a JSON Lines file.

    Args:
      path: the file.
      parse: line -> value.
      log: the file is appended to while a job runs, so that a kill may leave half a last line. It
        is dropped, and a line on stderr says so.
      remedy: ends the error of a damaged line.

    Returns:
      The values, one per line that is not empty.

    Raises:
      UserError: the file cannot be read, or a line is damaged; names file and line.
    """
    path = Path(path)
    text = read_text(path)
    values, lines = [], text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values.append(parse(line))
        except (ValueError, KeyError, TypeError, AttributeError, UserError) as error:
            if log and number == len(lines):  # no line end follows it
                print(f"warning: {path}: dropped half a last line, line {number}", file=sys.stderr)
                continue
            raise UserError(
                f"{path}: line {number} is damaged: {one_line(error)}; {remedy}"
            ) from error
    return values


def append_json_lines(path: str | os.PathLike, values: Iterable) -> None:
    """Append values to a JSON Lines file; half a last line that a kill left is removed first."""
    text = "".join(json.dumps(value) + "\n" for value in values)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


@functools.cache
def package_digest() -> str:
    """Hash all of the package's modules."""
    digest, package = hashlib.sha256(), Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()
