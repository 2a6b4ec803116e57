#!/usr/bin/env bash
# The main job on the nodes of a Slurm cluster; arguments go to launch/main.py. From the checkout:
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh \
#     --config=configs/gym.py --workdir=/shared/DIR
#
# GPUs: a task each. CPUs: a task a node. The checkout, the Python of $PYTHON (default: python) and
# the work directory have to be the same on all nodes. Shares of the outcome tables, without any
# coordination:
#
#   sbatch --array=0-31 --ntasks=1 launch/slurm.sh \
#     --config=configs/gym.py --stage=ground_truth --workdir=/shared/DIR
#
# A share is the task's number out of all; an array of some of them has to be told how many all are:
#
#   SHARES=32 sbatch --array=3,7-9 ...
#
# Ten minutes before the time limit every task is told to stop: it saves, exits with 75, and the job
# is queued again and goes on. That has to be longer than a training step and a checkpoint take
# (metrics.jsonl: rollout_seconds and update_seconds), and much shorter than the time limit; another
# one is `sbatch --signal=TERM@SECONDS ...`. A job that is preempted, where PreemptMode is REQUEUE,
# goes on likewise; it gets the partition's GraceTime.
#SBATCH --job-name=autollm
#SBATCH --requeue
#SBATCH --signal=TERM@600
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log
set -euo pipefail

stop_code=75
# The time limit's signal goes to the tasks alone: one that comes here is scancel's, or Slurm queues
# the job again by itself.
cancelled=0
trap 'cancelled=1' TERM

arguments=("$@")
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
  # A task alone may be any part of a former array.
  # shellcheck disable=SC2153  # set by Slurm
  if [[ -z ${SHARES:-} ]] && ((SLURM_ARRAY_TASK_MIN == 0 && SLURM_ARRAY_TASK_COUNT > 1 &&
    SLURM_ARRAY_TASK_MAX + 1 == SLURM_ARRAY_TASK_COUNT)); then
    SHARES=$SLURM_ARRAY_TASK_COUNT
  fi
  if [[ -z ${SHARES:-} ]]; then
    echo "error: this array is not 0 to n-1: say how many shares there are in all," \
      "SHARES=32 sbatch --array=... say" >&2
    exit 1
  fi
  arguments+=("--config.ground_truth.share=$SLURM_ARRAY_TASK_ID/$SHARES")
fi
coordinator=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# A port above those that Linux gives to outgoing connections.
arguments+=("--config.distributed.coordinator=$coordinator:$((61440 + SLURM_JOB_ID % 4096))")

# --wait: where a task dies, the others are waiting for it, and are ended a minute later.
code=0
srun --kill-on-bad-exit=0 --wait=60 "${PYTHON:-python}" launch/main.py "${arguments[@]}" || code=$?

if [[ $code == "$stop_code" && $cancelled == 0 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
