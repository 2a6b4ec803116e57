"""The notebook runs from top to bottom, and is stored without outputs."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests import quick_xla

NOTEBOOK = Path("launch/colab.ipynb")


def test_it_is_stored_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    codes = [cell for cell in cells if cell["cell_type"] == "code"]
    assert codes and not any(c["outputs"] or c["execution_count"] for c in codes)


@pytest.fixture
def repository(tmp_path):
    """A copy whose work directory is thrown away."""
    for name in ("pyproject.toml", "launch", "configs", "gym_data", "examples", "autollm_jax"):
        (tmp_path / name).symlink_to(Path(name).resolve())
    return tmp_path


def test_it_runs_from_top_to_bottom(repository, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", quick_xla.FLAGS)  # without the suite's eight devices
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(repository)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = "".join(output.get("text", "") for output in shown)
    assert "regret" in texts and "try next" in texts and "mean regret after" in texts
    pages = [o["data"]["text/html"] for o in shown if "data" in o and "text/html" in o["data"]]
    assert len(pages) == 2 and "<svg" in pages[0] and "srcdoc" in pages[1]
