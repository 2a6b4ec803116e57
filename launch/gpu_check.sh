#!/usr/bin/env bash
# Check a machine with a GPU in twelve minutes at most, and write a report to commit:
#
#     pip install -r requirements.txt -r requirements-parity.txt
#     launch/gpu_check.sh [--out=FILE] [--quick]
#
# 1. the tests of the code that runs on devices: models, sampler, losses, train step, LoRA, FLOPs.
#    (Other tests use the host only, or need eight devices. A test that needs more devices than this
#    machine has is skipped.)
# 2. train steps of models of 50M, 350M and 1B parameters against the card's own matrix product: MFU
# 3. sampling with the shape of SmolLM2-135M; against transformers on the CPU, whose texts it is
#    compared with
# 4. GRPO steps of a Qwen3-0.6B with random weights
# 5. the main job, small: configs/gym.py:smoke
#
# Each part has its share of the minutes, and ends with code 124 after it. A failed part does not stop
# the other parts; the exit code is then 1. --quick runs a small piece of each part but sampling, to
# test this script on a CPU, without limits that a slow one would miss. $PYTHON is the Python
# interpreter, `python` by default. Sizes were chosen for one H100; nobody has run it on one.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

PYTHON=${PYTHON:-python}
REPORT=gpu_check.md
TESTS=(tests/models tests/training tests/rl/test_sampler.py tests/rl/test_grpo.py
  tests/rl/test_logprobs.py)
# Each with its flags.
BENCHMARKS=("train_step --size=50m" "train_step --size=350m" "train_step --size=1b"
  "sampling --dtype=bfloat16 --repeats=3" "grpo_step --size=1b --repeats=3")
JOB=(--config=configs/gym.py:smoke)
# Seconds: 240 + 3 x 50 + 60 + 90 + 180 are twelve minutes.
declare -A MOST=([tests]=240 [train_step]=50 [sampling]=60 [grpo_step]=90 [job]=180)
LINES_KEPT=25

for argument in "$@"; do
  case $argument in
    --out=*) REPORT=${argument#--out=} ;;
    --quick)
      TESTS=(tests/models/test_product.py)
      BENCHMARKS=("train_step --repeats=1" "grpo_step --repeats=1 --dtype=float32")
      JOB+=(--stage=curate --config.gym.roots=gym_data)
      for part in "${!MOST[@]}"; do MOST[$part]=600; done # a slow CPU is not what is tested
      ;;
    *)
      echo "error: unknown argument $argument; accepted are --out=FILE and --quick" >&2
      exit 2
      ;;
  esac
done
if ! : >>"$REPORT"; then
  echo "error: $REPORT cannot be written; give --out=FILE" >&2
  exit 2
fi

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
FAILED=0

# run NAME COMMAND...: run a part; keep its command, time, exit code and last lines for the report.
run() {
  local name=$1 began=$SECONDS code
  shift
  echo "gpu_check: $name: $*"
  "$@" >"$WORK/log" 2>&1
  code=$?
  if [ $code -ne 0 ]; then FAILED=1; fi
  echo "gpu_check: $name: exit code $code after $((SECONDS - began)) s"
  echo "| $name | $code | $((SECONDS - began)) |" >>"$WORK/summary"
  {
    printf '\n## %s\n\n    %s\n\nExit code %d, %d s.\n\n```\n' "$name" "$*" $code $((SECONDS - began))
    # A progress bar rewrites its line: keep the last state only.
    sed 's/.*\r\(.\)/\1/' "$WORK/log" | tail -n "$LINES_KEPT"
    printf '```\n'
  } >>"$WORK/details"
}

touch "$WORK/summary" "$WORK/details"
run devices "$PYTHON" - <<'EOF'
import platform

import flax, jax, jaxlib, optax

print(f"Python {platform.python_version()}, {platform.platform()}")
print(f"jax {jax.__version__}, jaxlib {jaxlib.__version__}, flax {flax.__version__}, optax {optax.__version__}")
for device in jax.devices():
    print(f"{device.id}: {device.platform}, {device.device_kind}, {device.client.platform_version}".splitlines()[0])
EOF
if command -v nvidia-smi >/dev/null; then
  run driver nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
fi

# shellcheck source=launch/gpu_flags.sh
if command -v nvidia-smi >/dev/null; then source launch/gpu_flags.sh; fi

# The platform for the tests; it overrules their default of eight fake CPU devices.
BACKEND=$("$PYTHON" -c 'import jax
client = jax.devices()[0].client
kinds = [kind for kind in ("cuda", "rocm") if kind in client.platform_version.lower()]
print(kinds[0] if client.platform == "gpu" and kinds else client.platform)' 2>/dev/null)

# The tests' tolerances are for f32. A GPU multiplies f32 in fewer bits without this setting.
run tests timeout "${MOST[tests]}" \
  env JAX_PLATFORMS="${BACKEND:-cpu}" JAX_DEFAULT_MATMUL_PRECISION=highest \
  "$PYTHON" -m pytest -q "${TESTS[@]}"
for benchmark in "${BENCHMARKS[@]}"; do
  read -r -a words <<<"$benchmark"
  run "benchmark $benchmark" timeout "${MOST[${words[0]}]}" \
    "$PYTHON" launch/benchmark.py "${words[@]}"
done
run "main job" timeout "${MOST[job]}" "$PYTHON" launch/main.py "${JOB[@]}" --workdir="$WORK/job"

{
  echo "# Check of $(hostname), $(date -u +%Y-%m-%dT%H:%MZ)"
  printf '\nCommit %s.\n\n' "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
  printf '| part | exit code | seconds |\n|---|---|---|\n'
  cat "$WORK/summary" "$WORK/details"
} >"$REPORT"
echo "gpu_check: wrote $REPORT"
exit $FAILED
