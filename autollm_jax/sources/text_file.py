"""Reading the bytes of an upstream text file: one clear line for what is no UTF-8 text."""

from pathlib import Path

from autollm_jax.errors import UserError

# The largest upstream text file has about one megabyte.
MOST_BYTES = 64 << 20


def read_bytes(path: Path, kind: str) -> bytes:
    """Return a text file's bytes, without the mark of UTF-8.

    Args:
      path: the file.
      kind: the format's name in messages.

    Raises:
      UserError: the file cannot be read, is larger than MOST_BYTES, or holds a zero byte, as
        UTF-16 and UTF-32 do.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: has over {MOST_BYTES >> 20} MiB; accepted is a {kind} file")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: not a readable {kind} file: {error}") from error
    # UTF-16 without a mark decodes as UTF-8, with zeros in between.
    if b"\0" in data:
        raise not_utf8(path, kind)
    return data.removeprefix(b"\xef\xbb\xbf")


def not_utf8(path: Path | str, kind: str) -> UserError:
    """Return the error of a file, or of a line of it, that is no UTF-8 text."""
    return UserError(f"{path}: not a readable {kind} file: not UTF-8 text; accepted is UTF-8")
