"""The transformer and its KV cache: the only package that imports flax.linen."""
