"""Experiments with measured outcomes, and the environment that hands them out (numpy only)."""
