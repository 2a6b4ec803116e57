"""A tiny model of the shape that is compared."""

import dataclasses

from autollm_jax.benchmarks import smollm2

TINY = dataclasses.replace(
    smollm2.SHAPE, vocab_size=200, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48
)
