"""Measurements against a reference in the same run; `launch/benchmark.py` names and runs them."""
