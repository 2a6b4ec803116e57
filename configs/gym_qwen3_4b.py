"""Qwen3-4B as the policy, on 8 GPUs of 80 GB."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

VARIANTS = ("", "lora", "v5e16", "v5e16_lora")


def get_config(variant: str = "") -> ConfigDict:
    """Return the job's config: which devices, and whether factors or all parameters are trained."""
    if variant not in VARIANTS:
        raise ValueError(
            f"configs/gym_qwen3_4b.py:{variant}: the variants are :lora, :v5e16, :v5e16_lora, or "
            "none"
        )
    small = runpy.run_path(str(Path(__file__).with_name("gym_qwen3_0p6b.py")))
    c = small["get_config"]()
    c.policy.weights = "Qwen3-4B"  # the folder of its safetensors files
    c.policy.shape = small["shape"](
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
    )
    # Parameters are gathered over fsdp before a turn is sampled, over tensor never.
    c.mesh.update({"data": 1, "fsdp": 2, "tensor": 4})
    if variant.startswith("v5e16"):
        c.mesh.fsdp = 4
        c.plan.device_memory_gib = 15.0  # 16 GB less what a TPU keeps to itself
    c.evaluation.games = 192
    small["full_fine_tuning"](c, distill_rate=1e-5, grpo_rate=1e-6)
    if variant.endswith("lora"):
        small["low_rank"](c)
    return c
