"""Low-rank adaptation (LoRA, arXiv 2106.09685): a frozen base and small factors that are trained.

A model with `lora_rank` has two factors beside each matrix of `lora_targets`. `lora_scale` times
the product of the factors is added to the matrix. `split` separates the parameters into frozen and
trained ones, `join` puts both together. Policy and reference share the frozen parameters.
"""

import dataclasses

import jax
import jax.numpy as jnp

from autollm_jax.models import transformer
from autollm_jax.models.transformer import LORA_IN, LORA_OUT, TransformerConfig


def split(config: TransformerConfig, params: dict) -> tuple[dict, dict]:
    """Split a tree of parameters, axes or shardings into its frozen and its trained part.

    Without `lora_rank` the frozen part is empty.
    """
    if not config.lora_rank:
        return {}, params
    layers = params["layers"]
    trained = {name for name in layers if name.endswith((LORA_IN, LORA_OUT))}
    base = {name: leaf for name, leaf in layers.items() if name not in trained}
    return {**params, "layers": base}, {"layers": {name: layers[name] for name in sorted(trained)}}


def join(frozen: dict, trained: dict) -> dict:
    """Put the two parts of `split` together; with an empty frozen part, return the trained part."""
    if not frozen:
        return trained
    return {**frozen, "layers": {**frozen["layers"], **trained["layers"]}}


def init(config: TransformerConfig, key: jax.Array) -> dict:
    """Draw the trained parameters."""
    return split(config, transformer.init(config, key))[1]


def logical_axes(config: TransformerConfig) -> dict:
    """Return the trained parameters' tree with a tuple of logical axis names per array."""
    return split(config, transformer.logical_axes(config))[1]


def merge(config: TransformerConfig, params: dict) -> tuple[TransformerConfig, dict]:
    """Add the factors' products to the matrices; return a model without factors, for export."""
    if not config.lora_rank:
        return config, params
    layers = dict(params["layers"])
    for target in config.lora_targets:
        first, second = layers.pop(target + LORA_IN), layers.pop(target + LORA_OUT)
        product = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1))(first, second)
        layers[target] = layers[target] + config.lora_scale * product
    plain = dataclasses.replace(config, lora_rank=0, lora_targets=())
    return plain, {**params, "layers": layers}
