"""Runs the examples: of the docstrings of what users call, and the files of `examples/`."""

import doctest
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from autollm_jax import advise, baselines, evaluation, forecasts, gym, sources

PACKAGES = (gym, sources, forecasts, baselines, evaluation, advise)
MODULES = [package.__name__ for package in PACKAGES] + [
    f"{package.__name__}.{module.name}"
    for package in PACKAGES
    for module in pkgutil.iter_modules(package.__path__)
]
# The modules, functions and classes that a user meets first.
CALLED = [
    "advise.advisor",
    "baselines.cma_es.CmaEs",
    "baselines.default.DefaultFirst",
    "baselines.greedy.Greedy",
    "baselines.optuna_tpe.OptunaTPE",
    "baselines.random.RandomSearch",
    "baselines.successive_halving.SuccessiveHalving",
    "evaluation.statistics.Bootstrap",
    "forecasts.advisers.forecast",
    "forecasts.boosted_trees.BoostedTrees",
    "forecasts.gaussian_process.GaussianProcess",
    "forecasts.nearest.NearestExperiment",
    "forecasts.scaling_law.ScalingLaw",
    "gym.cells.Cells",
    "gym.environment.Episode",
    "gym.experiments.load_experiments",
    "gym.experiments.make_experiment",
    "gym.pooling.pool_outcomes",
    "gym.settings",
    "gym.spaces.Dimension",
    "gym.spaces.Space",
    "gym.splits.evidence_for",
    "gym.splits.split",
    "gym.tables.as_roots",
    "gym.tables.config_columns",
    "gym.tables.write_table",
    "sources",
    "sources.csv_file.read_csv",
    "sources.hwgpt.scale_space",
    "sources.hwgpt.untuned_default",
    "sources.steplaw.divergence_threshold",
    "sources.steplaw.read",
    "sources.steplaw.snap_learning_rate",
]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_are_right(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


@pytest.mark.parametrize("name", CALLED)
def test_a_name_that_users_meet_first_has_an_example(name):
    documented = pkgutil.resolve_name(f"autollm_jax.{name}")
    assert doctest.DocTestParser().get_examples(documented.__doc__)


# Each file's last line begins so.
FILES = {
    "baseline.py": "random mean regret",
    "optuna_study.py": "TPE",
    "own_runs.py": "a cheap run",
    "play.py": "regret",
    "ray_tune.py": "best 2.",
}


def test_every_example_file_is_run():
    assert sorted(path.name for path in Path("examples").glob("*.py")) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_an_example_file_is_short_and_runs(name, tmp_path):
    if name == "ray_tune.py":
        pytest.importorskip("ray", reason="needs requirements-ray.txt")
    path = Path("examples") / name
    assert len(path.read_text().splitlines()) < 50
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=600, check=False,
        env=os.environ | {"HOME": str(tmp_path), "PYTHONPATH": "."},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if not line.startswith("note: ")]
    assert said[-1].startswith(FILES[name])
