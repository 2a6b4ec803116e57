"""AutoLLM-JAX: configures expensive language-model training runs from cheap ones."""
