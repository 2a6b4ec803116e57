"""Eight fake CPU devices, and no silent broadcasting, for every test."""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    # Most of the suite is compilation, and its models are tiny.
    + " --xla_backend_optimization_level=0"
)
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# The suite shares its cores with XLA; BLAS threads would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
