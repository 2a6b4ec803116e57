"""What training and playing the agent cost: FLOPs counted from sizes, hours as they were logged."""

import contextlib
import json
import math
import time
from collections.abc import Iterator

from autollm_jax import distributed
from autollm_jax.evaluation.cost import Spending
from autollm_jax.evaluation.run_costs import Cost, read_runs
from autollm_jax.job import Job
from autollm_jax.models.transformer import parameter_count

TRAINING_STAGES = ("curate", "simulate", "distill", "grpo")
TRAINED = ("agent", "hybrid")  # the methods that use the trained policy
UNTRAINED = ("zero_shot",)  # and the one that uses it as it came


@contextlib.contextmanager
def timed(job: Job, stage: str) -> Iterator[None]:
    """Log a training stage's wall clock to `stages.jsonl`, a line each time it comes to its end.

    A stage that goes on where it stood adds a line; what a killed process took is lost.
    """
    began = time.perf_counter()
    yield
    if stage in TRAINING_STAGES and distributed.is_main():
        line = {"stage": stage, "seconds": round(time.perf_counter() - began, 3)}
        job.workdir.mkdir(parents=True, exist_ok=True)
        with open(job.workdir / "stages.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")


def logged_hours(job: Job) -> float:
    """Return how long the agent's training took, all stages; nan where one was not logged."""
    path, seconds = job.workdir / "stages.jsonl", dict.fromkeys(TRAINING_STAGES, math.nan)
    for line in path.read_text().splitlines() if path.exists() else ():
        entry = json.loads(line)
        if entry["stage"] in seconds:
            before = seconds[entry["stage"]]
            seconds[entry["stage"]] = entry["seconds"] + (0.0 if math.isnan(before) else before)
    return sum(seconds.values()) / 3600


def training_flops(job: Job) -> float:
    """Count the FLOPs of distillation and GRPO.

    6 x parameters + 12 x layers x heads x head width x row length, a token (PaLM, arXiv 2204.02311,
    appendix B), and a third of it where nothing is learned (sampling, the reference). Rows count in
    full, padding as well; a rollout's as the whole context, which is more than it takes.
    """
    distill, grpo, context = job.config.distill, job.config.grpo, job.config.policy.context
    rows = grpo.steps * grpo.groups * grpo.group_size
    passes = grpo.epochs + (1 + bool(grpo.kl_coefficient)) / 3
    return distill.steps * distill.batch_rows * _row_flops(
        job, distill.row_length
    ) + rows * passes * _row_flops(job, context)


def _row_flops(job: Job, length: int) -> float:
    """Return the training FLOPs of a row of so many tokens."""
    model = job.model
    attention = 12 * model.layers * model.heads * model.head_dim * length
    return float((6 * parameter_count(model) + attention) * length)


def spending(job: Job) -> Spending:
    """Return what was spent besides the trials."""
    training = Cost(training_flops(job), logged_hours(job))
    # An episode is read and written once, without gradients; how long that takes is not logged.
    playing = Cost(_row_flops(job, job.config.policy.context) / 3, 0.0)
    evidence = job.split.training if job.config.gym.evidence else ()
    runs = read_runs(job.roots, [*job.split.training, *job.split.held_out])
    return Spending(training, playing, TRAINED, runs, evidence, UNTRAINED)
