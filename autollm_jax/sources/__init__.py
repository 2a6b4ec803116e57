"""One module per public table, each a reader of the upstream file as published.

>>> sorted(SOURCES)
['admire', 'autoresearch', 'gemstones', 'hwgpt', 'regmix', 'steplaw']
>>> SOURCES["hwgpt"].licence
'Apache-2.0'
"""

from autollm_jax.sources import admire, autoresearch, gemstones, hwgpt, regmix, steplaw
from autollm_jax.sources.source import Source

_MODULES = (steplaw, hwgpt, regmix, admire, autoresearch, gemstones)
SOURCES: dict[str, Source] = {module.SOURCE.name: module.SOURCE for module in _MODULES}
