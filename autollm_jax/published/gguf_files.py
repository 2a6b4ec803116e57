"""Reads a model's shape and weights from a GGUF file.

Tensors are de-quantised one by one, and only the rows that are asked for, by llama.cpp's own Python
library (`gguf.quants`). Metadata means the same as to llama.cpp (src/llama-model.cpp).
"""

import dataclasses
import mmap
import re
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from autollm_jax.errors import UserError, one_line
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.published.families import FIELDS as SHAPE_FIELDS
from autollm_jax.published.families import GGUF, Family, family_named, shape_from_fields
from autollm_jax.published.fields import check_known, number, reading, shown, size
from autollm_jax.published.gguf_header import read_header, row_bytes
from autollm_jax.published.pattern import Slices

_QUANTISED = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_S", "IQ1_M"),
)
# Accepted types of tensors, and for each the type that holds its numbers without loss.
READ = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"} | dict.fromkeys(
    _QUANTISED, "float32"
)
ROPE_FACTORS = "rope_freqs.weight"

# Groups of metadata that change no output: descriptions, the vocabulary (`gguf_vocabulary` checks
# it), notes of the programs that quantised the file.
_HARMLESS_GROUPS = ("general", "tokenizer", "split", "quantize", "mradermacher")
# Of the group `general`, the fields that say how the file is to be read.
_ONLY_GENERAL = {"general.type": ("model",), "general.quantization_version": (2,)}
# Fields of the model's group that have to be the width of a head, and the reason.
_HEAD_WIDTHS = {
    "rope.dimension_count": "rotary positions of a part of each head are not supported",
    "attention.value_length": "values of another width than queries and keys are not supported",
}
# Fields of the model's group that are read below, or change no output.
_ROPE = {"rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"}
_HARMLESS = {"context_length", "rope.scaling.original_context_length", "rope.scaling.finetuned"}
# Fields that change outputs, with the only values that the model here computes.
_ONLY = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.scale": (0.0,),  # 0: one over the root of a head's width
    "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "rope.scaling.attn_factor": (1.0,),
    "use_parallel_residual": (False,),
    "tensor_data_layout": ("Meta AI original pth",),
}


class GGUFFile:
    """The tensors of a GGUF file, read part by part.

    Attributes:
      shapes: shape of each tensor by name, the outer axis first as in numpy.
      dtypes: for each tensor the type that holds its numbers without loss, a value of `READ`.
      fields: the metadata by name.

    Raises:
      UserError: the file is damaged, a part of a split file, an adapter, of another byte order, or
        holds a tensor of a type that is not in `READ`.
    """

    def __init__(self, path: Path):
        self.path = path
        _refuse_part(path, {})
        try:
            with open(path, "rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.fields, self._tensors = read_header(self._data)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a readable GGUF file: {one_line(error)}") from error
        _refuse_part(path, self.fields)
        for name, tensor in self._tensors.items():
            if tensor.kind.name not in READ:
                raise UserError(
                    f"{path}: {name} is {tensor.kind.name}; accepted are {', '.join(READ)}"
                )
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.dtypes = {name: READ[tensor.kind.name] for name, tensor in self._tensors.items()}

    def read(self, name: str, slices: Slices) -> np.ndarray:
        """Read a block of a tensor as float32.

        Args:
          name: the tensor's name.
          slices: one for each axis. Only the rows in it are de-quantised, each as a whole.
        """
        tensor = self._tensors[name]
        stored = np.frombuffer(
            self._data, np.uint8, count=tensor.end - tensor.start, offset=tensor.start
        )
        rows = stored.reshape(*tensor.shape[:-1], row_bytes(tensor.kind, tensor.shape[-1]))
        outer, columns = slices[:-1], slices[-1]
        numbers = gguf.quants.dequantize(rows[outer], tensor.kind)
        return numbers[..., columns].astype(np.float32, copy=False)

    def shape(self) -> tuple[Family, TransformerConfig]:
        """Read the family and the model's shape.

        Raises:
          UserError: the architecture is not known, a field is missing or has a value that this
            model does not compute, or a field is not known here and may change the outputs.
        """
        where = str(self.path)
        if self.fields.get("general.type") == "adapter" or "adapter.type" in self.fields:
            raise UserError(
                f"{where}: a LoRA adapter, not a whole model; merge it into its base model first "
                "(llama.cpp's llama-export-lora)"
            )
        family = family_named(str(self.fields.get("general.architecture")), "name", where)
        prefix = f"{family.name}."
        values = {
            name.removeprefix(prefix): value
            for name, value in self.fields.items()
            if name.startswith(prefix)
        }
        # Not every file states the number of tokens, but each has an embedding of every token.
        values["vocab_size"] = self.shapes.get("token_embd.weight", (1,))[0]
        tied = "output.weight" not in self.shapes
        with reading(where):
            self._check_fields(prefix)
            config = shape_from_fields(family, values, GGUF, tied_embeddings=tied)
            for name, reason in _HEAD_WIDTHS.items():
                if size(values, name, config.head_dim) != config.head_dim:
                    raise ValueError(
                        f"{name} is {values[name]}, heads are {config.head_dim} wide: {reason}"
                    )
            factors = self._rope_factors(values, config.head_dim)
        return family, dataclasses.replace(config, rope_factors=factors)

    def _check_fields(self, prefix: str) -> None:
        sizes = {names[GGUF] for names in SHAPE_FIELDS.values()}
        known = {prefix + name for name in sizes | _HEAD_WIDTHS.keys() | _ROPE | _HARMLESS}
        known |= {
            name
            for name in self.fields
            if name.split(".")[0] in _HARMLESS_GROUPS and name not in _ONLY_GENERAL
        }
        check_known(
            self.fields,
            known,
            {**_ONLY_GENERAL, **{prefix + name: values for name, values in _ONLY.items()}},
        )

    def _rope_factors(self, values: Mapping, head_dim: int) -> tuple[float, ...]:
        """Return the divisor of each rotary frequency, () where all are 1."""
        linear = _linear_factor(values)
        if ROPE_FACTORS not in self.shapes:
            return () if linear == 1.0 else (linear,) * (head_dim // 2)
        if self.shapes[ROPE_FACTORS] != (head_dim // 2,):
            raise ValueError(
                f"{ROPE_FACTORS} has shape {self.shapes[ROPE_FACTORS]}; accepted is "
                f"({head_dim // 2},), half a head"
            )
        factors = self.read(ROPE_FACTORS, (slice(None),)).tolist()
        return tuple(linear * number({ROPE_FACTORS: factor}, ROPE_FACTORS) for factor in factors)


def _linear_factor(values: Mapping) -> float:
    """Return the divisor of all rotary frequencies.

    A factor without a type is linear scaling, `rope.scale_linear` is the older name of the factor,
    and a factor of 0 is none; type `none` overrules a factor.
    """
    kind = values.get("rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise ValueError(
            f"rope.scaling.type is {shown(kind)}, which is not supported; accepted is none or "
            "linear"
        )
    name = "rope.scaling.factor" if "rope.scaling.factor" in values else "rope.scale_linear"
    if kind == "none" or values.get(name) == 0:
        return 1.0
    return number(values, name, 1.0)


def _refuse_part(path: Path, fields: Mapping) -> None:
    """Refuse a part of a split file, which says so in its name or in its metadata.

    Raises:
      UserError: the file is such a part.
    """
    named = re.search(r"-(\d{5})-of-(\d{5})\.gguf$", path.name)
    number, count = map(int, named.groups()) if named else (1, 1)
    if not named and isinstance(fields.get("split.count"), int):
        number, count = fields.get("split.no", 0) + 1, fields["split.count"]
    if count > 1:
        raise UserError(
            f"{path}: part {number} of {count} of a split GGUF file; join the parts first "
            f"(llama.cpp's `llama-gguf-split --merge FIRST_PART OUT.gguf`) and name the result"
        )
