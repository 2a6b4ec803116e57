"""Sweeps of small runs: together against one by one, and against other code."""

import collections
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from autollm_jax.benchmarks.timing import Options, measured
from autollm_jax.data.pipeline import Packed, Pipeline
from autollm_jax.ground_truth.grpo import GRPOSetup, GRPOTrainer, ProblemRun
from autollm_jax.ground_truth.language_model import (
    LanguageModelRun,
    LanguageModelSetup,
    LanguageModelTrainer,
)
from autollm_jax.ground_truth.plan import group_runs
from autollm_jax.progress_bar import progress_bar
from autollm_jax.rl import sweep as rl_sweep
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.training import sweep as training_sweep
from autollm_jax.training.optimizer import OptimizerConfig


def sweep(options: Options) -> dict:
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
        for trainer, runs in progress_bar(groups, "together", unit="group"):
            train("together", trainer, runs, whole)
        for trainer, runs in progress_bar(groups, "again", unit="group"):
            train("together, compiled", trainer, runs, whole)
        for trainer, runs in progress_bar(groups, "one by one", unit="run"):
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


def sweep_rate(options: Options) -> dict:
    """Measure the FLOP rate of 40 configurations, in groups of ten learning rates.

    FLOPs are those of `LanguageModelSetup.flops`; compilation is not counted. The code in --against
    does the same in child processes, by its own launch/benchmark.py, in turn with this one's.
    """
    if options.against is None:
        rates = [_sweep_rate() for _ in range(options.repeats + 1)][1:]  # the first one compiles
        print("sweep:  ", ", ".join(f"{rate:.1f}" for rate in rates), "GFLOP/s")
        return measured(rates, "GFLOP/s", rates)
    folders = {"here": str(Path(__file__).resolve().parents[2]), "there": options.against}
    rates = {name: [] for name in folders}
    for _ in progress_bar(range(options.repeats), "sweep_rate", unit="pair"):
        for name, folder in folders.items():
            done = subprocess.run(
                [sys.executable, f"{folder}/launch/benchmark.py", "sweep_rate", "--repeats=2"],
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
