"""XLA's options for training steps, by platform; the plan compiles with them too."""

from jax.sharding import Mesh

OPTIONS = {
    "tpu": {
        # Products of gathered parameters are whole. By default XLA splits each into a loop, whose
        # pieces travel beside it: Qwen3-4B's update on a v5e-16 then takes 1.5 times the cycles.
        # The number is the size in MiB from which it does so.
        "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    }
}


def xla_options(mesh: Mesh) -> dict[str, str]:
    """Return `compiler_options` of `jax.jit` for a mesh's devices."""
    return OPTIONS.get(mesh.devices.flat[0].platform, {})
