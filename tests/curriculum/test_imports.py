"""Texts and curricula are words and tables: no array library or optimiser is loaded for them."""

import pkgutil
import subprocess
import sys

import pytest

from autollm_jax import curriculum, text

HEAVY = ("jax", "flax", "optax", "optuna", "lightgbm", "tensorflow")


@pytest.mark.parametrize("room", [text, curriculum], ids=lambda room: room.__name__)
def test_importing_a_room_loads_no_optimiser(room):
    modules = [f"{room.__name__}.{module.name}" for module in pkgutil.iter_modules(room.__path__)]
    assert len(modules) > 5
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {*HEAVY} & {*done.stdout.split()}
