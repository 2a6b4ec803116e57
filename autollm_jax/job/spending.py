"""The cost of training and playing the agent: FLOPs counted from sizes, hours from the log."""

import contextlib
import math
import time
from collections.abc import Iterator

from autollm_jax.cluster import distributed
from autollm_jax.evaluation.cost import Spending
from autollm_jax.evaluation.run_costs import Cost, read_runs
from autollm_jax.files import append_json_line, read_json_lines
from autollm_jax.job.job import Job
from autollm_jax.models.transformer import parameter_count

TRAINING_STAGES = ("curate", "simulate", "distill", "grpo")
TRAINED = ("agent", "hybrid")  # the methods that use the trained policy
UNTRAINED = ("zero_shot",)  # and the one that uses it as it came


@contextlib.contextmanager
def timed(job: Job, stage: str) -> Iterator[None]:
    """Log a training stage's wall clock to `stages.jsonl`, one line each time the stage ends.

    A resumed stage adds a line. The time of a killed process is lost.
    """
    began = time.perf_counter()
    yield
    if stage in TRAINING_STAGES and distributed.is_main():
        line = {"stage": stage, "seconds": round(time.perf_counter() - began, 3)}
        append_json_line(job.workdir / "stages.jsonl", line)


def logged_hours(job: Job) -> float:
    """Return the hours of all training stages; nan where a stage was not logged."""
    path, seconds = job.workdir / "stages.jsonl", dict.fromkeys(TRAINING_STAGES, math.nan)
    for entry in read_json_lines(path, log=True) if path.exists() else ():
        if entry["stage"] in seconds:
            before = seconds[entry["stage"]]
            seconds[entry["stage"]] = entry["seconds"] + (0.0 if math.isnan(before) else before)
    return sum(seconds.values()) / 3600


def training_flops(job: Job) -> float:
    """Count the FLOPs of distillation and GRPO.

    6 x parameters + 12 x layers x heads x head width x row length, a token (PaLM, arXiv 2204.02311,
    appendix B); a third of it for a forward pass alone (sampling, the reference). Rows count in
    full, padding included. A row of a rollout counts as the whole context, an upper bound.
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
    """Return the cost of training, playing and evidence; the trials' cost is not in it."""
    training = Cost(training_flops(job), logged_hours(job))
    # An episode is read and written once, without gradients; its seconds are not logged.
    playing = Cost(_row_flops(job, job.config.policy.context) / 3, 0.0)
    evidence = job.split.training if job.config.gym.evidence else ()
    runs = read_runs(job.roots, [*job.split.training, *job.split.held_out])
    return Spending(training, playing, TRAINED, runs, evidence, UNTRAINED)
