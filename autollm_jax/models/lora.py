"""Low-rank adaptation (LoRA, arXiv 2106.09685): a frozen base and small factors that are trained.

A model with `lora_rank` has, beside each matrix of `lora_targets`, two factors whose product is
added to it, `lora_scale` times. `split` takes its parameters apart, `join` puts them together;
the frozen part is shared by all that read it, policy and reference alike.
"""

import dataclasses

import jax
import jax.numpy as jnp

from autollm_jax.models import transformer
from autollm_jax.models.transformer import LORA_IN, LORA_OUT, TransformerConfig


def split(config: TransformerConfig, params: dict) -> tuple[dict, dict]:
    """Split a parameter tree (or one of axes or shardings) into what is frozen and what is trained.

    Without `lora_rank` nothing is frozen.
    """
    if not config.lora_rank:
        return {}, params
    layers = params["layers"]
    trained = {name for name in layers if name.endswith((LORA_IN, LORA_OUT))}
    base = {name: leaf for name, leaf in layers.items() if name not in trained}
    return {**params, "layers": base}, {"layers": {name: layers[name] for name in sorted(trained)}}


def join(frozen: dict, trained: dict) -> dict:
    """Put together what `split` took apart; what is trained alone stays as it is."""
    if not frozen:
        return trained
    return {**frozen, "layers": {**frozen["layers"], **trained["layers"]}}


def init(config: TransformerConfig, key: jax.Array) -> dict:
    """Make the parameters that are trained."""
    return split(config, transformer.init(config, key))[1]


def logical_axes(config: TransformerConfig) -> dict:
    """The trained parameters' tree with a tuple of logical axis names in place of each array."""
    return split(config, transformer.logical_axes(config))[1]


def merge(config: TransformerConfig, params: dict) -> tuple[TransformerConfig, dict]:
    """Add the factors' products to their matrices, to export a model without factors."""
    if not config.lora_rank:
        return config, params
    layers = dict(params["layers"])
    for target in config.lora_targets:
        first, second = layers.pop(target + LORA_IN), layers.pop(target + LORA_OUT)
        product = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1))(first, second)
        layers[target] = layers[target] + config.lora_scale * product
    plain = dataclasses.replace(config, lora_rank=0, lora_targets=())
    return plain, {**params, "layers": layers}
