"""Counts the FLOPs of training and playing the agent, and logs time and memory of the stages."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator

from autollm_jax.cluster import distributed
from autollm_jax.evaluation.cost import Spending
from autollm_jax.evaluation.run_costs import read_runs
from autollm_jax.files import append_json_lines
from autollm_jax.job.job import Job
from autollm_jax.models.transformer import parameter_count

GIB = 2**30 if sys.platform == "darwin" else 2**20  # of the units that `getrusage` counts in
TRAINED = ("agent", "distilled")  # the methods that use the trained policy
UNTRAINED = ("zero_shot",)  # and the one that uses it as it came


@contextlib.contextmanager
def timed(job: Job, stage: str) -> Iterator[None]:
    """Log a stage's seconds and the peak memory so far to `stages.jsonl`, a line when it ends.

    The peak is that of the largest process since the job began, in GiB. A resumed stage adds a
    line; the time of a killed process is lost.
    """
    began = time.perf_counter()
    yield
    if distributed.is_main():
        peaks = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        line = {
            "stage": stage,
            "seconds": round(time.perf_counter() - began, 3),
            "peak_gib": round(max(peak.ru_maxrss for peak in peaks) / GIB, 2),
        }
        append_json_lines(job.workdir / "stages.jsonl", [line])


def training_flops(job: Job) -> float:
    """Count the FLOPs of distillation and GRPO.

    6 x parameters + 12 x layers x heads x head width x row length, a token (PaLM, arXiv 2204.02311,
    appendix B); a third of it for a forward pass alone (sampling, the reference, importance
    weights). Rows count in full, padding included. A row of a rollout counts as the whole context,
    an upper bound.
    """
    distill, grpo, context = job.config.distill, job.config.grpo, job.config.policy.context
    rows = grpo.steps * grpo.groups * grpo.group_size
    hp = job.grpo_hyperparameters()
    forward = 1 + hp.needs_reference + bool(hp.importance_cap)
    passes = grpo.epochs + forward / 3
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
    # An episode is read and written once, without gradients.
    playing = _row_flops(job, job.config.policy.context) / 3
    evidence = job.split.training if job.config.gym.evidence else ()
    runs = read_runs(job.roots, [*job.split.training, *job.split.held_out])
    return Spending(training_flops(job), playing, TRAINED, runs, evidence, UNTRAINED)
