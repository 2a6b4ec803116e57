"""Saves and restores checkpoints."""
