"""Qwen3-4B as the policy, on 8 GPUs of 80 GB; `:v5e16` on a v5e-16 TPU slice, 16 GB a chip.

    python launch/main.py --config=configs/gym_qwen3_4b.py --config.policy.weights=DIR
    python launch/main.py --config=configs/gym_qwen3_4b.py:v5e16 --config.policy.weights=DIR
    python launch/main.py --config=configs/gym_qwen3_4b.py --stage=plan

This config has been compiled, not trained: it was written without the weights and without such
devices. So mesh, learning rates and numbers of steps are estimates, and no results are known.
`--stage=plan` needs no weights, and prints memory and FLOPs of each step;
`--config.plan.compiler=tpu:v5e:4x4` or `gpu:h100:1x8` asks the accelerators' own compilers.
`:lora` and `:v5e16_lora` train factors of rank 32 beside the frozen weights.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

VARIANTS = ("", "lora", "v5e16", "v5e16_lora")


def get_config(variant: str = "") -> ConfigDict:
    """Return the job's config; variants choose the devices, and LoRA or full fine-tuning."""
    if variant not in VARIANTS:
        raise ValueError(
            f"configs/gym_qwen3_4b.py:{variant}: the variants are :lora, :v5e16, :v5e16_lora, or "
            "none"
        )
    small = runpy.run_path(str(Path(__file__).with_name("gym_qwen3_0p6b.py")))
    c = small["base"]("Qwen3-4B")  # the folder of its safetensors files
    c.policy.shape = small["shape"](
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
    )
    # Training splits parameters and rows over all devices, and gathers one layer after the other:
    # every gather is once more for each microbatch. Play gathers the parameters before each turn,
    # but never over tensor.
    c.mesh.update({"data": 1, "fsdp": 8, "tensor": 1})
    c.policy.gradients = "bfloat16"
    c.policy.remat = "weights"
    c.distill.microbatches = c.grpo.microbatches = 1
    if variant.startswith("v5e16"):
        c.mesh.fsdp = 16
        c.policy.remat = "layer"
        c.mesh.player_tensor = 4  # all of the parameters leave no room for the cache
        c.plan.device_memory_gib = 15.0  # 16 GB less the memory that the TPU reserves
    c.evaluation.games = 192
    small["full_fine_tuning"](c, distill_rate=1e-5, grpo_rate=1e-6)
    if variant.endswith("lora"):
        small["low_rank"](c)
    return c
