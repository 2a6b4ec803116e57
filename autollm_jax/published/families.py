"""Published model families: the name and the layout of each parameter in their files.

One table a family. A leaf's pattern reads "axes in the file -> axes in this model", letters as in
`TransformerConfig` (V vocab, D width, H heads, K key-value heads, A head width, F MLP width);
letters in brackets are one axis of the array. Linear layers are stored as [out, in].

Names are those of the published checkpoints (Hugging Face) and of GGUF's specification (llama.cpp,
gguf-py/gguf/constants.py).
"""

import dataclasses
from collections.abc import Mapping

from autollm_jax.errors import UserError
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.published.fields import number, size


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter of this model, and the tensor of a published file that holds it.

    Attributes:
      path: keys of the parameter in the parameter tree.
      name: name of the tensor in a safetensors file; `{layer}` stands for the layer's number.
      pattern: axes in the safetensors file -> axes in this model.
      gguf: name of the tensor in a GGUF file, without ".weight".
      gguf_pattern: axes in the GGUF file, where they differ from `pattern`; else "".
    """

    path: tuple[str, ...]
    name: str
    pattern: str
    gguf: str
    gguf_pattern: str = ""

    @property
    def layered(self) -> bool:
        return self.path[0] == "layers"

    @property
    def in_gguf(self) -> tuple[str, str]:
        """The tensor's name in a GGUF file, and its pattern there."""
        return f"{self.gguf}.weight", self.gguf_pattern or self.pattern


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
      name: its name in GGUF files (`general.architecture`) and in config.json (`model_type`).
      architecture: its name in config.json (`architectures`).
      leaves: all parameters, the output embedding of untied models among them.
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
    """Return the leaves of a model of this shape: no output embedding where it is tied."""
    return tuple(
        leaf
        for leaf in family.leaves
        if leaf.path != ("unembedding",) or not config.tied_embeddings
    )


def redundant(config: TransformerConfig) -> set[str]:
    """Name the tensors of published files that this model does not need.

    Old Llama files hold the rotary frequencies, which follow from the config. Files with tied
    embeddings may hold the output embedding (Qwen3-0.6B does), a copy of the input embedding;
    `pretrained.open_source` compares the two.
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


# Fields of a shape: their names in config.json, and in GGUF behind the family's name and a dot.
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
    """Make a shape from stated fields, with rotary frequencies that are not stretched.

    Args:
      family: the model's family.
      values: the fields.
      names: the column of `FIELDS` with their names, `JSON` or `GGUF`.
      tied_embeddings: whether the output embedding is the input embedding.

    Raises:
      KeyError: a field is missing.
      ValueError: a field has an impossible value.
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
