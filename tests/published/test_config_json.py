"""Every field of a config.json is honoured, harmless, or refused by name."""

import pytest

from autollm_jax.errors import UserError
from autollm_jax.published.config_json import json_from_shape, shape_from_json
from tests.published import published_configs as published

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PLAIN = {
    name: value
    for name, value in published.SMOLLM2_135M_INSTRUCT.items()
    if name not in ("rope_theta", "rope_scaling")
}
HALF_HEAD = 32  # of SmolLM2


def shape(**changes):
    return shape_from_json(PLAIN | changes, "config.json")[1]


@pytest.mark.parametrize(
    ("values", "theta", "stretched", "tied", "head_dim", "kv_heads"),
    [
        (published.LLAMA_2_7B_CHAT, 1e4, 1.0, False, 128, 32),
        (published.TINYLLAMA_CHAT, 1e4, 1.0, False, 64, 4),
        (published.LLAMA_3_8B, 5e5, 1.0, False, 128, 8),
        (published.LLAMA_3_1_8B_INSTRUCT, 5e5, 8.0, False, 128, 8),
        (published.LLAMA_3_2_1B_INSTRUCT, 5e5, 32.0, True, 64, 8),
        (published.SMOLLM2_135M_INSTRUCT, 1e5, 1.0, True, 64, 3),
        (published.QWEN3_0_6B, 1e6, 1.0, True, 128, 8),
        (published.QWEN3_WRITTEN_BY_5, 1e6, 1.0, True, 128, 8),
    ],
)
def test_real_files_are_read(values, theta, stretched, tied, head_dim, kv_heads):
    _, config = shape_from_json(values, "config.json")
    assert config.rope_theta == theta
    assert max(config.rope_factors, default=1.0) == stretched
    assert (config.tied_embeddings, config.head_dim, config.kv_heads) == (tied, head_dim, kv_heads)


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({}, 1e4),
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_parameters": {"rope_theta": 5e5}}, 5e5),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, 5e5),
        ({"rope_theta": 1e4, "rope_scaling": {**LLAMA3, "rope_theta": 5e5}}, 5e5),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, 5e5),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3, "rope_parameters": {"rope_theta": 7e5}}, 5e5),
    ],
)
def test_the_base_is_the_inner_one_of_the_mapping_that_counts(changes, theta):
    assert shape(**changes).rope_theta == theta


def test_rope_scaling_counts_before_rope_parameters():
    default = {"rope_type": "default", "rope_theta": 1e4}
    assert shape(rope_parameters=default).rope_factors == ()
    both = shape(rope_scaling=LLAMA3, rope_parameters=default)
    assert max(both.rope_factors) == 8.0
    stretched = shape(rope_scaling={"type": "linear", "factor": 2}, rope_parameters=LLAMA3)
    assert stretched.rope_factors == (2.0,) * HALF_HEAD


def test_linear_scaling_divides_every_frequency_and_is_written_back():
    linear = {"rope_type": "linear", "factor": 4.0}
    family, config = shape_from_json(PLAIN | {"rope_scaling": linear}, "config.json")
    assert config.rope_factors == (4.0,) * HALF_HEAD
    assert shape_from_json(json_from_shape(family, config), "written")[1] == config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ({"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 2}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'factor' is missing"),
        ({"rope_scaling": {"factor": 2.0}}, "field factor"),
        ({"rope_scaling": {**LLAMA3, "attention_factor": 1.2}}, "field attention_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "field full_attention"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"rope_scaling": LLAMA3, "rope_parameters": {"rope_theta": 5e5}}, "into rope_scaling"),
        ({"rope_scaling": [2.0]}, "rope_scaling is"),
    ],
)
def test_rotary_positions_that_are_not_computed_are_refused(changes, words):
    with pytest.raises(UserError, match=words) as refused:
        shape(**changes)
    assert "\n" not in str(refused.value) and "config.json: " in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"use_sliding_window": True},
        {"sliding_window": 4096},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"partial_rotary_factor": 0.5},
        {"rope_interleaved": True},
        {"attn_logit_softcapping": 50.0},
        {"final_logit_softcapping": 30.0},
        {"attention_multiplier": 0.0078125},
        {"embedding_multiplier": 12.0},
        {"residual_multiplier": 0.22},
        {"logits_scaling": 8.0},
        {"query_pre_attn_scalar": 256},
        {"num_local_experts": 8},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"pruned_heads": {"0": [1]}},
        {"model_type": "mistral"},
        {"tie_word_embeddings": "no"},
        {"a_field_of_tomorrow": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_field_that_may_change_the_outputs_is_refused_by_name(changes):
    with pytest.raises(UserError, match=next(iter(changes))) as refused:
        shape(**changes)
    assert "\n" not in str(refused.value)


def test_a_field_that_says_nothing_is_accepted():
    plain = shape()
    assert shape(a_field_of_tomorrow=None, quantization_config=None, sliding_window=None) == plain
    harmless = {"use_cache": False, "temperature": 0.7, "unsloth_fixed": True, "pretraining_tp": 2}
    assert shape(**harmless, layer_types=["full_attention"] * 30) == plain


def test_a_window_counts_for_qwen3_only_where_it_is_used():
    expected = shape_from_json(published.QWEN3_0_6B, "config.json")
    assert shape_from_json(published.QWEN3_0_6B | {"sliding_window": 4096}, "c") == expected
    for used in ({"use_sliding_window": True}, {"layer_types": ["sliding_attention"] * 28}):
        with pytest.raises(UserError, match=next(iter(used))):
            shape_from_json(published.QWEN3_0_6B | {"sliding_window": 4096} | used, "c")


def test_missing_sizes_of_qwen3_are_those_of_its_family():
    stated = {n: v for n, v in published.QWEN3_0_6B.items() if n != "head_dim"}
    assert shape_from_json(stated, "config.json")[1].head_dim == 128
    del stated["num_key_value_heads"]
    stated["num_attention_heads"] = 64
    assert shape_from_json(stated, "config.json")[1].kv_heads == 32
