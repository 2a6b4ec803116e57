"""GGUF files: a model's shape and its (quantised) weights, de-quantised block by block.

llama.cpp's own library de-quantises.
"""

import dataclasses
import mmap
from pathlib import Path

import gguf
import numpy as np

from autollm_jax.errors import UserError, one_line
from autollm_jax.models.families import (
    GGUF,
    Family,
    family_named,
    number,
    reading,
    shape_from_fields,
    size,
)
from autollm_jax.models.gguf_header import read_header, row_bytes
from autollm_jax.models.pattern import Slices
from autollm_jax.models.transformer import TransformerConfig

# What is read, and the type that holds it: a factor times a whole number, of quantised blocks.
READ = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"} | dict.fromkeys(
    ("Q8_0", "Q4_0", "Q4_1", "Q6_K"), "float32"
)
ROPE_FACTORS = "rope_freqs.weight"


class GGUFFile:
    """The tensors of a file, read part by part.

    Attributes:
      shapes: of each tensor, by name; the outer axis first, as in numpy.
      dtypes: what holds each one's numbers, a value of `READ`.
      fields: the metadata, by name.

    Raises:
      UserError: the file is damaged, or holds a tensor of another type than `READ`.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with open(path, "rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.fields, self._tensors = read_header(self._data)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a whole GGUF file: {one_line(error)}") from error
        for name, tensor in self._tensors.items():
            if tensor.kind.name not in READ:
                raise UserError(
                    f"{path}: {name} is {tensor.kind.name}; accepted are {', '.join(READ)}"
                )
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.dtypes = {name: READ[tensor.kind.name] for name, tensor in self._tensors.items()}

    def read(self, name: str, slices: Slices) -> np.ndarray:
        """Read a block of a tensor as f32: its rows are de-quantised, then cut."""
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
          UserError: the architecture is not known, a field is missing or cannot be, or one asks for
            what the model here does not compute.
        """
        where = str(self.path)
        family = family_named(str(self.fields.get("general.architecture")), "name", where)
        prefix = f"{family.name}."
        values = {
            name.removeprefix(prefix): value
            for name, value in self.fields.items()
            if name.startswith(prefix)
        }
        # How many tokens there are is not stated everywhere, but there is an embedding of each.
        values["vocab_size"] = self.shapes.get("token_embd.weight", (1,))[0]
        tied = "output.weight" not in self.shapes
        with reading(where):
            config = shape_from_fields(family, values, GGUF, tied_embeddings=tied)
            scaling = values.get("rope.scaling.type", "none")
            if scaling != "none":
                raise ValueError(f"rope scaling {scaling!r} is not supported")
            if size(values, "rope.dimension_count", config.head_dim) != config.head_dim:
                raise ValueError("rotary positions of a part of each head are not supported")
            factors = self._rope_factors(config.head_dim)
        return family, dataclasses.replace(config, rope_factors=factors)

    def _rope_factors(self, head_dim: int) -> tuple[float, ...]:
        if ROPE_FACTORS not in self.shapes:
            return ()
        if self.shapes[ROPE_FACTORS] != (head_dim // 2,):
            raise ValueError(f"{ROPE_FACTORS} has shape {self.shapes[ROPE_FACTORS]}")
        factors = self.read(ROPE_FACTORS, (slice(None),)).tolist()
        return tuple(number({ROPE_FACTORS: factor}, ROPE_FACTORS) for factor in factors)
