"""Reads tables of text: CSV and its kin, as editors, spreadsheets and programs write them."""

import csv
import gzip
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from autollm_jax.advise.rows import ACCEPTED, Cell, Rows
from autollm_jax.errors import UserError

DELIMITERS = ",;\t|"
SPACES = r" {2,}|\t"  # between the columns of a printed table
SUMMARY = r"(grand )?total|sum|mean|average|avg|median|std|stdev|min|max|count"
SAMPLE = 64  # lines that the delimiter is found on
LEAST_COLUMNS = 2


def read_delimited(path: Path, least: int = LEAST_COLUMNS) -> Rows:
    """Read a file; fewer columns than the least are a sign of another delimiter."""
    csv.field_size_limit(2**31 - 1)
    text = decoded(path)
    if re.match(r"\s*<(!doctype|html|\?xml)", text[:100], re.IGNORECASE):
        raise UserError(f"{path}: is a web page; download the file itself; accepted are {ACCEPTED}")
    lines = text.splitlines()
    if not any(line.strip() for line in lines):
        raise UserError(f"{path}: is empty; accepted is a header and a line for each run")
    delimiter, first = _layout(lines)
    if delimiter == SPACES:
        delimiter, lines = "\t", [re.sub(SPACES, "\t", line.strip()) for line in lines]
    reader = csv.reader(lines[first:], delimiter=delimiter, skipinitialspace=True)
    rows, places, notes, again = [], [], [], 0
    try:
        named = [name.strip() for name in next(reader)]
        header, repeated = _unique(named)
        if repeated:
            notes.append(f"columns named twice: {', '.join(repeated)}; each is kept, as NAME.2")
        if sum(_is_number(name) for name in named) > len(named) / 2:
            raise UserError(
                f"{path}, line {first + 1}: holds numbers, no names of columns; accepted is a "
                "header such as learning_rate,parameters,tokens,loss above the runs"
            )
        for cells in reader:
            cells = list(map(str.strip, cells))
            if not any(cells):
                continue
            if cells == named:
                again += 1
                continue
            place = f"{path.name}, line {first + reader.line_num}"
            if len(cells) > len(header):
                if any(cells[len(header) :]):
                    notes.append(f"{place}: more cells than the header has; the last are left out")
            cells += [""] * (len(header) - len(cells))
            rows.append(dict(zip(header, cells, strict=False)))
            places.append(place)
    except csv.Error as error:
        raise UserError(f"{path}: {error}; accepted are {ACCEPTED}") from error
    if again:
        notes.append(f"the header comes {again + 1} times; once is enough")
    if unnamed := [n for n, name in enumerate(named, 1) if not name and _says(rows, header[n - 1])]:
        notes.append(
            f"no name above column {', '.join(map(str, unnamed))}, so that it is left out; name it "
            "in the header"
        )
    if last := _summaries(rows, header[0]):
        notes.append(
            f"lines at the end that sum up the others ({rows[-1][header[0]]!r}): {last} left out"
        )
        rows, places = rows[:-last], places[:-last]
    if len(header) < least:
        raise UserError(
            f"{path}: one column only ({header[0][:40]!r}); accepted are columns divided by comma, "
            "semicolon, tab or |"
        )
    return Rows(tuple(rows), tuple(places), delimiter != ",", tuple(notes))


def decoded(path: Path) -> str:
    """Decode a text, whatever editor wrote it."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: a damaged gzip file ({error}); pack it again") from error
    if data[:2] == b"PK" or data[:4] == b"\xd0\xcf\x11\xe0":
        raise UserError(f"{path}: is a spreadsheet; save it as CSV; accepted are {ACCEPTED}")
    if data[:4] == b"PAR1" or b"\x00\x00\x00" in data[:1024]:
        raise UserError(f"{path}: is no text; accepted are {ACCEPTED}")
    marks = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    guess = "utf-8-sig"
    if b"\x00" in data[:64]:  # UTF-16 without a mark: every second byte of plain letters is zero
        guess = "utf-16-le" if data[1:2] == b"\x00" else "utf-16-be"
    for encoding in (marks.get(data[:2], guess), "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def _layout(lines: Sequence[str]) -> tuple[str, int]:
    """Return a file's delimiter, and its header's place below blank lines, titles and comments.

    A spreadsheet may have names of groups above the header: fewer cells than the line below them,
    and words alone in both. By the delimiter most lines have as many cells as the header, and most
    cells.
    """

    def header(delimiter: str) -> int | None:
        """Return the first line with two names or more, below names of groups."""

        def said(place: int) -> list[str]:
            cells = next(csv.reader(lines[place : place + 1], delimiter=delimiter), [])
            return [cell for cell in map(str.strip, cells) if cell]

        for place in range(len(lines[:SAMPLE])):
            if len(said(place)) >= LEAST_COLUMNS and lines[place][0] != "#":
                while len(said(place + 1)) > len(said(place)) and not any(
                    map(_is_number, (*said(place), *said(place + 1)))
                ):
                    place += 1
                return place
        return None

    def fit(delimiter: str) -> tuple[float, int]:
        first = header(delimiter)
        if first is None:
            return 0.0, 0
        below = csv.reader(lines[first : first + SAMPLE], delimiter=delimiter)
        counts = [len(cells) for cells in below if cells]
        return sum(count == counts[0] for count in counts) / len(counts), counts[0]

    best = max(DELIMITERS, key=fit)
    first = header(best)
    if first is not None and fit(best)[0] > 0.5:
        return best, first
    start = next(n for n, line in enumerate(lines) if line.strip())
    widths = {len(re.split(SPACES, line.strip())) for line in lines[start:] if line.strip()}
    if len(widths) == 1 and widths != {1}:
        return SPACES, start
    return best, start if first is None else first


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _says(rows: Sequence[Mapping[str, Cell]], name: str) -> bool:
    return any(row[name] for row in rows)


def _summaries(rows: Sequence[Mapping[str, Cell]], name: str) -> int:
    """Count the last rows that a spreadsheet puts below the others: their sum, their mean."""

    def sums_up(row: Mapping[str, Cell]) -> bool:
        return bool(re.fullmatch(SUMMARY, str(row[name]).strip(": ").lower()))

    count = next((n for n, row in enumerate(reversed(rows)) if not sums_up(row)), 0)
    return 0 if count and any(map(sums_up, rows[: len(rows) - count])) else count


def _unique(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Give every column a name of its own; also returns the names that came twice."""
    made: dict[str, None] = {}  # a set in order
    repeated: list[str] = []
    for number, name in enumerate(names, 1):
        name = name or f"column{number}"
        if name in made:
            repeated.append(name)
            copy = 2
            while f"{name}.{copy}" in made:
                copy += 1
            name = f"{name}.{copy}"
        made[name] = None
    return list(made), list(dict.fromkeys(repeated))
