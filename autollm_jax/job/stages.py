"""The stages of a job, in order; each stage resumes from the files in the work directory.

ground_truth    train the runs of the project's own outcome tables
curate          choose training pairs: a target experiment and its cheaper evidence
simulate        play the teacher on the pairs
distill         train the policy on the teacher's turns
grpo            train the policy further by reinforcement learning
evaluate        play the policy and every baseline on the held-out experiments
report          write summary and figures, print the mean regrets
verify          (on demand) train random rows of the own tables again, compare the outcomes
intervene       (on demand) exchange thoughts of the agent, and see whether its choices follow
cross_validate  (on demand) compare methods on changed copies of the training experiments
pool            (on demand) pool the evaluations of several trainings into one report
plan            (on demand) compile every step from shapes alone, print what each takes
"""

import contextlib
import os

import jax
from ml_collections import ConfigDict

from autollm_jax.cluster import distributed, preemption
from autollm_jax.errors import UserError
from autollm_jax.files import writable_folder
from autollm_jax.job import constraints, fields, planning, spending
from autollm_jax.job import workdir as work_directory
from autollm_jax.job.job import Job
from autollm_jax.job.scoring_stages import (
    cross_validate,
    evaluate_methods,
    intervene,
    learn_baselines_beside,
    pool,
    report,
    wait_for,
)
from autollm_jax.job.table_stages import ground_truth, share_of, verify
from autollm_jax.job.training_stages import curate, distill_policy, grpo, simulate

# Stages that compute on the devices of all processes. Process 0 alone runs the other stages.
TOGETHER = ("distill", "grpo", "evaluate", "cross_validate")
# Stages that score a trained policy. Their tables may differ from the tables of the training.
SCORING = ("evaluate", "report", "verify", "intervene", "cross_validate")
# Stages of `--stage=all`; the others run on demand.
PIPELINE = tuple(work_directory.OUTPUTS)
LEAST_COMPILE_SECONDS = 0.2  # a program that compiles quicker is not kept
STAGES = {
    "ground_truth": ground_truth,
    "curate": curate,
    "simulate": simulate,
    "distill": distill_policy,
    "grpo": grpo,
    "evaluate": evaluate_methods,
    "report": report,
    "verify": verify,
    "intervene": intervene,
    "cross_validate": cross_validate,
    "pool": pool,
    "plan": planning.plan,
}


def run(config: ConfigDict, workdir: str, stage: str, restart: str = "") -> None:
    """Run one stage, or all of them in order.

    1. check every field of the config
    2. connect the processes, find the devices, open published weights
    3. lock the work directory, compare its config with this one; for a restart, set files aside
    4. run the stages

    Every process of a job calls this function; only process 0 prints.

    Args:
      config: the job's config.
      workdir: the folder that holds everything the job writes.
      stage: one of `STAGES`, or "all".
      restart: a stage of `PIPELINE`; its files and those of later stages are set aside first.

    Raises:
      UserError: an error that the user can fix.
      Preempted: the job was asked to stop; the same call resumes it.
    """
    config = fields.checked(config)
    constraints.check(config)
    if stage == "plan":  # reads no files of a job, writes plan.json only
        if restart:
            raise UserError("--restart has no meaning with --stage=plan; accepted is one of them")
        writable_folder(workdir)
        planning.plan(planning.start(config, workdir))
        return
    with preemption.in_good_order(), contextlib.ExitStack() as stack:
        job = Job.start(config, workdir)
        job.check_weights()

        def take():
            share = share_of(config.ground_truth.share) if stage == "ground_truth" else (0, 1)
            stack.enter_context(work_directory.locked(workdir, share))
            values = config.to_dict()
            work_directory.claim(workdir, values, scoring=stage in SCORING, restart=restart)

        distributed.on_main(take)
        _keep_compiled(job)
        if not distributed.is_main():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        learning = []
        for name in PIPELINE if stage == "all" else (stage,):
            if stage == "all" and name == "distill" and distributed.is_main():
                learning = learn_baselines_beside(job)
            with spending.timed(job, name):
                if name == "evaluate":
                    wait_for(learning)
                run_stage(job, name)


def _keep_compiled(job: Job) -> None:
    """Keep compiled programs for later stages, a resumed job, and worker processes.

    They lie where `config.compilation_cache` says, or JAX_COMPILATION_CACHE_DIR, which has the last
    word. Each may be deleted.
    """
    folder = job.under_workdir(job.config.compilation_cache)
    if not folder:
        return
    kept = {
        "jax_compilation_cache_dir": folder if "://" in folder else os.path.abspath(folder),
        "jax_persistent_cache_min_compile_time_secs": LEAST_COMPILE_SECONDS,
    }
    for name, value in kept.items():
        if name.upper() not in os.environ:
            os.environ[name.upper()] = str(value)  # processes that this one spawns read it
            jax.config.update(name, value)


def run_stage(job: Job, name: str) -> None:
    """Run a stage in all processes, or in process 0 while the others wait."""
    if name in TOGETHER:
        STAGES[name](job)
    else:
        distributed.on_main(lambda: STAGES[name](job.alone))
