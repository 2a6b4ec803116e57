"""The transformer, its KV cache and checkpoint import: the only package that imports flax.linen."""
