import os

import pytest

from autollm_jax.files import write_atomic


def test_a_write_that_dies_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a" / "b.json"
    write_atomic(path, "old")

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new, and longer")
    assert path.read_text() == "old"
