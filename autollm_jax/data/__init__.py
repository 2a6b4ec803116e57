"""Corpora, tokenizer and input pipeline."""
