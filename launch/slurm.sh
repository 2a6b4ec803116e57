#!/usr/bin/env bash
# Run the main job on a Slurm cluster; arguments go to launch/main.py. From the checkout:
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh \
#     --config=configs/gym.py --workdir=/shared/DIR
#
# Give one task per GPU, or one task per node on CPUs. With GPUs launch/gpu_flags.sh sets XLA's options. All nodes have to see the same checkout, the
# same Python ($PYTHON, default: python) and the same work directory. An array trains shares of the
# outcome tables, without any coordination:
#
#   sbatch --array=0-31 --ntasks=1 launch/slurm.sh \
#     --config=configs/gym.py --stage=ground_truth --workdir=/shared/DIR
#
# A share is the array task's number out of all. A partial array needs the number of all shares:
#
#   SHARES=32 sbatch --array=3,7-9 ...
#
# Ten minutes before the time limit every task gets a signal. It saves and exits with 75; the job is
# queued again and resumes. The ten minutes have to be longer than a training step and a checkpoint
# (metrics.jsonl: rollout_seconds and update_seconds), and much shorter than the time limit.
# `sbatch --signal=TERM@SECONDS ...` changes them. Where PreemptMode is REQUEUE, a preempted job
# resumes likewise; it has the partition's GraceTime to save.
#SBATCH --job-name=autollm
#SBATCH --requeue
#SBATCH --signal=TERM@600
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log
set -euo pipefail

# shellcheck source=launch/gpu_flags.sh
if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then source launch/gpu_flags.sh; fi

stop_code=75
# The time limit's signal goes to the tasks only. So a signal to this script comes from scancel, or
# from a pre-emption after which Slurm itself queues the job again.
cancelled=0
trap 'cancelled=1' TERM

arguments=("$@")
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
  # An array of one task may be part of a larger array, so its size does not give the shares.
  # shellcheck disable=SC2153  # set by Slurm
  if [[ -z ${SHARES:-} ]] && ((SLURM_ARRAY_TASK_MIN == 0 && SLURM_ARRAY_TASK_COUNT > 1 &&
    SLURM_ARRAY_TASK_MAX + 1 == SLURM_ARRAY_TASK_COUNT)); then
    SHARES=$SLURM_ARRAY_TASK_COUNT
  fi
  if [[ -z ${SHARES:-} ]]; then
    echo "error: this array is not 0 to n-1: give the number of all shares," \
      "for example SHARES=32 sbatch --array=..." >&2
    exit 1
  fi
  arguments+=("--config.ground_truth.share=$SLURM_ARRAY_TASK_ID/$SHARES")
fi
coordinator=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# The port is above the range that Linux uses for outgoing connections.
arguments+=("--config.distributed.coordinator=$coordinator:$((61440 + SLURM_JOB_ID % 4096))")

# --wait: when a task dies, the other tasks wait for it in vain; srun ends them a minute later.
code=0
srun --kill-on-bad-exit=0 --wait=60 "${PYTHON:-python}" launch/main.py "${arguments[@]}" || code=$?

if [[ $code == "$stop_code" && $cancelled == 0 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
