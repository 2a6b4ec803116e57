"""The examples in docstrings are run."""

import doctest
import importlib
import pkgutil

import pytest

from autollm_jax import gym, sources

MODULES = ["autollm_jax.sources"] + [
    f"{package.__name__}.{module.name}"
    for package in (gym, sources)
    for module in pkgutil.iter_modules(package.__path__)
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_right(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_what_users_call_has_an_example():
    wanted = {"gym.spaces": 2, "gym.cells": 1, "gym.tables": 3, "gym.pooling": 1}
    wanted |= {"sources.steplaw": 3, "sources.hwgpt": 2, "sources.csv_file": 1, "sources": 1}
    for name, number in wanted.items():
        module = importlib.import_module(f"autollm_jax.{name}")
        found = [test for test in doctest.DocTestFinder().find(module) if test.examples]
        assert len(found) >= number, name
