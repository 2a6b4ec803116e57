"""The code in docs/ runs, and prints the promised text."""

import re
from pathlib import Path

import pytest

from autollm_jax.errors import UserError
from autollm_jax.gym import tables
from autollm_jax.gym.spaces import KINDS

TABLES = Path(__file__).parents[1] / "docs" / "tables.md"


def test_the_table_of_the_docs_is_written_and_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = TABLES.read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(compile(code, str(TABLES), "exec"), names)
    printed = capsys.readouterr().out.strip()
    assert f"This prints `{printed}`" in text
    with pytest.raises(UserError, match="ok"):  # the promised check
        names["write_table"]("other", names["meta"], [names["run"](6e-4, 128, None)])


def test_the_docs_name_every_kind_status_and_level():
    text = TABLES.read_text()
    for word in (*KINDS, *tables.STATUSES, *tables.LEVELS, *tables.GOALS):
        assert f"`{word}`" in text
