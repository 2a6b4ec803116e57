"""Reading upstream CSV files: one clear line for whatever is not as published."""

import csv
import io
import logging
import math
from collections.abc import Collection, Sequence
from pathlib import Path

from autollm_jax.errors import UserError
from autollm_jax.sources.download import sha256_of
from autollm_jax.sources.text_file import not_utf8, read_bytes

_log = logging.getLogger(__name__)

OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def read_csv(
    path: Path, columns: Sequence[str], kind: str, pinned: Collection[str] = ()
) -> tuple[list[str], list[tuple]]:
    """Read a CSV file with a header: UTF-8, with or without a mark, any line ends.

    A file whose SHA-256 is a pinned one is whole, however its last line ends. In any other file a
    last line without a line end may have been cut within its last number: that row is left out,
    and a warning says so.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "runs.csv"
    ...     _ = path.write_text("lr,loss\\n0.001,2.5\\n")
    ...     header, [(where, row)] = read_csv(path, ("lr", "loss"), "made")
    >>> row
    {'lr': '0.001', 'loss': '2.5'}

    Args:
      path: the file.
      columns: the columns it must have.
      kind: what the messages call such a file.
      pinned: the SHA-256 of the files as published.

    Returns:
      The header, and per row its name in messages ("FILE: line 3") and its fields by column.

    Raises:
      UserError: it is no such file, or a line has more or fewer fields than the header.
    """
    data = read_bytes(path, "CSV")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise not_utf8(path, "CSV") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        header = [name.strip() for name in reader.fieldnames or []]
        _check_header(path, header, columns, kind)
        reader.fieldnames = header
        for row in reader:
            where = f"{path}: line {reader.line_num}"
            if None in row or None in row.values():
                problem = "more" if None in row else "fewer"
                raise UserError(f"{where}: has {problem} fields than the header (truncated?)")
            rows.append((where, row))
    except csv.Error as error:
        raise UserError(f"{path}: not a readable CSV file: {error}") from error
    whole = text.endswith(("\n", "\r")) or sha256_of(path) in pinned
    if rows and not whole:
        _log.warning(
            "%s: the last line has no line end, so it may be cut off and is left out; add a line "
            "end if it is whole",
            rows.pop()[0],
        )
    return header, rows


def _check_header(path: Path, header: list[str], columns: Sequence[str], kind: str) -> None:
    missing = [column for column in columns if column not in header]
    if not missing and len(set(header)) == len(header):
        return
    for delimiter, name in OTHER_DELIMITERS.items():
        if len(header) == 1 and delimiter in header[0]:
            raise UserError(f"{path}: its fields are separated by {name}; accepted are commas")
    if missing:
        raise UserError(
            f"{path}: column `{missing[0]}` is missing; {kind} files have the columns "
            f"{', '.join(columns)}"
        )
    twice = next(name for name in header if header.count(name) > 1)
    raise UserError(f"{path}: column `{twice}` comes twice; accepted is once")


def number(text: str, column: str, where: str) -> float:
    """Return the number that a field holds, nan and infinities included."""
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{where}: `{column}` is {text!r}; accepted is a number") from None


def finite_number(text: str, column: str, where: str, least: float = -math.inf) -> float:
    """Return the finite number, `least` or more, that a field holds."""
    value = number(text, column, where)
    if not math.isfinite(value) or value < least:
        accepted = "finite number" if least == -math.inf else f"finite number, {least:g} or more"
        raise UserError(f"{where}: `{column}` is {text}; accepted is a {accepted}")
    return value
