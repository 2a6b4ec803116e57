"""Fetch upstream files and check that they are the pinned ones."""

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from autollm_jax.errors import UserError
from autollm_jax.progress_bar import progress_bar
from autollm_jax.sources.source import Source

TIMEOUT_SECONDS = 20
CHUNK_BYTES = 1 << 16
# A user is asked for so many single files by hand; for more, for the repository's archive.
MOST_LISTED = 10


class DownloadError(UserError):
    """The connection failed.

    Attributes:
      reason: the connection's error, in a line.
    """

    def __init__(self, line: str, reason: str):
        super().__init__(line)
        self.reason = reason


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(source: Source, folder: Path) -> None:
    """Fetch all of a source's files into `folder`, showing progress.

    Raises:
      DownloadError: no connection (the line names the files to fetch by hand).
      UserError: a file's SHA-256 is not the pinned one.
    """
    for file, expected in source.files.items():
        address, path = source.file_address(file), folder / source.place(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _fetch(address, path)
        # Only these exceptions of http.client and urllib mean that the connection failed.
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = " ".join(str(error).split())
            raise DownloadError(
                f"{address}: cannot be downloaded ({reason}); fetch {_by_hand(source)}", reason
            ) from error
        found = sha256_of(path)
        if found != expected:
            raise UserError(
                f"{address}: SHA-256 is {found}, expected {expected}; the download is not the "
                "pinned file, nothing was imported"
            )


def _by_hand(source: Source) -> str:
    placed = hand_placed(source, "FOLDER")
    wanted = " and ".join(placed)
    if len(source.files) > MOST_LISTED:
        return f"{wanted} by hand and give it as --path=FILE"
    return f"{wanted} by hand into a folder and give it as --path=FOLDER"


def hand_placed(source: Source, folder: str) -> dict[str, str]:
    """Return the addresses that a user without a connection here fetches, and where to place each.

    Those are the source's files, or the archive of its whole repository where they are many.

    Args:
      source: the source.
      folder: the folder for the files; an archive is placed beside it.
    """
    if len(source.files) > MOST_LISTED:
        return {source.archive_address: f"{folder}.zip"}
    return {source.file_address(file): f"{folder}/{source.place(file)}" for file in source.files}


def _fetch(address: str, path: Path) -> None:
    with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as response:
        size = int(response.headers.get("Content-Length") or 0) or None
        bar = progress_bar(total=size, unit="B", unit_scale=True, desc=path.name)
        with open(path, "wb") as file, bar:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
