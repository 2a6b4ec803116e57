"""The code in docs/ runs, and prints the promised text."""

import re
from pathlib import Path

import pytest

from autollm_jax.errors import UserError
from autollm_jax.gym import tables
from autollm_jax.gym.spaces import KINDS

TABLES = Path(__file__).parents[1] / "docs" / "tables.md"
README = Path(__file__).parents[1] / "README.md"


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


def test_the_code_of_the_readme_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(compile(code, str(README), "exec"), names)
    trial = names["trial"]
    assert trial.valid and trial.ok and "regret" in capsys.readouterr().out


def test_every_path_that_the_readme_and_docs_name_exists():
    for page in (README, README.with_name("CONTRIBUTING.md"), *TABLES.parent.glob("*.md")):
        if page.name in ("experiments.md", "performance.md"):
            continue  # logs: they name the files of their time
        for path in re.findall(
            r"`((?:autollm_jax|launch|configs|docs)/[\w/.]*)`", page.read_text()
        ):
            assert (README.parent / path.replace("TASK", "grpo")).exists(), f"{page.name}: {path}"
        for path in re.findall(r"\]\((?!http)([\w/.]+)\)", page.read_text()):
            assert (page.parent / path).exists(), f"{page.name}: {path}"
