"""Reading upstream JSON Lines files: one clear line for whatever is not as published."""

import json
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from autollm_jax.errors import UserError
from autollm_jax.sources.download import sha256_of
from autollm_jax.sources.text_file import not_utf8, read_bytes

_log = logging.getLogger(__name__)

# The longest upstream line has under 1,000 characters.
MOST_LINE_BYTES = 1 << 20
MOST_SHOWN = 40  # characters of a value in a message


def read_jsonl(
    path: Path, fields: Sequence[str], kind: str, pinned: Collection[str] = ()
) -> list[tuple[str, dict]]:
    """Read a file of JSON objects, one a line: UTF-8, with or without a mark; empty lines are fine.

    A last line that has no line end and begins an object without ending it was cut off: it is left
    out, and a warning says so. In a file whose SHA-256 is a pinned one nothing was cut off, so that
    such a line is an error, as it is anywhere else.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "runs.jsonl"
    ...     _ = path.write_text('{"lr": 0.001, "loss": 2.5}\\n')
    ...     [(where, row)] = read_jsonl(path, ("lr", "loss"), "made")
    >>> row
    {'lr': 0.001, 'loss': 2.5}

    Args:
      path: the file.
      fields: the fields that every object must have; others are kept.
      kind: what the messages call such a file.
      pinned: the SHA-256 of the files as published.

    Returns:
      Per row its name in messages ("FILE: line 3") and its object. Values are as JSON has them, NaN
      and infinities included: `number_field` and `text_field` check them.

    Raises:
      UserError: the file is no UTF-8 text, or a line is no JSON object, lacks a field, or names one
        twice.
    """
    path = Path(path)
    lines = read_bytes(path, "JSON Lines").split(b"\n")
    rows = []
    for count, line in enumerate(lines, 1):
        where = f"{path}: line {count}"
        if not line.strip():
            continue
        if count == len(lines) and _is_cut(line) and sha256_of(path) not in pinned:
            _log.warning("%s: has no line end and is cut off, so it is left out", where)
            continue
        row = _object(line, where)
        for field in fields:
            if field not in row:
                raise UserError(f"{where}: field `{field}` is missing; {kind} lines have "
                                f"{', '.join(fields)}")  # fmt: skip
        rows.append((where, row))
    return rows


def _is_cut(line: bytes) -> bool:
    """Tell whether a line begins an object and does not end it."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return line.startswith(b"{")
    return False


def _object(line: bytes, where: str) -> dict:
    if len(line) > MOST_LINE_BYTES:
        raise UserError(
            f"{where}: has over {MOST_LINE_BYTES >> 20} MiB; accepted is one JSON object a line"
        )
    try:
        value = json.loads(line.decode(), object_pairs_hook=lambda pairs: _once(pairs, where))
    except UnicodeDecodeError:
        raise not_utf8(where, "JSON Lines") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{where}: not valid JSON (truncated?): {reason}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: is a {type(value).__name__}; accepted is a JSON object")
    return value


def _once(pairs: list[tuple], where: str) -> dict:
    """Make an object of its pairs; Python itself would keep the last of two alike."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{where}: field `{twice[:MOST_SHOWN]}` comes twice; accepted is once")
    return found


def number_field(row: Mapping, field: str, where: str, least: float = -math.inf) -> float:
    """Return the finite number, `least` or more, that a field holds.

    Args:
      row: an object of a JSON Lines file, or one within it.
      field: one of its fields.
      where: the row's name in messages.
      least: the least number that is accepted.

    Raises:
      UserError: the field is missing, no number, not finite, or less than `least`.
    """
    number = _number(row.get(field))
    if not math.isfinite(number) or number < least:
        accepted = "a finite number" + ("" if least == -math.inf else f", {least:g} or more")
        raise UserError(f"{where}: `{field}` is {_shown(row.get(field))}; accepted is {accepted}")
    return number


def outcome_field(row: Mapping, field: str, where: str) -> float:
    """Return the number that a field holds; a run that diverged has nan or an infinity.

    Raises:
      UserError: the field is missing or no number.
    """
    value = row.get(field)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(f"{where}: `{field}` is {_shown(value)}; accepted is a number")
    return _number(value)


def _number(value) -> float:
    """Return a JSON number as a float; nan where the value is no number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def text_field(row: Mapping, field: str, where: str) -> str:
    """Return the text that a field holds.

    Raises:
      UserError: the field is missing or no text.
    """
    value = row.get(field)
    if not isinstance(value, str):
        raise UserError(f"{where}: `{field}` is {_shown(value)}; accepted is a text")
    return value


def _shown(value) -> str:
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = json.dumps(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
