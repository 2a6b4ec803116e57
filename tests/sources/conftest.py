"""Files in the upstream formats, made by hand, and the published ones where they are at hand."""

import os
import pathlib

import pytest

import autollm_jax

BESIDE = pathlib.Path(autollm_jax.__file__).parents[2] / "shared" / "data"
PUBLISHED = pathlib.Path(os.environ.get("AUTOLLM_PUBLISHED_TABLES", BESIDE))


@pytest.fixture
def published():
    """Return where a source's published files are; skip the test without them."""

    def find(source: str) -> pathlib.Path:
        if not (PUBLISHED / source).is_dir():
            pytest.skip("the published tables are not beside this clone")
        return PUBLISHED / source

    return find


@pytest.fixture
def write_csv(tmp_path):
    """Return a writer of CSV files: header and rows as dicts."""

    def write(name, rows, folder=tmp_path, columns=None) -> pathlib.Path:
        columns = list(rows[0]) if columns is None else columns
        lines = [",".join(columns), *(",".join(str(row[c]) for c in columns) for row in rows)]
        path = folder / name
        path.write_text("\n".join(lines) + "\n")
        return path

    return write
