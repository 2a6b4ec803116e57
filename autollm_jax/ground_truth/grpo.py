"""The task grpo: hyperparameters of GRPO for small language models on problems with one answer.

1. Pre-train a backbone on problems with answers; stop it while it still fails at many problems.
2. Tune the backbone by GRPO (autollm_jax/rl, which also trains the agent): the reward says whether
   an answer is right.
"""

import dataclasses
import hashlib
import io
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.data.pipeline import Packed, Pipeline
from autollm_jax.files import write_atomic
from autollm_jax.ground_truth.plan import Cell, Measurement, Plan, seeds_of
from autollm_jax.ground_truth.provenance import device_kind
from autollm_jax.gym.spaces import Dimension, Space
from autollm_jax.models.transformer import TransformerConfig, parameter_count, parameter_shapes
from autollm_jax.rl.problems import (
    STOP,
    VOCAB_SIZE,
    ProblemSet,
    encode,
    problem_set,
)
from autollm_jax.rl.sweep import GRPORun, GRPOSweepConfig, evaluate_policies, train_grpo_group
from autollm_jax.training import sweep
from autollm_jax.training.optimizer import OptimizerConfig

TASK = "grpo"
KINDS = {
    "learning_rate": "log-ordinal",
    "kl_coefficient": "ordinal",
    "group_size": "log-ordinal",
    "clip_range": "ordinal",
    "temperature": "ordinal",
}
# A configuration's number is the sum of its choices' positions times these. None is a multiple of 3
# or 5: where each 3rd or 5th number has more seeds, each choice has its share of them.
STRIDES = {
    "learning_rate": 4,
    "kl_coefficient": 2,
    "group_size": 4,
    "clip_range": 2,
    "temperature": 1,
}
DEFAULTS = {"kl_coefficient": 0.0, "group_size": 8, "clip_range": 0.2, "temperature": 1.0}
DEFAULT_ORIGIN = (
    "TRL's GRPOConfig (beta 0, 8 generations, epsilon 0.2, temperature 1), at the nearest choices "
    "of the grid; its learning rate of 1e-6 is for models of billions of parameters, so the "
    "grid's middle one stands for it"
)


@dataclasses.dataclass(frozen=True)
class GRPOSetup:
    """The settings that all runs of a plan share.

    Attributes:
      dtype: type of the inputs of matrix products.
      backbone_batch: problems per pre-training batch.
      backbone_optimizer: the optimizer of pre-training.
      optimizer: the optimizer of GRPO; a run sets its peak learning rate.
      rollout_rows: answers per rollout; a rollout has rollout_rows / group_size problems.
      minibatch_rows: answers per update.
      epochs: passes over each rollout.
    """

    dtype: str
    backbone_batch: int
    backbone_optimizer: OptimizerConfig
    optimizer: OptimizerConfig
    rollout_rows: int
    minibatch_rows: int
    epochs: int

    def model(self, run: "ProblemRun") -> TransformerConfig:
        """Return the shape of the policy of a run: multi-head attention, MLP ratio 4."""
        return TransformerConfig(
            vocab_size=VOCAB_SIZE,
            width=run.width,
            layers=run.layers,
            heads=run.heads,
            kv_heads=run.heads,
            head_dim=run.width // run.heads,
            mlp_width=4 * run.width,
            dtype=self.dtype,
            scan_unroll=run.layers,
        )

    def sweep(self, run: "ProblemRun") -> GRPOSweepConfig:
        """Return the settings that the runs of one group share."""
        return GRPOSweepConfig(
            run.steps, self.rollout_rows, run.group_size, self.minibatch_rows, self.epochs
        )

    def tokens(self, run: "ProblemRun") -> int:
        """Count the tokens of a run's rollouts, prompts and padding included."""
        problems = problem_set(run.problems)
        context = problems.longest_prompt + problems.longest_answer
        return run.steps * self.rollout_rows * context

    def flops(self, run: "ProblemRun") -> float:
        """Count a run's FLOPs.

        Per token: 2 x parameters for the rollout, 2 x for the reference, 6 x for each epoch of
        updates. Attention is not counted, since contexts are short.
        """
        parameters = parameter_count(self.model(run))
        return float((4 + 6 * self.epochs) * parameters * self.tokens(run))


@dataclasses.dataclass(frozen=True)
class ProblemRun:
    """One GRPO run: its problems, its backbone and its hyperparameters."""

    problems: str
    width: int
    layers: int
    heads: int
    backbone_steps: int  # of pre-training
    steps: int  # rollouts
    learning_rate: float
    kl_coefficient: float
    group_size: int
    clip_range: float
    temperature: float
    seed: int

    @property
    def backbone(self) -> str:
        """Name the pre-trained model."""
        return f"{self.problems}_w{self.width}_l{self.layers}_h{self.heads}_p{self.backbone_steps}"

    @property
    def program(self) -> str:
        return f"{self.problems}_w{self.width}_l{self.layers}_h{self.heads}"

    @property
    def group(self) -> str:
        return f"{self.backbone}_s{self.steps}_g{self.group_size}"

    @property
    def name(self) -> str:
        return (
            f"{self.group}_lr{self.learning_rate:.3e}_kl{self.kl_coefficient:g}"
            f"_c{self.clip_range:g}_t{self.temperature:g}_s{self.seed}"
        )


@dataclasses.dataclass(frozen=True)
class GRPOTrainer:
    """Trains groups of GRPO runs, on backbones that are trained at first use and kept.

    Attributes:
      problems: names of the sets of problems that the plan's runs are trained on.
    """

    setup: GRPOSetup
    cache_dir: Path
    problems: tuple[str, ...]

    def provenance(self) -> dict:
        """Return the facts besides the plan that outcomes depend on, for comparison."""
        content = {
            name: [
                list(map(dataclasses.astuple, part)) for part in (made.examples(), made.held_out)
            ]
            for name, made in ((n, problem_set(n)) for n in self.problems)
        }
        text = json.dumps(content, sort_keys=True)
        problems = hashlib.sha256(text.encode()).hexdigest()
        return {"problems_hash": problems, "device": device_kind()}

    def steps(self, run: ProblemRun) -> int:
        """Return the number of rollouts of a run."""
        return run.steps

    def train(
        self,
        runs: Sequence[ProblemRun],
        mesh: Mesh,
        *,
        checkpoints: Checkpoints | None = None,
        checkpoint_seconds: float = 60.0,
        on_steps: Callable[[int], None] = lambda count: None,
    ) -> list[Measurement]:
        """Train the runs of one group in one program; return a measurement per run."""
        first = runs[0]
        model, problems = self.setup.model(first), problem_set(first.problems)
        backbone, before = self.backbone(first, mesh)
        names = [field.name for field in dataclasses.fields(GRPORun)]
        success_R, seconds = train_grpo_group(
            model,
            self.setup.optimizer,
            backbone,
            problems,
            [GRPORun(**{name: getattr(run, name) for name in names}) for run in runs],
            self.setup.sweep(first),
            mesh,
            checkpoints=checkpoints,
            checkpoint_seconds=checkpoint_seconds,
            on_steps=on_steps,
        )
        return [
            Measurement(
                metrics={"success_rate": float(success), "success_before": before},
                status="ok",
                flops=self.setup.flops(run),
                seconds=seconds / len(runs),
            )
            for run, success in zip(runs, success_R, strict=True)
        ]

    def backbone(self, run: ProblemRun, mesh: Mesh):
        """Load a run's backbone, or pre-train it; return its parameters and its success rate."""
        key = json.dumps([run.backbone, dataclasses.asdict(self.setup)], sort_keys=True)
        name = f"backbone-{run.backbone}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npz"
        path, model = self.cache_dir / name, self.setup.model(run)
        problems = problem_set(run.problems)
        structure = jax.tree.structure(parameter_shapes(model))
        if not path.exists():
            runs = [sweep.Run(self.setup.backbone_optimizer.learning_rate, 0)]
            state, _ = sweep.train_states(
                model,
                self.setup.backbone_optimizer,
                runs,
                steps=run.backbone_steps,
                pipelines={0: Pipeline(_rows(problems), self.setup.backbone_batch, 0)},
                mesh=mesh,
            )
            leaves = [np.asarray(leaf[0]) for leaf in jax.tree.leaves(state.params)]
            file = io.BytesIO()
            np.savez(file, *leaves)
            write_atomic(path, file.getvalue())
        with np.load(path, allow_pickle=False) as arrays:
            leaves = [arrays[f"arr_{number}"] for number in range(len(arrays.files))]
        params = jax.tree.unflatten(structure, leaves)
        copies = jax.tree.map(lambda x: np.stack([x] * mesh.shape["data"]), params)
        before = evaluate_policies(model, copies, problems, mesh.shape["data"], mesh)
        return params, float(before[0])


def _rows(problems: ProblemSet) -> Packed:
    """Pack the examples for pre-training for the input pipeline, one per row."""
    length = problems.longest_prompt + problems.longest_answer
    tokens_NT = np.zeros((len(problems.training), length + 1), np.uint16)
    segments_NT = np.zeros_like(tokens_NT)
    for row, problem in enumerate(problems.examples()):
        ids = encode(problem.prompt + problem.answer + STOP)
        tokens_NT[row, : len(ids)] = ids
        segments_NT[row, : len(ids)] = 1
    positions_NT = np.where(segments_NT > 0, np.arange(length + 1), 0).astype(np.uint16)
    return Packed(length, tokens_NT, segments_NT, positions_NT)


def plan(source: str, setup: GRPOSetup, levels: dict, choices: dict) -> Plan:
    """Make the plan: the full grid of hyperparameters for each backbone of each level.

    Args:
      source: the table's source.
      setup: the fields that all runs share.
      levels: the grid of each level: problems, width, layers, heads, backbone_steps (by kind of
        problem), steps (each budget of rollouts), learning_rates, seeds, repeated_every (one
        configuration in so many has all seeds, the others have the first).
      choices: choices of the other hyperparameters. One with a single choice is a fact, not a
        dimension.
    """
    experiments, cells = {}, []
    for level, grid in levels.items():
        values = {name: tuple(choices.get(name, grid.get("learning_rates"))) for name in KINDS}
        free = [name for name in KINDS if len(values[name]) > 1]
        fixed = {name: values[name][0] for name in KINDS if name not in free}
        space = Space(tuple(Dimension(name, KINDS[name], values[name]) for name in free))
        for problems, steps in itertools.product(grid["problems"], grid["steps"]):
            name = f"{problems}_w{grid['width']}_s{steps}"
            runs = _runs(grid, problems, steps, values)
            cells += [Cell(name, {n: config[n] for n in free}, run) for config, run in runs]
            experiments[name] = {
                **_described(setup, level, runs[-1][1], fixed),
                "space": space.to_json(),
                "objective": {"metric": "success_rate", "goal": "maximize"},
                "default": _default({name: values[name] for name in free}),
                "default_origin": DEFAULT_ORIGIN,
            }
    names = tuple(sorted({cell.run.problems for cell in cells}))
    temperatures = sorted({problem_set(name).temperature for name in names})
    how = " or ".join(f"at temperature {t:g}" if t else "by greedy decoding" for t in temperatures)
    return Plan(
        source=source,
        task=TASK,
        setup=setup,
        experiments=experiments,
        cells=tuple(cells),
        metric="success_rate",
        tolerance=2 / min(len(problem_set(name).held_out) for name in names),
        units={
            "config.learning_rate": "peak learning rate of AdamW",
            "config.kl_coefficient": "weight of the divergence from the backbone",
            "config.group_size": f"answers a problem, of {setup.rollout_rows} a rollout",
            "config.clip_range": "probability ratios count from 1 - this to 1 + this",
            "config.temperature": "of the rollouts",
            "success_rate": f"share of the held-out problems solved {how}",
            "success_before": "the same, of the backbone",
        },
        make_trainer=lambda setup, folder: GRPOTrainer(setup, Path(folder), names),
    )


def _default(values: dict[str, tuple]) -> dict:
    """Return the choices nearest to DEFAULTS, and the middle choice of any other dimension."""

    def choice(name: str):
        if name not in DEFAULTS:
            return values[name][len(values[name]) // 2]
        return values[name][int(np.abs(np.array(values[name]) - DEFAULTS[name]).argmin())]

    return {name: choice(name) for name in values}


def _runs(
    grid: dict, problems: str, steps: int, values: dict[str, tuple]
) -> list[tuple[dict, ProblemRun]]:
    """Return (configuration, run) for each configuration of the grid and each of its seeds."""
    made = []
    for positions in itertools.product(*(range(len(choices)) for choices in values.values())):
        config = {
            name: values[name][position] for name, position in zip(KINDS, positions, strict=True)
        }
        number = sum(
            stride * position for stride, position in zip(STRIDES.values(), positions, strict=True)
        )
        for seed in seeds_of(number, grid):
            run = ProblemRun(
                problems=problems,
                width=grid["width"],
                layers=grid["layers"],
                heads=grid["heads"],
                backbone_steps=grid["backbone_steps"][problems],
                steps=steps,
                seed=seed,
                **config,
            )
            made.append((config, run))
    return made


def _described(setup: GRPOSetup, level: str, run: ProblemRun, fixed: dict) -> dict:
    """Return the table's context and fidelity of an experiment."""
    return {
        "context": {
            "problems": run.problems,
            "backbone_steps": run.backbone_steps,
            "width": run.width,
            "layers": run.layers,
            "steps": run.steps,
            "rollout_rows": setup.rollout_rows,
            **fixed,
        },
        "fidelity": {
            "level": level,
            "parameters": parameter_count(setup.model(run)),
            "tokens": setup.tokens(run),
            "flops": setup.flops(run),
        },
    }
