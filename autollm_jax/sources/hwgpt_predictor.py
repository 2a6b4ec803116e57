"""HW-GPT-Bench's perplexity predictor: its architectures, its inputs, its network."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autollm_jax.errors import UserError
from autollm_jax.sources.torch_zip import read_tensors

MLP_RATIOS = (2, 3, 4)
BIASES = (True, False)
LINEARS = 5

# Upstream's configs_api/gpt_*.yaml: heads have 64 dimensions whatever the width, the token
# embedding is shared with the output, positions are rotary and without parameters.
HEAD_SIZE = 64
VOCABULARY = 50_254


@dataclasses.dataclass(frozen=True)
class Scale:
    """One of upstream's three supernets: the choices of an architecture."""

    name: str
    widths: tuple[int, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]

    @property
    def inputs(self) -> int:
        """Count the predictor's one-hot inputs."""
        per_layer = len(MLP_RATIOS) + len(self.heads)
        return len(self.widths) + len(self.layers) + self.layers[-1] * per_layer + len(BIASES)


SCALES = (
    Scale("s", (192, 384, 768), (10, 11, 12), (4, 8, 12)),
    Scale("m", (256, 512, 1024), (22, 23, 24), (8, 12, 16)),
    Scale("l", (320, 640, 1280), (34, 35, 36), (8, 16, 20)),
)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model of a supernet whose layers are all alike.

    Attributes:
      width: the embedding width.
      layers: number of transformer blocks.
      mlp_ratio: hidden width of each block's MLP, in embedding widths.
      heads: attention heads of each block.
      bias: whether the linear layers have biases.
    """

    width: int
    layers: int
    mlp_ratio: int
    heads: int
    bias: bool

    @property
    def parameters(self) -> int:
        """Count the parameters, the shared embedding once.

        Embedding: vocabulary x width. Per layer with h heads and MLP ratio r: queries, keys and
        values 3 x 64 h x width, the output 64 h x width, the MLP 2 r width^2, two norms 4 width;
        with bias 3 x 64 h + width and r width + width more. Last norm: 2 width.
        """
        width, inner = self.width, HEAD_SIZE * self.heads
        layer = 4 * inner * width + 2 * self.mlp_ratio * width**2 + 4 * width
        if self.bias:
            layer += 3 * inner + width + self.mlp_ratio * width + width
        return VOCABULARY * width + self.layers * layer + 2 * width


def uniform_architectures(scale: Scale) -> list[Architecture]:
    """Return the 162 architectures of a scale whose layers are all alike.

    >>> len(uniform_architectures(SCALES[0]))
    162
    """
    return list(
        itertools.starmap(
            Architecture,
            itertools.product(scale.widths, scale.layers, MLP_RATIOS, scale.heads, BIASES),
        )
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """An MLP of five linear layers with ReLU between, from one-hot architectures to perplexity."""

    scale: Scale
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]

    def perplexities(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """Return the predicted perplexity of each architecture [N], computed in f64."""
        hidden_NH = np.stack([one_hot(self.scale, a) for a in architectures])
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden_NH = hidden_NH @ weight.T + bias
            if place < LINEARS - 1:
                hidden_NH = np.maximum(hidden_NH, 0.0)
        return hidden_NH[:, 0]


def one_hot(scale: Scale, architecture: Architecture) -> np.ndarray:
    """Encode an architecture as the predictor's inputs.

    The order is upstream's: width, layers, the MLP ratio of every layer, the heads of every layer,
    bias. Layers that the architecture lacks are all zero.

    >>> one_hot(SCALES[0], Architecture(192, 10, 2, 4, True)).shape
    (80,)
    """

    def encode(choices: Sequence, value, copies: int = 1, rows: int = 1) -> np.ndarray:
        encoded = np.zeros((rows, len(choices)))
        encoded[:copies, choices.index(value)] = 1.0
        return encoded.ravel()

    most = scale.layers[-1]
    return np.concatenate(
        [
            encode(scale.widths, architecture.width),
            encode(scale.layers, architecture.layers),
            encode(MLP_RATIOS, architecture.mlp_ratio, architecture.layers, most),
            encode(scale.heads, architecture.heads, architecture.layers, most),
            encode(BIASES, architecture.bias),
        ]
    )


def read_predictor(path: Path) -> Predictor:
    """Read a predictor; its scale follows from the number of its inputs.

    Raises:
      UserError: not a PyTorch file, or not such a predictor.
    """
    tensors = read_tensors(path)
    names = [f"fc{place}" for place in range(1, LINEARS + 1)]
    wanted = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    if set(tensors) != wanted:
        odd = sorted(set(tensors) ^ wanted)[0]
        problem = "is missing" if odd in wanted else "is not known"
        raise UserError(f"{path}: tensor {odd:.40} {problem}; accepted are fc1 to fc{LINEARS}")
    weights = [tensors[f"{name}.weight"].astype(float) for name in names]
    biases = [tensors[f"{name}.bias"].astype(float) for name in names]
    inputs = weights[0].shape[-1]
    scales = [scale for scale in SCALES if scale.inputs == inputs]
    if not scales:
        known = ", ".join(f"{scale.inputs} ({scale.name})" for scale in SCALES)
        raise UserError(f"{path}: the predictor has {inputs} inputs; accepted are {known}")
    outputs = [weight.shape[0] for weight in weights]
    for name, weight, bias, before in zip(names, weights, biases, [inputs, *outputs], strict=False):
        if weight.ndim != 2 or weight.shape[1] != before or bias.shape != weight.shape[:1]:
            raise UserError(f"{path}: the shapes of {name} do not fit the layer before")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise UserError(f"{path}: {name} holds a number that is not finite")
    if outputs[-1] != 1:
        raise UserError(f"{path}: the predictor has {outputs[-1]} outputs; accepted is one")
    return Predictor(scales[0], tuple(weights), tuple(biases))
