"""One module per public table, each a reader of the upstream file as published.

>>> sorted(SOURCES)
['admire', 'gemstones', 'hwgpt', 'regmix', 'steplaw']
>>> SOURCES["hwgpt"].licence
'Apache-2.0'
"""

from autollm_jax.sources import admire, gemstones, hwgpt, regmix, steplaw
from autollm_jax.sources.source import Source

SOURCES: dict[str, Source] = {
    module.SOURCE.name: module.SOURCE for module in (steplaw, hwgpt, regmix, admire, gemstones)
}
