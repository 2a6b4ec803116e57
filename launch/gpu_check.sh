#!/usr/bin/env bash
# Check a machine with accelerators, and write a report:
#
#     launch/gpu_check.sh [--out=FILE] [--quick]
#
# 1. the tests of the code that runs on devices: models, training, RL, checkpoints, distillation,
#    rollout. (Other tests use the host only, or need eight devices. A test that needs more devices
#    than this machine has is skipped.)
# 2. every benchmark of launch/benchmark.py
# 3. the main job, small: configs/gym.py:smoke
#
# A failed part does not stop the other parts; the exit code is then 1. --quick runs a small piece of
# each part, to test this script. Everything also runs on a CPU. $PYTHON is the Python interpreter,
# `python` by default.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

PYTHON=${PYTHON:-python}
REPORT=gpu_check.md
TESTS=(tests/models tests/training tests/rl tests/checkpointing tests/agent/test_distillation.py
  tests/agent/test_rollout.py tests/agent/test_constraint.py)
JOB=(--config=configs/gym.py:smoke)
BENCHMARK_FLAGS=()
QUICK=false
LINES_KEPT=25

for argument in "$@"; do
  case $argument in
    --out=*) REPORT=${argument#--out=} ;;
    --quick) QUICK=true ;;
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

# The platform for the tests; it overrules their default of eight fake CPU devices.
BACKEND=$("$PYTHON" -c 'import jax
client = jax.devices()[0].client
kinds = [kind for kind in ("cuda", "rocm") if kind in client.platform_version.lower()]
print(kinds[0] if client.platform == "gpu" and kinds else client.platform)' 2>/dev/null)
read -r -a BENCHMARKS < <("$PYTHON" -c 'import runpy
print(*runpy.run_path("launch/benchmark.py")["BENCHMARKS"])' 2>/dev/null)
if $QUICK; then
  TESTS=(tests/models/test_product.py)
  BENCHMARKS=(look_ups)
  BENCHMARK_FLAGS=(--repeats=1)
  JOB+=(--stage=curate --config.gym.roots=gym_data)
fi

# The tests' tolerances are for f32. A GPU multiplies f32 in fewer bits without this setting.
run tests env JAX_PLATFORMS="${BACKEND:-cpu}" JAX_DEFAULT_MATMUL_PRECISION=highest \
  "$PYTHON" -m pytest -q "${TESTS[@]}"
for name in "${BENCHMARKS[@]}"; do
  run "benchmark $name" "$PYTHON" launch/benchmark.py "$name" "${BENCHMARK_FLAGS[@]}"
done
if [ ${#BENCHMARKS[@]} -eq 0 ]; then
  run benchmarks "$PYTHON" launch/benchmark.py
fi
run "main job" "$PYTHON" launch/main.py "${JOB[@]}" --workdir="$WORK/job"

{
  echo "# Check of $(hostname), $(date -u +%Y-%m-%dT%H:%MZ)"
  printf '\nCommit %s.\n\n' "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
  printf '| part | exit code | seconds |\n|---|---|---|\n'
  cat "$WORK/summary" "$WORK/details"
} >"$REPORT"
echo "gpu_check: wrote $REPORT"
exit $FAILED
