import os

import pytest

from autollm_jax.errors import UserError
from autollm_jax.files import append_json_lines, read_json_lines, write_atomic


def test_a_write_that_dies_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a" / "b.json"
    write_atomic(path, "old")

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new, and longer")
    assert path.read_text() == "old"


def test_half_a_last_line_of_a_log_is_dropped_and_said(tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n{"a')
    assert read_json_lines(path, log=True) == [{"a": 1}, {"a": 2}]
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: dropped half a last line, line 4" in line


@pytest.mark.parametrize(
    ("text", "log", "number"),
    [('{"a": 1}\n{"a', False, 2), ('{"a\n{"a": 2}\n', True, 1), ('{"a": 1}\n{"a\n', True, 2)],
)
def test_any_other_damaged_line_is_an_error_that_names_it(tmp_path, text, log, number):
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=f"pairs.jsonl: line {number} is damaged.*; do so") as error:
        read_json_lines(path, log=log, remedy="do so")
    assert "\n" not in str(error.value)


def test_a_line_that_the_parser_refuses_is_damaged_too(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(UserError, match="line 1 is damaged"):
        read_json_lines(path, lambda line: {}["missing"])


def test_a_line_is_appended_behind_whole_lines(tmp_path):
    path = tmp_path / "a" / "log.jsonl"
    append_json_lines(path, [{"n": 1}])
    path.write_text(path.read_text() + '{"n": 2')
    append_json_lines(path, [{"n": 3}])
    assert read_json_lines(path) == [{"n": 1}, {"n": 3}]
