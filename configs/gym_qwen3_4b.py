"""Qwen3-4B as the policy, on 8 GPUs of 80 GB, or with `:v5e16` on a v5e-16 TPU slice.

    python launch/main.py --config=configs/gym_qwen3_4b.py --config.policy.weights=DIR
    python launch/main.py --config=configs/gym_qwen3_4b.py:v5e16 --stage=plan

The plan, by device: an update of 32 rows of 2,048 tokens takes 14.7 GiB (2.2e15 FLOPs of all), the most
is 16.4 GiB (evaluation of 192 games); `:lora` 5.2 and 14.7 GiB; `:v5e16` 8.3 and 10.1 of its 16.
Compiled for such meshes, never trained: the learning rates are guesses.
"""

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
