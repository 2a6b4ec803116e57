"""One module per public table, each a reader of the upstream file as published."""

from autollm_jax.sources import steplaw
from autollm_jax.sources.source import Source

SOURCES: dict[str, Source] = {steplaw.SOURCE.name: steplaw.SOURCE}
