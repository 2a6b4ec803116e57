"""All samplers continue the same prompts with the same weights, by as many tokens."""

import importlib.util

import numpy as np
import pytest

from autollm_jax.benchmarks import sampling
from tests.benchmarks.tiny import TINY

pytest.importorskip("transformers", reason="needs requirements-parity.txt")
pytest.importorskip("torch", reason="needs requirements-parity.txt")
SIZES = sampling.Sizes(rows=3, prompt=8, answer=6)
LLAMA_CPP = importlib.util.find_spec("llama_cpp") is not None


def test_in_float32_all_say_the_same():
    found = sampling.compare(TINY, SIZES, "float32", repeats=1)
    names = ["ours", sampling.REFERENCE] + ["llama.cpp"] * LLAMA_CPP
    assert list(found.said) == list(found.times) == names
    assert len(np.unique(found.said["ours"])) > 3
    for name in names:
        assert found.said[name].shape == (SIZES.rows, SIZES.answer)
        np.testing.assert_array_equal(found.said[name], found.said["ours"])
        assert len(found.times[name]) == 1


def test_in_bfloat16_the_reference_stays_float32_and_generate_is_there_in_both():
    found = sampling.compare(TINY, SIZES, "bfloat16", repeats=1)
    assert list(found.said)[:3] == ["ours", sampling.REFERENCE, "transformers, bfloat16"]


@pytest.mark.skipif(LLAMA_CPP, reason="llama_cpp is installed")
def test_without_llama_cpp_it_says_so_and_goes_on(capsys):
    found = sampling.compare(TINY, SIZES, "float32", repeats=1)
    assert "llama.cpp" not in found.times and not found.build
    said = "without llama.cpp: llama_cpp is missing; run pip install -r requirements-benchmarks.txt"
    assert said in capsys.readouterr().out
