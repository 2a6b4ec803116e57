"""Published model families: what their files call each parameter, and how it lies there.

One table per family. A leaf's pattern reads "how the file stores it -> how this model keeps it",
letters as in `TransformerConfig` (V vocab, D width, H heads, K key-value heads, A head width, F MLP
width); letters in brackets are one axis of the array. Linear layers are stored as [out, in].

Names are those of the published checkpoints (Hugging Face) and of GGUF's specification (llama.cpp,
gguf-py/gguf/constants.py).
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping

from autollm_jax.errors import UserError, one_line
from autollm_jax.models.transformer import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Where one parameter comes from.

    Attributes:
      path: in the parameter tree.
      name: in a safetensors file; `{layer}` in it is the number of the layer.
      pattern: how it lies there and here.
      gguf: its name in a GGUF file, without ".weight".
      gguf_pattern: how it lies there, where that is another way.
    """

    path: tuple[str, ...]
    name: str
    pattern: str
    gguf: str
    gguf_pattern: str = ""

    @property
    def layered(self) -> bool:
        return self.path[0] == "layers"


def _layer(path: str, name: str, pattern: str, gguf: str, gguf_pattern: str = "") -> Leaf:
    name, gguf = f"model.layers.{{layer}}.{name}.weight", f"blk.{{layer}}.{gguf}"
    return Leaf(("layers", *path.split(".")), name, pattern, gguf, gguf_pattern)


# GGUF keeps the Llama family's queries and keys in pairs of neighbours, as llama.cpp rotates them.
_PAIRED_QUERY, _PAIRED_KEY = "(H h P) D -> D H (P h)", "(K h P) D -> D K (P h)"
EMBEDDING, UNEMBEDDING = "model.embed_tokens.weight", "lm_head.weight"
_SHARED = (
    Leaf(("embedding",), EMBEDDING, "V D -> V D", "token_embd"),
    Leaf(("unembedding",), UNEMBEDDING, "V D -> V D", "output"),
    Leaf(("final_norm", "scale"), "model.norm.weight", "D -> D", "output_norm"),
    _layer("attention_norm.scale", "input_layernorm", "D -> D", "attn_norm"),
    _layer("value", "self_attn.v_proj", "(K A) D -> D K A", "attn_v"),
    _layer("output", "self_attn.o_proj", "D (H A) -> H A D", "attn_output"),
    _layer("mlp_norm.scale", "post_attention_layernorm", "D -> D", "ffn_norm"),
    _layer("gate", "mlp.gate_proj", "F D -> D F", "ffn_gate"),
    _layer("up", "mlp.up_proj", "F D -> D F", "ffn_up"),
    _layer("down", "mlp.down_proj", "D F -> F D", "ffn_down"),
)


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of published models.

    Attributes:
      name: what GGUF files call it (`general.architecture`).
      architecture: what Hugging Face's config.json calls it.
      leaves: of the parameter tree, the output embedding among them.
      qk_norm: whether queries and keys are normalised.
    """

    name: str
    architecture: str
    leaves: tuple[Leaf, ...]
    qk_norm: bool = False


LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    (
        *_SHARED,
        _layer("query", "self_attn.q_proj", "(H A) D -> D H A", "attn_q", _PAIRED_QUERY),
        _layer("key", "self_attn.k_proj", "(K A) D -> D K A", "attn_k", _PAIRED_KEY),
    ),
)
QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    (
        *_SHARED,
        _layer("query", "self_attn.q_proj", "(H A) D -> D H A", "attn_q"),
        _layer("key", "self_attn.k_proj", "(K A) D -> D K A", "attn_k"),
        _layer("query_norm.scale", "self_attn.q_norm", "A -> A", "attn_q_norm"),
        _layer("key_norm.scale", "self_attn.k_norm", "A -> A", "attn_k_norm"),
    ),
    qk_norm=True,
)
FAMILIES = (LLAMA, QWEN3)


def leaves_of(family: Family, config: TransformerConfig) -> tuple[Leaf, ...]:
    """Return the leaves that a model of this shape has."""
    return tuple(
        leaf
        for leaf in family.leaves
        if leaf.path != ("unembedding",) or not config.tied_embeddings
    )


def redundant(config: TransformerConfig) -> set[str]:
    """Name what published files hold beside the leaves: tensors that say nothing of their own.

    The rotary frequencies that Llama 2's were saved with, and of tied embeddings the second copy
    (Qwen3-0.6B's), which has to be one.
    """
    layers = range(config.layers)
    names = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in layers}
    return names | ({UNEMBEDDING} if config.tied_embeddings else set())


def family_named(name: str, attribute: str, where: str) -> Family:
    """Find a family by its `name` or its `architecture`.

    Raises:
      UserError: no family is called so.
    """
    for family in FAMILIES:
        if getattr(family, attribute) == name:
            return family
    known = ", ".join(getattr(family, attribute) for family in FAMILIES)
    raise UserError(f"{where}: architecture {name!r} is not known; accepted are {known}")


# Fields of a shape: what config.json calls each, and GGUF, behind the family's name and a dot.
JSON, GGUF = 0, 1
FIELDS = {
    "vocab_size": ("vocab_size", "vocab_size"),
    "width": ("hidden_size", "embedding_length"),
    "layers": ("num_hidden_layers", "block_count"),
    "heads": ("num_attention_heads", "attention.head_count"),
    "kv_heads": ("num_key_value_heads", "attention.head_count_kv"),
    "head_dim": ("head_dim", "attention.key_length"),
    "mlp_width": ("intermediate_size", "feed_forward_length"),
    "rope_theta": ("rope_theta", "rope.freq_base"),
    "norm_epsilon": ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
}


def shape_from_fields(
    family: Family, values: Mapping, names: int, *, tied_embeddings: bool
) -> TransformerConfig:
    """Make the shape that fields state, its rotary frequencies not stretched.

    Args:
      family: the model's family.
      values: the fields.
      names: the column of `FIELDS` that they are called by.
      tied_embeddings: whether the output embedding is the input's.

    Raises:
      KeyError: a field is missing.
      ValueError: one cannot be.
    """

    def sized(field, default=None):
        return size(values, FIELDS[field][names], default)

    width, heads = sized("width"), sized("heads")
    return TransformerConfig(
        vocab_size=sized("vocab_size"),
        width=width,
        layers=sized("layers"),
        heads=heads,
        kv_heads=sized("kv_heads", heads),
        head_dim=sized("head_dim", width // heads),
        mlp_width=sized("mlp_width"),
        qk_norm=family.qk_norm,
        tied_embeddings=tied_embeddings,
        scaled_embedding=False,
        rope_theta=number(values, FIELDS["rope_theta"][names], 10_000.0),
        norm_epsilon=number(values, FIELDS["norm_epsilon"][names]),
    )


# What config.json may say beyond the shape, and the only values that the model here computes.
_ONLY = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "hidden_act": ("silu", None),
    "use_sliding_window": (False, None),
}


def shape_from_json(values: Mapping, where: str) -> tuple[Family, TransformerConfig]:
    """Read Hugging Face's config.json.

    Args:
      values: its content.
      where: its path, for messages.

    Raises:
      UserError: the architecture is not known, a field is missing, or one asks for what the model
        here does not compute.
    """
    named = values.get("architectures")
    name = named[0] if isinstance(named, list | tuple) and named else "none named"
    family = family_named(str(name), "architecture", where)
    for name, accepted in _ONLY.items():
        if values.get(name) not in accepted:
            raise UserError(f"{where}: {name}={values[name]!r} is not supported")
    with reading(where):
        rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise ValueError(f"rope parameters {rope!r} are no mapping")
        if values.get("rope_theta") is None:
            values = {**values, "rope_theta": rope.get("rope_theta")}
        tied = bool(values.get("tie_word_embeddings", False))
        config = shape_from_fields(family, values, JSON, tied_embeddings=tied)
        factors = _rope_factors(rope, config.rope_theta, config.head_dim)
    return family, dataclasses.replace(config, rope_factors=factors)


LARGEST = 2**20  # of any size of a model: more is a damaged file's


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn what `size` and `number` raise into a UserError that names the file."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{where}: field {error} is missing") from error
    except ValueError as error:
        raise UserError(f"{where}: {one_line(error)}") from error


def size(values: Mapping, name: str, default: int | None = None) -> int:
    """Read a size of a model.

    Raises:
      KeyError: it is missing, and has no default.
      ValueError: it is none.
    """
    value = values.get(name)
    if value is None:
        value = default
    if value is None:
        raise KeyError(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
        raise ValueError(f"{name} is {value!r}; accepted is a whole number from 1 to {LARGEST:,}")
    return value


def number(values: Mapping, name: str, default: float | None = None) -> float:
    """Read a positive number; raises as `size` does."""
    value = values.get(name)
    if value is None:
        value = default
    if value is None:
        raise KeyError(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise ValueError(f"{name} is {value!r}; accepted is a positive number")
    return float(value)


def json_from_shape(family: Family, config: TransformerConfig) -> dict:
    """Write what `shape_from_json` reads.

    Raises:
      UserError: the rotary frequencies are stretched by a rule that the shape does not name.
    """
    if config.rope_factors:
        raise UserError("stretched rotary frequencies cannot be written without the original rule")
    return {
        "architectures": [family.architecture],
        "model_type": family.name,
        **{names[JSON]: getattr(config, field) for field, names in FIELDS.items()},
        "tie_word_embeddings": config.tied_embeddings,
        "hidden_act": "silu",
    }


def _rope_factors(rope: Mapping, theta: float, head_dim: int) -> tuple[float, ...]:
    """Return what each rotary frequency is divided by, () where nothing is.

    Llama 3's rule: wavelengths short against the original context stay, long ones are stretched by
    the factor, those between are interpolated (The Llama 3 Herd of Models, arXiv 2407.21783, and
    its published code).

    Raises:
      KeyError: a number of the rule is missing.
      ValueError: another rule is asked for, or its numbers cannot be.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return ()
    if kind != "llama3":
        raise ValueError(f"rope scaling {kind!r} is not supported; accepted is llama3")
    factor, original = number(rope, "factor"), number(rope, "original_max_position_embeddings")
    low, high = number(rope, "low_freq_factor"), number(rope, "high_freq_factor")
    if not low < high:
        raise ValueError(f"low_freq_factor {low} is not below high_freq_factor {high}")
    factors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * pair / head_dim)
        kept = min(max((original / wavelength - low) / (high - low), 0.0), 1.0)
        factors.append(1.0 / ((1 - kept) / factor + kept))
    return () if all(f == 1.0 for f in factors) else tuple(factors)
