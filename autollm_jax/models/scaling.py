"""Scaling a model's width to a wanted number of parameters."""

import dataclasses

from autollm_jax.errors import UserError
from autollm_jax.models.transformer import TransformerConfig, parameter_count

_STEP = 16  # widths are multiples of this


def scaled(config: TransformerConfig, factor: float) -> TransformerConfig:
    """Return the model of the same depth and heads that has about `factor` times the parameters.

    Width, head width and MLP width are scaled by the same factor. The width is the multiple of 16
    whose parameter count is nearest to the wanted one.

    Raises:
      UserError: the factor is not positive.
    """
    if not factor > 0:
        raise UserError(f"config.policy.scale is {factor}; accepted is a number over 0")
    if factor == 1:
        return config
    wanted = factor * parameter_count(config)
    found, candidate, width = [], None, 0
    while candidate is None or parameter_count(candidate) < wanted:
        width += _STEP
        candidate = _of_width(config, width)
        found.append(candidate)
    return min(found, key=lambda c: abs(parameter_count(c) - wanted))


def _of_width(config: TransformerConfig, width: int) -> TransformerConfig:
    ratio = width / config.width
    return dataclasses.replace(
        config,
        width=width,
        head_dim=max(2 * round(ratio * config.head_dim / 2), 2),
        mlp_width=max(8 * round(ratio * config.mlp_width / 8), 8),
    )
