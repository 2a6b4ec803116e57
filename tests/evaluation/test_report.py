"""The page holds what it should, for any number of methods and any space."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from autollm_jax.baselines import BASELINES
from autollm_jax.errors import UserError
from autollm_jax.evaluation.figures import show_value
from autollm_jax.evaluation.landscape import lay_out
from autollm_jax.evaluation.report import write_report
from autollm_jax.evaluation.runner import evaluate, play_method
from autollm_jax.gym.spaces import Dimension, Space
from autollm_jax.gym.splits import Split

from .conftest import small


def agent(games):
    """Play the default, something invalid and an unmeasured cell; say markup while at it."""
    for game in games:
        game.episode.exec_config(game.episode.experiment.default)
        game.episode.exec_config(None, "nonsense")
        if not game.episode.done:
            game.episode.exec_config({"learning_rate": 0.003, "batch_size": 64})
        game.episode.finish()
    return ["<think>a < b & <script>alert(1)</script></think><exec>{}</exec> \udc80" for _ in games]


def write(split, folder, methods=("agent", "random"), budget=3, **fields):
    players = {m: agent if m == "agent" else play_method(BASELINES[m]) for m in methods}
    path = folder / "evaluation" / "results.parquet"
    evaluate(players, split, None, budget, (0, 1), path, tables={}, progress=False)
    transcripts = path.parent / "transcripts.jsonl"
    summary = write_report(path, split.held_out, transcripts, folder / "report", **fields)
    return summary, (folder / "report" / "index.html").read_text()


@pytest.mark.parametrize(
    "methods", [("agent",), ("random",), ("agent", "random"), tuple(BASELINES) + ("agent",)]
)
def test_any_number_of_methods(small_split, tmp_path, methods):
    summary, page = write(small_split, tmp_path, methods)
    assert set(summary["regret"]) == set(methods)
    assert all(m.replace("_", " ") in page for m in methods)


def test_one_experiment(small_split, tmp_path):
    split = Split(small_split.training, small_split.held_out[:1])
    summary, page = write(split, tmp_path)
    cell = summary["regret"]["agent"]["all"]["1"]
    assert (cell["low"], cell["high"]) == (0.0, 1.0)
    assert "its interval is the whole range" in page


def test_a_budget_of_one(small_split, tmp_path):
    summary, _ = write(small_split, tmp_path, ("random",), budget=1)
    assert list(summary["regret"]["random"]["all"]) == ["1"]


def test_summary_file_is_the_summary(small_split, tmp_path):
    summary, _ = write(small_split, tmp_path)
    assert json.loads((tmp_path / "report" / "summary.json").read_text()) == summary


def test_transcripts_are_escaped(small_split, tmp_path):
    _, page = write(small_split, tmp_path)
    assert "&lt;script&gt;alert(1)" in page and "<script" not in page


def test_the_page_needs_nothing_from_elsewhere(small_split, tmp_path):
    _, page = write(small_split, tmp_path)
    for reference in ('src="http', "@import", "<link", 'href="http', "url(http"):
        assert reference not in page


def test_the_same_results_give_the_same_page(small_split, tmp_path):
    assert write(small_split, tmp_path / "a")[1] == write(small_split, tmp_path / "b")[1]


def test_matched_trials_and_provenance_are_shown(small_split, tmp_path):
    _, page = write(small_split, tmp_path, provenance={"versions": {"jax": "1.2.3"}})
    assert '<span class="tag">matched</span>' in page and "versions.jax" in page


def test_tasks_are_reported_apart_and_together(small_split, tmp_path):
    other = small("dear", "mid", tokens=4e8, task="grpo").sealed()
    split = Split(small_split.training, (*small_split.held_out, other))
    summary, page = write(split, tmp_path)
    assert set(summary["regret"]["random"]) == {"all", "grpo", "pretraining"}
    assert "all tasks" in page


def test_results_that_cannot_be_read_are_named(small_split, tmp_path):
    path = tmp_path / "results.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="results.parquet"):
        write_report(path, small_split.held_out, None, tmp_path / "report")


def test_results_without_a_trial_are_refused(small_split, tmp_path):
    write(small_split, tmp_path)
    path = tmp_path / "evaluation" / "results.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(UserError, match="holds no trial"):
        write_report(path, small_split.held_out, None, tmp_path / "report")


def test_landscape_tells_measured_failed_and_unmeasured_cells_apart():
    landscape = lay_out(small("cheap", "low"))
    assert landscape.status_YX[0, 0] == "unmeasured"
    assert landscape.status_YX[2, 3] == "failed"
    assert landscape.regret_YX[landscape.cell(landscape.best_config)[::-1]] == 0


def test_many_dimensions_show_the_best_over_the_others():
    space = Space(tuple(Dimension(n, "ordinal", (0, 1, 2)) for n in "abc"))
    cells = [{"a": a, "b": b, "c": c} for a in range(3) for b in range(3) for c in range(3)]
    outcomes = [10.0 * c["a"] + 5 * c["b"] + c["c"] for c in cells]
    landscape = lay_out(
        small("x", "low", space=space, configurations=cells, outcomes=outcomes, status=["ok"] * 27)
    )
    assert landscape.names == ("a", "b") and landscape.projected
    assert landscape.regret_YX[0, 0] == 0


@pytest.mark.parametrize("kind", ["mixture", "one dimension"])
def test_other_spaces_are_drawn(kind, tmp_path):
    if kind == "mixture":
        space = Space((Dimension("mix", "simplex", ("a", "b", "c")),))
        weights = np.random.default_rng(0).dirichlet(np.ones(3), 12).tolist()
        cells = [{"mix": dict(zip("abc", w, strict=True))} for w in weights]
    else:
        space = Space((Dimension("rate", "log-ordinal", (0.1, 0.2, 0.4)),))
        cells = [{"rate": r} for r in (0.1, 0.2, 0.4)]
    held_out = small("dear", "mid", tokens=4e8, space=space, configurations=cells).sealed()
    cheap = small("cheap", "low", space=space, configurations=cells)
    _, page = write(Split((cheap,), (held_out,)), tmp_path, ("random", "gaussian_process"))
    assert page.count("<svg") == 4


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00034526, "3.5e-4"), (256, "256"), (0.5, "0.5"), (2e6, "2e6"), (True, "True"), (0.0, "0")],
)
def test_values_are_shown_plainly(value, text):
    assert show_value(value) == text
