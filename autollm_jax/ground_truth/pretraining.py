"""Ground truth of the task `pretraining`: learning rate x batch size on our own Flax runs.

1. `Plan` holds the corpus, the vocabulary and the experiments; each is a grid at one model size and
   token count.
2. An experiment's runs are grouped by batch size (one shape, one number of steps) and each group is
   trained as one sweep, all learning rates and seeds together.
3. Each run's row goes to the ledger; when all are there, the table is written.
"""

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import platform
import shutil
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.data.corpora import load_corpus
from autollm_jax.data.corpus import Corpus
from autollm_jax.data.pipeline import Batch, Pipeline, packed_corpus
from autollm_jax.data.tokenizer import Tokenizer, cached_tokenizer
from autollm_jax.errors import UserError
from autollm_jax.ground_truth.ledger import Ledger
from autollm_jax.ground_truth.provenance import code_commit
from autollm_jax.gym.spaces import Dimension, Space
from autollm_jax.gym.tables import FORMAT
from autollm_jax.models.transformer import TransformerConfig, parameter_count
from autollm_jax.training.optimizer import OptimizerConfig
from autollm_jax.training.sweep import Run, RunOutcome, train_group

TASK = "pretraining"
_PACKAGES = ("jax", "flax", "optax")
DEFAULT_ORIGIN = (
    "nanoGPT's setting for small models (learning rate 1e-3, 16,384 tokens a batch), at the "
    "nearest choices of the grid"
)
DEFAULT_LEARNING_RATE, DEFAULT_BATCH_TOKENS = 1e-3, 16_384


@dataclasses.dataclass(frozen=True)
class GridExperiment:
    """One experiment: a model size, a token count and the grid trained on them."""

    level: str  # low, mid or high
    width: int
    layers: int
    tokens: int  # training tokens of every run
    learning_rates: tuple[float, ...]
    batch_sizes: tuple[int, ...]  # sequences
    seeds: tuple[int, ...] = (0,)

    @property
    def name(self) -> str:
        return f"w{self.width}_l{self.layers}_d{self.tokens // 1024}k"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a table is made of; its digest tells whether a table was made by this very plan."""

    source: str
    corpus: str
    vocab_size: int
    sequence_length: int
    head_dim: int
    dtype: str
    validation_rows: int  # of each domain
    optimizer: OptimizerConfig  # the learning rate is a dimension of the grid
    experiments: tuple[GridExperiment, ...]

    def model(self, experiment: GridExperiment) -> TransformerConfig:
        """The experiment's model: multi-head attention, MLP ratio 8/3 in steps of 8."""
        heads = max(1, experiment.width // self.head_dim)
        return TransformerConfig(
            vocab_size=self.vocab_size,
            width=experiment.width,
            layers=experiment.layers,
            heads=heads,
            kv_heads=heads,
            head_dim=self.head_dim,
            mlp_width=8 * round(experiment.width / 3),
            dtype=self.dtype,
            scan_unroll=experiment.layers,
            attention_block=self.sequence_length,
        )

    def digest(self) -> str:
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Materials:
    """Corpus, vocabulary and rows, made once for all runs of a plan."""

    corpus: Corpus
    tokenizer: Tokenizer
    training: dict
    validation: dict[str, Batch]

    def provenance(self) -> dict:
        """What a loss depends on besides the plan; the same here means comparable losses."""
        return {
            "corpus": self.corpus.name,
            "corpus_version": self.corpus.version,
            "corpus_hash": self.corpus.content_hash,
            "tokenizer_hash": self.tokenizer.content_hash,
            "device": device_kind(),
        }


def device_kind() -> str:
    """The accelerator's name; on a CPU the architecture, whose losses agree across machines."""
    device = jax.devices()[0]
    return platform.machine() if device.platform == "cpu" else device.device_kind


def package_versions() -> str:
    """The packages that a loss depends on."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)


def load_materials(plan: Plan, cache_dir) -> Materials:
    """Read the corpus, train or load its vocabulary, pack its rows.

    Raises:
      UserError: from the corpus, by name.
    """
    corpus = load_corpus(plan.corpus)
    tokenizer = cached_tokenizer(corpus, plan.vocab_size, cache_dir)
    packed = {
        split: packed_corpus(
            corpus, tokenizer, plan.sequence_length, split=split, cache_dir=cache_dir
        )
        for split in ("train", "validation")
    }
    validation = {}
    for domain, rows in packed["validation"].items():
        count = min(plan.validation_rows, len(rows))
        validation[domain] = Pipeline(rows, count, seed=0).batch(0)
    smallest = min(len(batch.tokens_BT) for batch in validation.values())
    validation = {
        domain: jax.tree.map(lambda x: x[:smallest], batch) for domain, batch in validation.items()
    }
    return Materials(corpus, tokenizer, packed["train"], validation)


def run_name(learning_rate: float, batch_size: int, seed: int) -> str:
    """The run's file name in the ledger."""
    return f"lr{learning_rate:.3e}_bs{batch_size}_seed{seed}"


def produce(
    plan: Plan, materials: Materials, ledger: Ledger, mesh: Mesh, *, checkpoint_seconds: float
) -> None:
    """Train every run of the plan that the ledger does not have yet."""
    groups = [(e, b) for e in plan.experiments for b in e.batch_sizes]
    total = sum(group_steps(plan, e, b) for e, b in groups)
    with tqdm(total=total, desc="ground truth", unit="step", dynamic_ncols=True) as bar:
        for experiment, batch_size in groups:
            bar.set_postfix_str(f"{experiment.name}, batch size {batch_size}", refresh=False)
            grid = list(itertools.product(experiment.learning_rates, experiment.seeds))
            names = [run_name(rate, batch_size, seed) for rate, seed in grid]
            if all(ledger.read(experiment.name, name) is not None for name in names):
                bar.update(group_steps(plan, experiment, batch_size))
                continue
            folder = ledger.folder / "checkpoints" / f"{experiment.name}_bs{batch_size}"
            checkpoints = Checkpoints(folder, keep=1)
            outcomes = train_runs(
                plan,
                experiment,
                batch_size,
                [Run(rate, seed) for rate, seed in grid],
                materials,
                mesh,
                checkpoints=checkpoints,
                checkpoint_seconds=checkpoint_seconds,
                on_steps=bar.update,
            )
            for name, outcome in zip(names, outcomes, strict=True):
                row = table_row(plan, experiment, batch_size, outcome, materials)
                ledger.record(experiment.name, name, row)
            checkpoints.close()
            shutil.rmtree(folder)


def group_steps(plan: Plan, experiment: GridExperiment, batch_size: int) -> int:
    """Updates of each run: the token count over the tokens of a batch."""
    return max(1, experiment.tokens // (batch_size * plan.sequence_length))


def train_runs(
    plan: Plan,
    experiment: GridExperiment,
    batch_size: int,
    runs: Sequence[Run],
    materials: Materials,
    mesh: Mesh,
    **options,
) -> list[RunOutcome]:
    """Train runs of one experiment and batch size together; `options` go to `train_group`."""
    pipelines = {
        seed: Pipeline(materials.training, batch_size, seed)
        for seed in sorted({run.seed for run in runs})
    }
    return train_group(
        plan.model(experiment),
        plan.optimizer,
        runs,
        steps=group_steps(plan, experiment, batch_size),
        pipelines=pipelines,
        validation=materials.validation,
        mesh=mesh,
        **options,
    )


def parameters_and_flops(plan: Plan, experiment: GridExperiment) -> tuple[int, float]:
    """Non-embedding parameters N, and the training FLOPs of a run.

    FLOPs are 6 x (all parameters) x tokens + 12 x layers x width x sequence length x tokens, the
    count that MFU figures use (PaLM, arXiv 2204.02311, appendix B); the tied embedding counts once,
    for the logits.
    """
    model = plan.model(experiment)
    whole = parameter_count(model)
    attention = 12 * model.layers * model.width * plan.sequence_length
    return whole - model.vocab_size * model.width, float(
        (6 * whole + attention) * experiment.tokens
    )


def table_row(plan, experiment, batch_size, outcome: RunOutcome, materials: Materials) -> dict:
    """One run as a row of the outcome table."""
    losses = {f"loss.{domain}": loss for domain, loss in outcome.losses.items()}
    return {
        "experiment": experiment.name,
        "config.learning_rate": outcome.run.learning_rate,
        "config.batch_size": batch_size,
        "loss": sum(losses.values()) / len(losses),
        **losses,
        "flops": parameters_and_flops(plan, experiment)[1],
        "seconds": outcome.seconds,
        "seed": outcome.run.seed,
        "status": outcome.status,
        "commit": code_commit(),
        "versions": package_versions(),
        "device": device_kind(),
    }


def table_rows(plan: Plan, ledger: Ledger) -> list[dict]:
    """Collect the plan's rows from the ledger, in a fixed order.

    Raises:
      UserError: a run is missing.
    """
    rows = []
    for e in plan.experiments:
        for rate, batch_size, seed in itertools.product(e.learning_rates, e.batch_sizes, e.seeds):
            name = run_name(rate, batch_size, seed)
            row = ledger.read(e.name, name)
            if row is None:
                raise UserError(
                    f"{ledger.path(e.name, name)}: this run has not been trained; run "
                    "--stage=ground_truth again"
                )
            rows.append(row)
    return rows


def table_meta(plan: Plan, materials: Materials, command: str) -> dict:
    """The JSON beside the table: what the experiments are, and what made them."""
    experiments = {}
    for e in plan.experiments:
        parameters, flops = parameters_and_flops(plan, e)
        batch_tokens = np.array(e.batch_sizes) * plan.sequence_length
        nearest_batch = np.abs(np.log(batch_tokens / DEFAULT_BATCH_TOKENS)).argmin()
        nearest_rate = np.abs(np.log(np.array(e.learning_rates) / DEFAULT_LEARNING_RATE)).argmin()
        space = Space(
            (
                Dimension("learning_rate", "log-ordinal", tuple(e.learning_rates)),
                Dimension("batch_size", "log-ordinal", tuple(e.batch_sizes)),
            )
        )
        experiments[e.name] = {
            "context": {
                "model": "dense",
                "corpus": plan.corpus,
                "non_embedding_parameters": parameters,
                "tokens": e.tokens,
                "sequence_length": plan.sequence_length,
                "vocabulary": plan.vocab_size,
                "width": e.width,
                "layers": e.layers,
            },
            "fidelity": {
                "level": e.level,
                "parameters": parameters,
                "tokens": e.tokens,
                "flops": flops,
            },
            "space": space.to_json(),
            "objective": {"metric": "loss", "goal": "minimize"},
            "default": {
                "learning_rate": e.learning_rates[nearest_rate],
                "batch_size": e.batch_sizes[nearest_batch],
            },
            "default_origin": DEFAULT_ORIGIN,
        }
    return {
        "format": FORMAT,
        "source": plan.source,
        "task": TASK,
        "licence": "the same as this project's",
        "upstream": {"address": "this project's own runs", "commit": code_commit(), "files": {}},
        "command": command,
        "plan": dataclasses.asdict(plan),
        "plan_digest": plan.digest(),
        "provenance": materials.provenance(),
        "units": {
            "config.learning_rate": "peak learning rate of AdamW",
            "config.batch_size": f"sequences of {plan.sequence_length} tokens",
            "loss": "validation cross-entropy, nats per token, mean over the domains",
            "flops": "training FLOPs of the run (6 x parameters x tokens + attention)",
            "seconds": "wall-clock seconds of the run's group divided by its runs",
        },
        "experiments": experiments,
    }
