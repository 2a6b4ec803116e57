import json

import pytest

from autollm_jax.errors import UserError
from autollm_jax.sources.download import sha256_of
from autollm_jax.sources.jsonl_file import number_field, read_jsonl, text_field

TEXT = '{"index": 1, "loss": 2.5}\n{"index": 2, "loss": 2.25, "note": "µ\u2028"}\n'
ROWS = [json.loads(line) for line in TEXT.split("\n")[:2]]


def read(tmp_path, data: bytes, **options):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(data)
    return [row for _, row in read_jsonl(path, ("index", "loss"), "made", **options)]


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\n\n").encode(),
        TEXT.rstrip("\n").encode(),
    ],
)
def test_marks_line_ends_and_empty_lines_do_not_matter(tmp_path, data, caplog):
    assert read(tmp_path, data) == ROWS
    assert not caplog.messages


def test_rows_know_their_lines(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text("\n" + TEXT)
    assert [where for where, _ in read_jsonl(path, (), "made")] == [
        f"{path}: line 2",
        f"{path}: line 3",
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TEXT.encode("utf-16"), "not UTF-8 text"),
        (TEXT.encode("utf-16-le"), "not UTF-8 text"),
        (TEXT.encode("latin-1", "replace"), "line 2: not a readable JSON Lines file: not UTF-8"),
        (b"PK\x03\x04\x00", "not UTF-8 text"),
        (b'{"index": 1}\n', "line 1: field `loss` is missing; made lines have index, loss"),
        (b'{"index": 1, "loss": 2.5, "loss": 3}\n', "line 1: field `loss` comes twice"),
        (b'{"index": 1, "loss": 2.\n{"index": 2, "loss": 3}\n', "line 1: not valid JSON"),
        (TEXT.encode() + b'{"index": 3, "lo\n', "line 3: not valid JSON"),
        (b"[1, 2]\n", "line 1: is a list; accepted is a JSON object"),
        (b"7", "line 1: is a int; accepted is a JSON object"),
        (b"[" * 100_000 + b"\n", "line 1: not valid JSON"),
        (b'{"index": ' + b"9" * 5000 + b', "loss": 1}\n', "line 1: not valid JSON"),
        (TEXT.encode() * 2 + b" " * (1 << 20) + b"1\n", "line 5: has over 1 MiB"),
    ],
)
def test_a_bad_line_is_named_in_one_line(tmp_path, data, message):
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, data)
    assert "\n" not in str(error.value) and "runs.jsonl" in str(error.value)
    assert len(str(error.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("left", range(1, 25))
def test_a_last_line_that_is_cut_off_is_left_out_with_a_warning(tmp_path, caplog, left):
    data = TEXT.rstrip("\n").encode()
    assert read(tmp_path, data[:-left]) == ROWS[:1]
    assert caplog.messages == [
        f"{tmp_path / 'runs.jsonl'}: line 2: has no line end and is cut off, so it is left out"
    ]


def test_nothing_is_cut_off_in_a_pinned_file(tmp_path):
    data = TEXT.rstrip("\n").encode()[:-1]
    read(tmp_path, data)
    with pytest.raises(UserError, match="line 2: not valid JSON"):
        read(tmp_path, data, pinned=[sha256_of(tmp_path / "runs.jsonl")])


def test_a_missing_or_huge_file_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="not a readable JSON Lines file"):
        read_jsonl(tmp_path / "none.jsonl", (), "made")
    monkeypatch.setattr("autollm_jax.sources.text_file.MOST_BYTES", 10)
    with pytest.raises(UserError, match="accepted is a JSON Lines file"):
        read(tmp_path, TEXT.encode())


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("2.5", '"2.5"'),
        (None, "null"),
        (True, "true"),
        (float("nan"), "NaN"),
        (float("-inf"), "-Infinity"),
        (-1, "-1"),
        (10**400, "an integer of 1329 bits"),
        ([0] * 100, r"\[0, 0.*\.\.\."),
    ],
)
def test_a_wrong_number_is_shown_with_what_is_accepted(value, shown):
    with pytest.raises(UserError, match=f"^here: `x` is {shown}; accepted is a finite number, 0"):
        number_field({"x": value}, "x", "here", least=0)


def test_fields_are_read(tmp_path):
    assert number_field({"x": 3}, "x", "here") == 3.0
    assert text_field({"x": "y"}, "x", "here") == "y"
    with pytest.raises(UserError, match="here: `x` is 3; accepted is a text"):
        text_field({"x": 3}, "x", "here")
