"""The pictures of an evaluation: page, curves, maps."""
