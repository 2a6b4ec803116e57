"""The final protocol learns from public tables, whose spaces differ from low to mid."""

import functools
import os
import pathlib
import subprocess
import sys

import pytest

from autollm_jax.curriculum.pairs import CurationConfig, Families, draw_recipes
from autollm_jax.curriculum.preparing import over_pairs
from autollm_jax.curriculum.teacher import SimulationConfig, simulate
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.gym.splits import split

ROOT = pathlib.Path(__file__).parents[2]
PUBLISHED = pathlib.Path(os.environ.get("AUTOLLM_PUBLISHED_TABLES", ROOT.parent / "shared/data"))


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published tables are not here")
def test_pairs_of_the_final_protocol_are_drawn_and_played(tmp_path):
    command = [sys.executable, "launch/import_data.py", "--source=all", f"--path={PUBLISHED}"]
    subprocess.run([*command, f"--out={tmp_path}"], cwd=ROOT, check=True, capture_output=True)
    found = split(load_experiments([str(ROOT / "gym_data"), str(tmp_path)]), "final")
    assert {e.source for e in found.held_out} == {"stdlib_cpu"}
    families = Families(found.training)
    spaces = [{e.space for e in tables} for tables in families.usable_tables().values()]
    assert sum(len(own) > 1 for own in spaces) >= 4
    config = CurationConfig(pairs=4 * len(spaces), pairs_per_family=1, synthetic=0.0)
    recipes = list(draw_recipes(families, config))
    assert len({(recipe.source, recipe.task) for recipe in recipes}) == len(spaces)
    few = recipes[:: len(recipes) // len(spaces) + 1]
    config = SimulationConfig(budget=2, episodes=1)
    with over_pairs(found.training, few, functools.partial(simulate, config=config)) as played:
        assert [len(t.regrets) for each in played for t in each] == [2] * len(few)
