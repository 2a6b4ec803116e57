"""The files that other libraries read hold the model, and its texts are its tokens."""

import dataclasses

import jax
import numpy as np
import pytest

from autollm_jax.benchmarks import smollm2
from autollm_jax.models import transformer
from autollm_jax.published import pretrained
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from tests.benchmarks.tiny import TINY


def test_the_shape_is_that_of_smollm2_135m():
    assert transformer.parameter_count(smollm2.SHAPE) == 134_515_008


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gguf_file_is_the_model(tmp_path, dtype):
    params = smollm2.random_params(TINY)
    smollm2.write_gguf(TINY, params, tmp_path / "model.gguf", dtype)
    config, found = pretrained.load(tmp_path / "model.gguf", make_mesh(MeshShape()))
    assert dataclasses.replace(config, norm_epsilon=TINY.norm_epsilon) == TINY
    assert config.norm_epsilon == pytest.approx(TINY.norm_epsilon, rel=1e-6)  # stored in f32
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype("float32"), params)
    jax.tree.map(np.testing.assert_array_equal, found, rounded)


def test_the_safetensors_folder_is_the_model(tmp_path):
    params = smollm2.random_params(TINY)
    smollm2.write_safetensors(TINY, params, tmp_path)
    config, found = pretrained.load(tmp_path, make_mesh(MeshShape()))
    assert config == TINY
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_prompts_differ_from_row_to_row():
    prompts = smollm2.random_prompts(TINY, 8, 6)
    assert np.shape(prompts) == (8, 6) and len({tuple(prompt) for prompt in prompts}) == 8
    assert max(map(max, prompts)) < TINY.vocab_size


def test_any_tokens_are_a_text_whose_tokens_they_are():
    pytest.importorskip("transformers", reason="needs requirements-parity.txt")
    tokens, tokenizer = [5, 5, 0, TINY.vocab_size - 1], smollm2.tokenizer(TINY)
    assert tokenizer(smollm2.text_of(tokens))["input_ids"] == tokens
    assert smollm2.tokens_of(tokenizer.decode(tokens, skip_special_tokens=True)) == tokens
    assert tokenizer.eos_token_id == TINY.vocab_size  # which nothing samples
