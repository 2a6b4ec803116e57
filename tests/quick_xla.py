"""Flags by which XLA compiles soon; most of the suite is compilation, and its models are tiny.

python tests/quick_xla.py   prints them
"""

import importlib.metadata

# A program is not cut into parts for many threads: the parts together take twice the CPU time.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
# The older emitters compile fusions in a quarter of the time; jaxlib 0.12 has no others any more
# and refuses the flag.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"

if __name__ == "__main__":
    print(FLAGS)
