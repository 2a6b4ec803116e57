"""The model of comparisons with other libraries: SmolLM2-135M's shape with random weights.

Its files are what the other libraries read: a safetensors folder and a GGUF file. Its vocabulary
has one word a token, so that any tokens are a text whose tokens they are.
"""

from pathlib import Path

import gguf
import jax
import ml_dtypes
import numpy as np
import tokenizers

from autollm_jax.benchmarks.timing import library
from autollm_jax.models import transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.published.config_json import json_from_shape
from autollm_jax.published.families import FIELDS, GGUF, LLAMA
from autollm_jax.published.pretrained import stored_tensors, write_folder

# But for rope_theta, 100,000 in SmolLM2: Tunix 0.1.7 rotates every Llama by a base of a million.
SHAPE = TransformerConfig(
    vocab_size=49_152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64, mlp_width=1536,
    qk_norm=False, scaled_embedding=False, rope_theta=1e6, norm_epsilon=1e-5,
)  # fmt: skip
END = "end"  # ends a text; its id is above those that the model can sample
_GGUF_TYPES = {"float32": (np.float32, None), "bfloat16": (ml_dtypes.bfloat16, "BF16")}


def random_params(config: TransformerConfig) -> dict:
    """Draw a model's parameters, always the same."""
    return jax.jit(lambda key: transformer.init(config, key))(jax.random.key(0))


def random_prompts(config: TransformerConfig, rows: int, length: int) -> list[list[int]]:
    """Draw prompts of so many tokens, always the same."""
    rng = np.random.default_rng(0)
    return rng.integers(0, config.vocab_size, (rows, length)).tolist()


def text_of(tokens) -> str:
    """Write tokens as words."""
    return " ".join(f"w{token}" for token in tokens)


def tokens_of(text: str) -> list[int]:
    """Read tokens from words."""
    return [int(word.removeprefix("w")) for word in text.split()]


def tokenizer(config: TransformerConfig):
    """Return the vocabulary as a tokenizer of `transformers`."""
    vocabulary = {f"w{token}": token for token in range(config.vocab_size)}
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(vocabulary | {END: config.vocab_size}, unk_token=END)
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    transformers = library("transformers")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=END, pad_token=END, padding_side="left"
    )


def write_safetensors(config: TransformerConfig, params, folder: Path) -> None:
    """Write the model as a folder of safetensors, float32, with its config.json."""
    write_folder(folder, LLAMA, config, params, json_from_shape(LLAMA, config))


def write_gguf(config: TransformerConfig, params, file: Path, dtype: str) -> None:
    """Write the model as a GGUF file without a vocabulary.

    Args:
      config: the model's shape.
      params: the model's parameters.
      file: output.
      dtype: type of the matrices, float32 or bfloat16; vectors are float32, as everywhere.
    """
    writer = gguf.GGUFWriter(file, LLAMA.name)
    for field, names in FIELDS.items():
        name, value = f"{LLAMA.name}.{names[GGUF]}", getattr(config, field)
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(name, value)
    writer.add_context_length(2048)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_tokenizer_model("none")
    kind, label = _GGUF_TYPES[dtype]
    for name, array in stored_tensors(LLAMA, config, params, gguf=True):
        if array.ndim == 1 or label is None:
            writer.add_tensor(name, np.ascontiguousarray(array, np.float32))
        else:
            array = np.ascontiguousarray(array.astype(kind)).view(np.uint8)
            writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType[label])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
