"""Compiles for accelerators that are not there, and reads what their compilers say."""
