"""Takes the trained agent out of a work directory."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from autollm_jax.agent.portable import PortableAgent
from autollm_jax.agent.rollout import Policy
from autollm_jax.errors import UserError
from autollm_jax.files import read_json
from autollm_jax.ground_truth.provenance import code_commit, package_versions
from autollm_jax.job.job import Job


def of_workdir(workdir: Path) -> PortableAgent:
    """Read the agent that a job trained.

    Raises:
      UserError: the folder is no work directory, or its policy is not trained yet.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(f"{path}: no such file; accepted is a work directory of launch/main.py")
    config: Any = ConfigDict(read_json(path))
    job = Job.start(config, str(workdir))
    parameters = job.parameters("grpo" if config.grpo.steps else "distill")
    provenance = {
        "commit": code_commit(),
        "versions": package_versions(),
        "protocol": config.protocol,
        "roots": [Path(root).name for root in job.roots],
        "training": sorted({f"{e.source}/{e.task}" for e in job.training}),
        "seed": config.seed,
    }
    return PortableAgent(
        Policy(job.model, parameters, job.tokenizer),
        config.policy.context,
        config.policy.turn_tokens,
        config.gym.budget,
        config.policy.full_texts,
        provenance,
    )
