"""Reads and writes the shape of a model as Hugging Face's config.json states it.

Meanings and defaults are those of transformers 5 (configuration_llama.py, configuration_qwen3.py,
modeling_rope_utils.py).
"""

import dataclasses
import math
from collections.abc import Mapping

from autollm_jax.errors import UserError
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.published.families import FIELDS, JSON, Family, family_named, shape_from_fields
from autollm_jax.published.fields import check_known, number, reading, shown

DEFAULT_THETA = 10_000.0

# Fields that are read: those of `FIELDS`, and these.
_READ = {"architectures", "rope_scaling", "rope_parameters", "tie_word_embeddings"}
# Fields that change no output of a forward pass, one line a kind: names and versions; storage and
# kernels; training; ids and labels; defaults of text generation; extra outputs.
_HARMLESS = {
    *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "auto_map"),
    *("unsloth_version", "unsloth_fixed", "transformers.js_config", "tokenizer_class", "prefix"),
    *("torch_dtype", "dtype", "use_cache", "use_bfloat16", "torchscript", "tf_legacy_loss"),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_autoset"),
    *("_attn_implementation_internal", "_flash_attn_2_enabled", "chunk_size_feed_forward"),
    *("initializer_range", "attention_dropout", "gradient_checkpointing", "neftune_noise_alpha"),
    *("finetuning_task", "problem_type", "task_specific_params", "max_position_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id"),
    *("decoder_start_token_id", "id2label", "label2id", "num_labels", "is_decoder"),
    *("max_length", "min_length", "do_sample", "temperature", "top_k", "top_p", "typical_p"),
    *("repetition_penalty", "length_penalty", "diversity_penalty", "no_repeat_ngram_size"),
    *("encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "num_beams"),
    *("num_beam_groups", "early_stopping", "forced_bos_token_id", "forced_eos_token_id"),
    *("remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens"),
    *("begin_suppress_tokens", "output_scores", "return_dict_in_generate", "return_dict"),
    *("output_hidden_states", "output_attentions"),
}
# Harmless fields of one family. Llama: `pretraining_tp` splits sums into parts; `is_llama_config`
# and `max_sequence_length` are remarks of SmolLM2's and LLaMA's makers. Qwen3: window sizes, which
# count only with use_sliding_window or layer_types, and those are checked.
_FAMILY_HARMLESS = {
    "llama": {"pretraining_tp", "is_llama_config", "max_sequence_length"},
    "qwen3": {"sliding_window", "max_window_layers"},
}
# Fields that change outputs, with the only values that the model here computes.
_ONLY = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "hidden_act": ("silu",),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
}
# What a missing field means, where that is not what `shape_from_fields` takes.
_FAMILY_DEFAULTS = {"qwen3": {"head_dim": 128, "num_key_value_heads": 32}}
# The fields of each rule that stretches rotary frequencies.
_ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


def shape_from_json(values: Mapping, where: str) -> tuple[Family, TransformerConfig]:
    """Read a config.json.

    Args:
      values: its content.
      where: its path, for messages.

    Returns:
      The model's family and its shape.

    Raises:
      UserError: the architecture is not known, a field is missing or has a value that this model
        does not compute, or a field is not known here and may change the model's outputs.
    """
    named = values.get("architectures")
    name = named[0] if isinstance(named, list | tuple) and named else "none named"
    family = family_named(str(name), "architecture", where)
    with reading(where):
        _check(family, values)
        rope, theta = _rope(values)
        tied = values.get("tie_word_embeddings") or False
        if not isinstance(tied, bool):
            raise ValueError(f"tie_word_embeddings is {shown(tied)}; accepted is true or false")
        stated = {**_FAMILY_DEFAULTS.get(family.name, {}), **values, "rope_theta": theta}
        config = shape_from_fields(family, stated, JSON, tied_embeddings=tied)
        factors = _rope_factors(rope, config.rope_theta, config.head_dim)
    return family, dataclasses.replace(config, rope_factors=factors)


def json_from_shape(family: Family, config: TransformerConfig) -> dict:
    """Write the fields that `shape_from_json` reads.

    Raises:
      UserError: the rotary frequencies are stretched by a rule that the shape does not name.
    """
    return {
        "architectures": [family.architecture],
        "model_type": family.name,
        **{names[JSON]: getattr(config, field) for field, names in FIELDS.items()},
        **_rope_json(config),
        "tie_word_embeddings": config.tied_embeddings,
        "hidden_act": "silu",
    }


def _check(family: Family, values: Mapping) -> None:
    sizes = {names[JSON] for names in FIELDS.values()}
    known = sizes | _READ | _HARMLESS | _FAMILY_HARMLESS[family.name]
    only = {**_ONLY, "model_type": (family.name,)}
    check_known(values, known | {"layer_types"}, only)
    kinds = values.get("layer_types")
    kinds = [] if kinds is None else kinds
    if not isinstance(kinds, list | tuple) or any(kind != "full_attention" for kind in kinds):
        raise ValueError(
            f"layer_types={shown(kinds)} is not supported; accepted is full_attention in all layers"
        )


def _rope(values: Mapping) -> tuple[Mapping, float]:
    """Find the mapping that states the rotary frequencies, and their base.

    `rope_scaling` counts before `rope_parameters`; of either, its own rope_theta counts before the
    one at the top of the file.
    """
    for name in ("rope_scaling", "rope_parameters"):
        if not isinstance(values.get(name) or {}, Mapping):
            raise ValueError(f"{name} is {shown(values[name])}; accepted is a mapping")
    scaling, parameters = (values.get(n) or {} for n in ("rope_scaling", "rope_parameters"))
    rope, top = scaling or parameters, number(values, "rope_theta", DEFAULT_THETA)
    theta = number(rope, "rope_theta", top)
    if scaling and values.get("rope_theta") is None:
        unread = number(parameters, "rope_theta", theta)
        if unread != theta:
            raise ValueError(
                f"rope_parameters has rope_theta {unread}, and rope_scaling, which counts before "
                "it, has none; write rope_theta into rope_scaling"
            )
    return rope, theta


def _rope_factors(rope: Mapping, theta: float, head_dim: int) -> tuple[float, ...]:
    """Return the divisor of each rotary frequency, () where all are 1.

    `linear` divides every frequency by `factor` (arXiv 2306.15595). `llama3` keeps wavelengths that
    are short against the original context, divides long ones by `factor` and interpolates between
    (The Llama 3 Herd of Models, arXiv 2407.21783, and its published code).

    Raises:
      KeyError: a number of the rule is missing.
      ValueError: the rule is not known, has a field of another rule, or its numbers cannot be.
    """
    named = [rope[name] for name in ("rope_type", "type") if rope.get(name) is not None]
    kind = named[0] if named else "default"
    if not isinstance(kind, str) or kind not in _ROPE_FIELDS or named[1:] not in ([], [kind]):
        told = " and ".join(map(shown, named))
        raise ValueError(
            f"rope scaling {told} is not supported; accepted is one of {', '.join(_ROPE_FIELDS)}"
        )
    known = {"rope_type", "type", "rope_theta", *_ROPE_FIELDS[kind]}
    check_known(rope, known, {"partial_rotary_factor": (1.0,)})
    if kind == "default":
        return ()
    factor = number(rope, "factor")
    if kind == "linear":
        return () if factor == 1.0 else (factor,) * (head_dim // 2)
    original = number(rope, "original_max_position_embeddings")
    low, high = number(rope, "low_freq_factor"), number(rope, "high_freq_factor")
    if not low < high:
        raise ValueError(f"low_freq_factor {low} is not below high_freq_factor {high}")
    factors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * pair / head_dim)
        kept = min(max((original / wavelength - low) / (high - low), 0.0), 1.0)
        factors.append(1.0 / ((1 - kept) / factor + kept))
    return () if all(f == 1.0 for f in factors) else tuple(factors)


def _rope_json(config: TransformerConfig) -> dict:
    if not config.rope_factors:
        return {}
    if len(set(config.rope_factors)) > 1:
        raise UserError(
            "the rotary frequencies are stretched one by one, and config.json can only name the "
            "rule (llama3) behind that; export from the safetensors folder instead of the GGUF file"
        )
    return {"rope_scaling": {"rope_type": "linear", "factor": config.rope_factors[0]}}
