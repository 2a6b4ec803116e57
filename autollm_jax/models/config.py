"""A transformer's shape and numerics, and its parameters' logical axes."""

import dataclasses

from autollm_jax.models.attention import rotations
from autollm_jax.models.kernels import ATTENTIONS

# A layer's matrices, and the number of first axes that are contracted.
MATRICES = {"query": 1, "key": 1, "value": 1, "output": 2, "gate": 1, "up": 1, "down": 1}
LORA_IN, LORA_OUT = "_lora_in", "_lora_out"
FLOATS = ("float32", "bfloat16")
# What the backward pass computes again instead of keeping it in memory.
REMATS = (
    "none",
    "attention",  # attention
    "outputs",  # a layer, except the outputs of its attention
    "weights",  # as "outputs"; with bfloat16 `gradients`, layers' matrices are gathered once
    "layer",  # a layer
    "offload",  # as "outputs"; these and the layers' inputs wait in the host's memory
)
LEAST_WIDTH = 96  # below, bfloat16 sums of so few numbers lose more than they save


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and numerics of a transformer.

    width = D, heads = H, kv_heads = K, head_dim = A, mlp_width = F, vocab_size = V, layers = L.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    qk_norm: bool = True
    short_conv: int = 0  # taps of a convolution over queries and keys: copying takes one layer
    tied_embeddings: bool = True
    scaled_embedding: bool = True  # tokens enter as unit variance: rows times sqrt(width)
    rope_theta: float = 10_000.0
    rope_factors: tuple[float, ...] = ()  # divisor of each rotary frequency; () for none
    rope_fraction: float = 1.0  # share of a head's coordinates that carry its position
    lora_rank: int = 0  # rank of the factors (`models.lora`); 0 for no factors
    lora_targets: tuple[str, ...] = ()  # of query, key, value, output, gate, up, down
    lora_scale: float = 1.0  # multiplier of the factors' product
    mimetic: bool = False  # attention heads start as heads that copy (`models.mimetic`)
    norm_epsilon: float = 1e-6
    dtype: str = "float32"  # or "bfloat16"; type of the matrix products' operands
    # Type of the residual stream and of what layers keep for the backward pass: float32 or
    # bfloat16; "" is `dtype`, but float32 below a width of 96.
    activations: str = ""
    # Type in which devices add the gradients of the layers' matrices: float32, or bfloat16 where
    # that is `dtype`. bfloat16 halves what they send, and rounds each device's gradient first; the
    # sums of microbatches stay f32.
    gradients: str = "float32"
    cache_dtype: str = ""  # type of the KV cache and of operands read from it; "" is `dtype`
    slots_first: bool = False  # order of the KV cache, as a TPU wants it (`models.attention`)
    remat: str = "none"  # one of `REMATS`
    attention: str = "auto"  # one of `models.kernels.ATTENTIONS`
    scan_unroll: int = 1  # layers per step of the layer scan; `layers` unrolls the whole scan
    attention_block: int = 128  # queries per block of causal attention (`models.attention`)
    row_logits: int = 2**24  # logits of a training row in memory at once (`rl.logprobs`)

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even for rotary positions")
        if self.short_conv < 0 or self.short_conv == 1:
            raise ValueError(f"short_conv={self.short_conv} must be 0 (none), or 2 taps or more")
        unknown = set(self.lora_targets) - MATRICES.keys()
        if unknown or bool(self.lora_rank) != bool(self.lora_targets):
            raise ValueError(
                f"lora_rank={self.lora_rank} with lora_targets={self.lora_targets}: needs both or "
                f"neither, targets of {', '.join(MATRICES)}"
            )
        accepted = {
            "remat": REMATS,
            "attention": ATTENTIONS,
            "dtype": FLOATS,
            "activations": ("", *FLOATS),
            "gradients": FLOATS,
        }
        for name, values in accepted.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {values}")

    @property
    def stream(self) -> str:
        """Type of the residual stream; see `activations`."""
        return self.activations or (self.dtype if self.width >= LEAST_WIDTH else "float32")

    def rotations(self, positions_BT):
        """Return cosine and sine of the rotations at these positions."""
        return rotations(
            positions_BT, self.head_dim, self.rope_theta, self.rope_fraction, self.rope_factors
        )


# The logical axes of every parameter; a layer's parameters have "layers" as their first axis.
PARAMETER_AXES = {
    "embedding": ("vocab", "width"),
    "unembedding": ("vocab", "width"),
    "query": ("width", "heads", "head_dim"),
    "key": ("width", "kv_heads", "head_dim"),
    "value": ("width", "kv_heads", "head_dim"),
    "output": ("heads", "head_dim", "width"),
    "gate": ("width", "mlp"),
    "up": ("width", "mlp"),
    "down": ("mlp", "width"),
    "scale": ("activation",),
    "query_taps": (None, "heads", "head_dim"),
    "key_taps": (None, "kv_heads", "head_dim"),
}


def axes_of(name: str) -> tuple[str | None, ...]:
    """Return the logical axes of a layer's parameter, or of another one, by its name."""
    for suffix in (LORA_IN, LORA_OUT):
        if name.endswith(suffix):
            target = name.removesuffix(suffix)
            axes, contract = PARAMETER_AXES[target], MATRICES[target]
            return (*axes[:contract], None) if suffix == LORA_IN else (None, *axes[contract:])
    return PARAMETER_AXES[name]
