#!/usr/bin/env bash
# Run the main job on all hosts of a TPU slice; arguments go to launch/main.py. From the checkout:
#
#   TPU=NAME ZONE=us-east5-b launch/tpu_pod.sh --config=configs/gym.py --workdir=/mnt/shared/DIR
#
# No XLA flags: autollm_jax/sharding/xla_options.py gives training steps theirs, however they start.
#
# Copies the checkout to each host, installs requirements-tpu.txt there once, and starts the same
# command on all hosts; JAX detects the slice. All hosts have to mount the file system of the work
# directory (Filestore, or a bucket through gcsfuse). After a pre-emption, create the slice again
# and run the same command: it resumes.
set -euo pipefail

: "${TPU:?the name of the TPU slice}" "${ZONE:?its zone}"
folder=${FOLDER:-autollm_jax}
if [[ $# == 0 ]]; then
  echo "error: give launch/main.py's arguments, as --config=configs/gym.py --workdir=DIR" >&2
  exit 1
fi

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output="$archive" HEAD

gcloud compute tpus tpu-vm scp "$archive" "$TPU:checkout.tar.gz" --zone="$ZONE" --worker=all

# Quoted twice: for the shell of each host.
printf -v command '%q ' python3 launch/main.py "$@"
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="
  set -e
  mkdir -p $(printf %q "$folder") && cd $(printf %q "$folder")
  tar --extract --gzip --file=\"\$HOME/checkout.tar.gz\"
  [ -e .venv ] || python3 -m venv .venv
  . .venv/bin/activate
  cmp --silent requirements-tpu.txt .venv/installed || {
    pip install --quiet -r requirements-tpu.txt
    cp requirements-tpu.txt .venv/installed
  }
  exec $command"
