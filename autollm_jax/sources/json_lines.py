"""Reading upstream JSON Lines files: one clear line for whatever is not as published."""

import json
import logging
import math
from pathlib import Path

from autollm_jax.errors import UserError, one_line

_log = logging.getLogger(__name__)

# The files that this was written for have about 0.3 MB, and lines under 1 kB.
MOST_BYTES = 64 << 20
MOST_LINE_BYTES = 1 << 18
# No amount in a table is larger; greater integers may fit no float.
MOST_NUMBER = 1e300


def read_objects(path: Path) -> list[tuple[str, dict]]:
    """Read a file with one JSON object a line, UTF-8.

    A last line that has no line end and is no JSON was cut off: it is left out, and a warning says
    so.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "trials.jsonl"
    ...     _ = path.write_text('{"loss": 2.5}\\n\\n{"loss": 2.25}\\n{"lo')
    ...     [value for _, value in read_objects(path)]
    [{'loss': 2.5}, {'loss': 2.25}]

    Returns:
      Per object its name in messages ("FILE: line 3") and its content.

    Raises:
      UserError: the file cannot be read, or a line is no JSON object; names file and line.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: has over {MOST_BYTES >> 20} MiB; accepted is a JSON file")
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: not a readable file: {one_line(error)}") from error
    found = []
    for number, line in enumerate(lines, 1):
        where = f"{path}: line {number}"
        if not line.strip():
            continue
        try:
            if len(line) > MOST_LINE_BYTES:
                raise ValueError(f"it has {len(line)} bytes")
            value = json.loads(line.decode("utf-8"), object_pairs_hook=_once)
            if not isinstance(value, dict):
                raise ValueError(f"it is a {type(value).__name__}")
        except (ValueError, RecursionError) as error:
            if number == len(lines) and len(found) > 0:
                _log.warning("%s: has no line end and is no JSON: cut off, so left out", where)
                break
            reason = one_line(error)[:120]
            raise UserError(f"{where}: not a JSON object ({reason}); accepted is one a line") from (
                error
            )
        found.append((where, value))
    return found


def _once(pairs: list[tuple]) -> dict:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key comes twice")
    return value


def number(value: object, name: str, where: str) -> float:
    """Return a JSON number, nan and infinities included; text and booleans are refused."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        found = "missing" if value is None else f"a {type(value).__name__}"
        raise UserError(f"{where}: `{name}` is {found}; accepted is a number")
    # An integer may be too large for a float.
    return float(value) if isinstance(value, float) or abs(value) < MOST_NUMBER else math.inf


def finite_number(value: object, name: str, where: str, least: float = -math.inf) -> float:
    """Return a finite JSON number, `least` or more."""
    found = number(value, name, where)
    if not math.isfinite(found) or found < least:
        accepted = "finite number" if least == -math.inf else f"finite number, {least:g} or more"
        raise UserError(f"{where}: `{name}` is {found:g}; accepted is a {accepted}")
    return found
