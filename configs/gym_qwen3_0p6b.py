"""Qwen3-0.6B as the policy, on one GPU of 80 GB.

    python launch/main.py --config=configs/gym_qwen3_0p6b.py --config.policy.weights=DIR
    python launch/main.py --config=configs/gym_qwen3_0p6b.py --stage=plan

This config has been compiled, not trained: it was written without the weights and without a GPU. So
learning rates and numbers of steps are usual values for such models, and no results are known.
`--stage=plan` needs no weights, and prints memory and FLOPs of each step. `:lora` trains factors of
rank 32 beside the frozen weights.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

VARIANTS = ("", "lora")


def get_config(variant: str = "") -> ConfigDict:
    """Return the job's config; `lora` trains factors beside the frozen weights."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/gym_qwen3_0p6b.py:{variant}: the variants are :lora, or none")
    c = base("Qwen3-0.6B")  # the folder of its safetensors files
    c.policy.shape = shape(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
    )
    c.evaluation.games = 96
    full_fine_tuning(c, distill_rate=2e-5, grpo_rate=2e-6)
    if variant == "lora":
        low_rank(c)
    return c


def shape(**sizes) -> ConfigDict:
    """Return the fields of Qwen3's config.json; `sizes` are the fields of one model."""
    published = dict(
        architectures=("Qwen3ForCausalLM",),
        head_dim=128,
        num_key_value_heads=8,
        vocab_size=151_936,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=True,
    )
    return ConfigDict(published | sizes)


def base(weights: str) -> ConfigDict:
    """Return the main job's config for a Qwen3 policy, before the choice of trained parameters."""
    gym = runpy.run_path(str(Path(__file__).with_name("gym.py")))
    c = gym["get_config"]()
    gym["publish"](c, weights)
    c.policy.dtype = c.distill.dtype = "bfloat16"
    c.rollout.drafts = 7  # docs/performance.md has when drafts pay
    # Sizes of the cache: 1,024, 2,048 and 4,096 tokens.
    c.rollout.update({"cache_block": 1024, "cache_doubling": True})
    c.rollout.ended_share = 0.5  # rows that have spoken do not wait for the slowest half
    c.rollout.processes = 8  # one core would answer 64 rows one after the other
    c.plan.device_memory_gib = 74.0  # 80 GB less the memory that the GPU reserves
    c.distill.batch_rows = 32
    c.distill.microbatches = 8
    c.distill.steps = 150  # about two epochs
    c.distill.save_every = 50
    c.grpo.steps = 40
    c.grpo.evaluate_every = 8
    c.grpo.groups = 8
    c.grpo.group_size = 8
    c.grpo.minibatch_rows = 32
    c.grpo.microbatches = 4  # on one GPU: of one group, whose prompt is read once
    c.grpo.save_every = 10
    return c


def full_fine_tuning(c: ConfigDict, distill_rate: float, grpo_rate: float) -> None:
    """Train every parameter."""
    c.distill.optimizer.update({"learning_rate": distill_rate, "b2": 0.95, "weight_decay": 0.01})
    c.grpo.optimizer.learning_rate = grpo_rate


def low_rank(c: ConfigDict) -> None:
    """Train LoRA factors of every matrix, at about ten times the learning rate."""
    c.policy.lora_rank = 32
    c.policy.lora_scale = 1.0
    c.distill.optimizer.update({"learning_rate": 2e-4, "weight_decay": 0.0})
    c.grpo.optimizer.learning_rate = 2e-5
