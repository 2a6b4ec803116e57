"""An upstream repository as its user has it: a folder, a git checkout, or GitHub's archive.

All forms become a folder for a source's `read`. An archive or a checkout is hostile until read:
nothing in it is executed, and only the source's own files are taken out of it, each to the place
that the source itself names, so that no name in an archive decides where anything is written.
"""

import contextlib
import functools
import gzip
import logging
import lzma
import os
import shutil
import stat
import struct
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from autollm_jax.errors import UserError
from autollm_jax.sources.source import Source

_log = logging.getLogger(__name__)

ARCHIVE_ENDS = (".zip", ".tar.gz", ".tgz")
# Upstream files have about 1 MB at most; the archives hold other files too.
MOST_FILE_BYTES = 64 << 20
MOST_BYTES = 256 << 20  # of all files that are taken out
MOST_TAR_BYTES = 2 << 30  # a .tar.gz is unpacked to its end, wherever the wanted files lie
MOST_MEMBERS = 200_000
CHUNK_BYTES = 1 << 20
GIT_SECONDS = 120

# What zipfile, gzip and tarfile raise on damaged or hostile archives.
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    zlib.error,
)


@contextlib.contextmanager
def upstream_folder(path: str | os.PathLike, source: Source) -> Iterator[Path]:
    """Give what `source.read` takes, whatever form of the upstream repository lies at `path`.

    A folder or a file is given as it is. If a folder is a git checkout whose working tree lacks
    some of the source's files, they are read at the pinned commit from its objects. An archive's
    files are unpacked into a temporary folder. Errors raised inside name `path`, not that folder.

    Args:
      path: a folder, a git checkout, an archive (.zip, .tar.gz, .tgz), or one upstream file.
      source: the source whose files are wanted.

    Raises:
      UserError: an archive is damaged, hostile or lacks the files, or a checkout has neither the
        files nor the pinned commit.
    """
    path = Path(path)
    if path.is_file() and path.name.lower().endswith(ARCHIVE_ENDS):
        take = _unzip if path.name.lower().endswith(".zip") else _untar
    elif path.is_dir() and _is_repository(path) and _lacks_files(path, source):
        take = _take_from_git
    else:
        yield path
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        taken = take(path, source, folder)
        try:
            yield folder if taken else path
        except UserError as error:
            raise UserError(str(error).replace(name, str(path))) from error


def wanted_file(member: str, files: Sequence[str]) -> str | None:
    """Return the one upstream file that an archive's member is, None if it is none.

    The member may lie below one top folder (GitHub's `REPO-COMMIT/`), and leading folders of the
    upstream path may be missing as long as one file alone fits.

    >>> files = ["data/a/runs.csv", "data/b/runs.csv"]
    >>> wanted_file("repo-1f43ee/data/a/runs.csv", files), wanted_file("b/runs.csv", files)
    ('data/a/runs.csv', 'data/b/runs.csv')
    >>> wanted_file("runs.csv", files) is wanted_file("repo-1f43ee/other/data/a/runs.csv", files)
    True
    """
    member = member.removeprefix("./")
    for name in (member, member.partition("/")[2]):
        found = [file for file in files if name and f"/{file}".endswith(f"/{name}")]
        if len(found) == 1:
            return found[0]
    return None


class _Taker:
    """Takes a source's files out of an archive, within the limits."""

    def __init__(self, archive: Path, source: Source, folder: Path):
        self._archive, self._folder = archive, folder
        self._files = list(source.files)
        self._members = self._bytes = 0
        self._taken: set[str] = set()

    def wanted(self, member: str) -> str | None:
        """Count a member, check its name, and return the upstream file that it is, if any."""
        self._members += 1
        if self._members > MOST_MEMBERS:
            raise self._refused(f"it has over {MOST_MEMBERS} members")
        if member.startswith("/") or "\\" in member or ".." in member.split("/"):
            raise self._refused(f"the name of its member {member[:80]!r} leads out of it")
        return wanted_file(member, self._files)

    def take(self, file: str, regular: bool, size: int, opened: Callable[[], Any]) -> None:
        """Write a wanted member to the place of the upstream file that it is.

        Args:
          file: the upstream file.
          regular: whether the member is a file, not a link or a device.
          size: the bytes that the archive declares; no more are ever read.
          opened: opens the member.
        """
        if not regular:
            raise self._refused(f"its {file} is a link or a device, not a file")
        if file in self._taken:
            raise self._refused(f"{file} comes twice")
        self._bytes += size
        if size > MOST_FILE_BYTES or self._bytes > MOST_BYTES:
            raise self._refused(
                f"its {file} has {size} bytes; accepted are {MOST_FILE_BYTES >> 20} MiB a file, "
                f"{MOST_BYTES >> 20} MiB in all"
            )
        place = self._folder / file
        place.parent.mkdir(parents=True, exist_ok=True)
        with opened() as content, open(place, "wb") as out:
            shutil.copyfileobj(content, out, CHUNK_BYTES)
        self._taken.add(file)

    def finish(self) -> bool:
        """Refuse an archive without any wanted file."""
        if not self._taken:
            wanted = ", ".join(self._files[:3]) + (", ..." if len(self._files) > 3 else "")
            raise UserError(f"{self._archive}: has none of the upstream files; accepted: {wanted}")
        return True

    def _refused(self, problem: str) -> UserError:
        return UserError(f"{self._archive}: refused: {problem}; nothing was imported")


def _unzip(path: Path, source: Source, folder: Path) -> bool:
    taker = _Taker(path, source, folder)
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                file = None if info.is_dir() else taker.wanted(info.filename)
                if file is not None:
                    # The upper half holds the Unix mode where a Unix wrote it, else 0.
                    regular = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
                    opened = functools.partial(archive.open, info)
                    taker.take(file, regular, info.file_size, opened)
    except _DAMAGED as error:
        raise _damaged(path, "zip", error) from error
    return taker.finish()


def _untar(path: Path, source: Source, folder: Path) -> bool:
    taker = _Taker(path, source, folder)
    try:
        with gzip.open(path) as unpacked:
            stream: Any = _Counted(unpacked, path)
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    file = None if member.isdir() else taker.wanted(member.name)
                    if file is not None:
                        opened = functools.partial(archive.extractfile, member)
                        taker.take(file, member.isreg(), member.size, opened)
            # The checksum of the whole stands at its end.
            while stream.read(CHUNK_BYTES):
                pass
    except _DAMAGED as error:
        raise _damaged(path, "tar.gz", error) from error
    return taker.finish()


class _Counted:
    """A stream that is refused beyond MOST_TAR_BYTES."""

    def __init__(self, stream: gzip.GzipFile, path: Path):
        self._stream, self._path, self._count = stream, path, 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._count += len(data)
        if self._count > MOST_TAR_BYTES:
            raise UserError(
                f"{self._path}: refused: it unpacks to over {MOST_TAR_BYTES >> 20} MiB; nothing "
                "was imported"
            )
        return data


def _damaged(path: Path, kind: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return UserError(f"{path}: not a readable .{kind} archive (truncated?): {reason}")


def _is_repository(path: Path) -> bool:
    bare = (path / "HEAD").is_file() and (path / "objects").is_dir() and (path / "refs").is_dir()
    return bare or (path / ".git").exists()


def _lacks_files(path: Path, source: Source) -> bool:
    return not all((path / file).is_file() for file in source.files)


def _take_from_git(path: Path, source: Source, folder: Path) -> bool:
    """Write the files as they are at the pinned commit; False if the working tree must do."""
    try:
        _git(path, ["cat-file", "-e", f"{source.commit}^{{commit}}"])
        names = "".join(f"{source.commit}:{file}\n" for file in source.files).encode()
        listed = _git(path, ["cat-file", "--batch-check=%(objecttype) %(objectsize)"], names)
        blobs = [
            (file, int(line.split()[1]))
            for file, line in zip(source.files, listed.decode().splitlines(), strict=True)
            if line.startswith("blob ")
        ]
        if not blobs:
            raise UserError(f"{path}: commit {source.commit} has none of {source.name}'s files")
        if sum(size for _, size in blobs) > MOST_BYTES:
            raise UserError(f"{path}: its files have over {MOST_BYTES >> 20} MiB")
    except UserError as error:
        names = {Path(file).name for file in source.files}
        if not any(found.name in names for found in path.rglob("*")):
            raise
        _log.warning("%s; the files of its working tree are read", error)
        return False
    for file, _ in blobs:
        place = folder / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(_git(path, ["cat-file", "blob", f"{source.commit}:{file}"]))
    return True


def _git(path: Path, arguments: Sequence[str], given: bytes = b"") -> bytes:
    """Run a git command that only reads objects: no hook, no filter, no pager, no network."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    quiet = {"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "--no-replace-objects", "-C", str(path), *arguments]
    try:
        done = subprocess.run(
            command,
            input=given,
            env=inherited | quiet,
            capture_output=True,
            timeout=GIT_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: is a git checkout whose working tree lacks the files, and the program git "
            "is not installed to read them from its objects"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{path}: git did not answer within {GIT_SECONDS} seconds") from error
    if done.returncode:
        reason = " ".join(done.stderr.decode(errors="replace").split())[:160]
        raise UserError(
            f"{path}: git cannot read the upstream files at the pinned commit ({reason}); accepted "
            "is a clone with its whole history, a checkout of that commit, or its archive"
        )
    return done.stdout
