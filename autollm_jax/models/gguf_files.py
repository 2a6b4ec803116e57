"""GGUF files: a model's shape and its (quantised) weights, de-quantised block by block.

The format is llama.cpp's (ggml-org/ggml, docs/gguf.md); its own library reads it.
"""

from pathlib import Path

import gguf
import numpy as np

from autollm_jax.errors import UserError
from autollm_jax.models.families import Family, family_named
from autollm_jax.models.pattern import Slices
from autollm_jax.models.transformer import TransformerConfig

READ = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q6_K")
ROPE_FACTORS = "rope_freqs.weight"


class GGUFFile:
    """The tensors of a file, read part by part.

    Attributes:
      shapes: of each tensor, by name; the outer axis first, as in numpy.
      fields: the metadata, by name.

    Raises:
      UserError: the file is damaged, or holds a tensor of another type than `READ`.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            reader = gguf.GGUFReader(path)
            self.fields = {name: field.contents() for name, field in reader.fields.items()}
        except (OSError, ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
            raise UserError(f"{path}: not a whole GGUF file: {error}") from error
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        for name, tensor in self._tensors.items():
            if tensor.tensor_type.name not in READ:
                raise UserError(
                    f"{path}: {name} is {tensor.tensor_type.name}; accepted are {', '.join(READ)}"
                )
        self.shapes = {
            name: tuple(int(size) for size in reversed(tensor.shape))
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str, slices: Slices) -> np.ndarray:
        """Read a block of a tensor as f32: its rows are de-quantised, then cut."""
        tensor = self._tensors[name]
        if len(self.shapes[name]) == 1:
            return gguf.quants.dequantize(tensor.data, tensor.tensor_type)[slices]
        rows = gguf.quants.dequantize(tensor.data[slices[0]], tensor.tensor_type)
        return rows[(slice(None), *slices[1:])].astype(np.float32)

    def shape(self) -> tuple[Family, TransformerConfig]:
        """Read the family and the model's shape.

        Raises:
          UserError: the architecture is not known, or a field is missing.
        """
        family = family_named(str(self._field("general.architecture")), "name", str(self.path))

        def field(name, default=None):
            return self._field(f"{family.name}.{name}", default)

        heads, width = int(field("attention.head_count")), int(field("embedding_length"))
        head_dim = int(field("attention.key_length", width // heads))
        factors = ()
        if ROPE_FACTORS in self.shapes:
            factors = tuple(self.read(ROPE_FACTORS, (slice(None),)).tolist())
        return family, TransformerConfig(
            vocab_size=self.shapes.get("token_embd.weight", (0,))[0],
            width=width,
            layers=int(field("block_count")),
            heads=heads,
            kv_heads=int(field("attention.head_count_kv", heads)),
            head_dim=head_dim,
            mlp_width=int(field("feed_forward_length")),
            qk_norm=family.qk_norm,
            tied_embeddings="output.weight" not in self.shapes,
            scaled_embedding=False,
            rope_theta=float(field("rope.freq_base", 10_000.0)),
            rope_factors=factors,
            norm_epsilon=float(field("attention.layer_norm_rms_epsilon")),
        )

    def _field(self, name: str, default=None):
        value = self.fields.get(name, default)
        if value is None:
            raise UserError(f"{self.path}: metadata {name!r} is missing")
        return value
