"""HW-GPT-Bench's perplexity predictor: which architectures it knows, and what it says of them."""

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
    """One of upstream's three supernets: what an architecture may be."""

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
    """A model of a supernet; `mlp_ratios` and `heads` have one entry per layer."""

    width: int
    mlp_ratios: tuple[int, ...]
    heads: tuple[int, ...]
    bias: bool

    @property
    def layers(self) -> int:
        return len(self.heads)

    @property
    def parameters(self) -> int:
        """Count the parameters, the shared embedding once.

        Embedding: vocabulary x width. Per layer with h heads and MLP ratio r: queries, keys and
        values 3 x 64 h x width, the output 64 h x width, the MLP 2 r width^2, two norms 4 width;
        with bias 3 x 64 h + width and r width + width more. Last norm: 2 width.
        """
        width, total = self.width, VOCABULARY * self.width + 2 * self.width
        for ratio, heads in zip(self.mlp_ratios, self.heads, strict=True):
            inner = HEAD_SIZE * heads
            total += 4 * inner * width + 2 * ratio * width**2 + 4 * width
            if self.bias:
                total += 3 * inner + width + ratio * width + width
        return total


def uniform_architectures(scale: Scale) -> list[Architecture]:
    """Return all architectures whose layers are alike."""
    return [
        Architecture(width, (ratio,) * layers, (heads,) * layers, bias)
        for width, layers, ratio, heads, bias in itertools.product(
            scale.widths, scale.layers, MLP_RATIOS, scale.heads, BIASES
        )
    ]


def sample_architectures(scale: Scale, count: int, seed: int) -> list[Architecture]:
    """Draw `count` distinct architectures whose layers are not all alike.

    Each draws the frequencies of its MLP ratios and heads first, then its layers: with equal
    frequencies throughout, all would be of about one size.
    """
    random = np.random.default_rng([seed, SCALES.index(scale)])
    uniform = set(uniform_architectures(scale))
    found: dict[Architecture, None] = {}
    while len(found) < count:
        layers = int(random.choice(scale.layers))
        ratios, heads = (
            tuple(
                random.choice(choices, layers, p=random.dirichlet((1.0,) * len(choices))).tolist()
            )
            for choices in (MLP_RATIOS, scale.heads)
        )
        drawn = Architecture(
            int(random.choice(scale.widths)), ratios, heads, bool(random.integers(2))
        )
        if drawn not in uniform:
            found[drawn] = None
    return list(found)


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
    """Encode an architecture: width, layers, MLP ratio and then heads of every layer, bias."""

    def encode(choices: Sequence, values: Sequence, rows: int = 1) -> np.ndarray:
        encoded = np.zeros((rows, len(choices)))
        encoded[np.arange(len(values)), [choices.index(value) for value in values]] = 1.0
        return encoded.ravel()

    most = scale.layers[-1]
    return np.concatenate(
        [
            encode(scale.widths, [architecture.width]),
            encode(scale.layers, [architecture.layers]),
            encode(MLP_RATIOS, architecture.mlp_ratios, most),
            encode(scale.heads, architecture.heads, most),
            encode(BIASES, [architecture.bias]),
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
