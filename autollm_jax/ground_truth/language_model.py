"""Language-model runs: the runs of the tasks pretraining, architecture and data_mixture."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.data.corpora import load_corpus
from autollm_jax.data.corpus import Corpus
from autollm_jax.data.pipeline import Batch, Packed, Pipeline, packed_corpus
from autollm_jax.data.tokenizer import Tokenizer, cached_tokenizer
from autollm_jax.ground_truth.plan import Cell, Measurement, Plan
from autollm_jax.ground_truth.provenance import device_kind
from autollm_jax.models.transformer import TransformerConfig, parameter_count
from autollm_jax.training import sweep
from autollm_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class LanguageModelSetup:
    """The settings that all runs of a plan share.

    Attributes:
      corpus: name of the corpus, as `load_corpus` accepts it.
      vocab_size: size of the SentencePiece vocabulary, which is trained on the corpus.
      sequence_length: tokens per sequence.
      dtype: type of the inputs of matrix products.
      validation_rows: most validation sequences per domain.
      optimizer: the optimizer; a run sets its peak learning rate.
    """

    corpus: str
    vocab_size: int
    sequence_length: int
    dtype: str
    validation_rows: int
    optimizer: OptimizerConfig

    def model(self, run: "LanguageModelRun") -> TransformerConfig:
        """Return the shape of the model that a run trains."""
        return TransformerConfig(
            vocab_size=self.vocab_size,
            width=run.width,
            layers=run.layers,
            heads=run.heads,
            kv_heads=run.kv_heads,
            head_dim=run.width // run.heads,
            mlp_width=run.mlp_width,
            dtype=self.dtype,
            scan_unroll=run.layers,
            attention_block=self.sequence_length,
        )

    def parameters(self, run: "LanguageModelRun") -> int:
        """Count all parameters, including the tied embedding."""
        return parameter_count(self.model(run))

    def non_embedding_parameters(self, run: "LanguageModelRun") -> int:
        """Count the parameters without the embedding."""
        return self.parameters(run) - self.vocab_size * run.width

    def flops(self, run: "LanguageModelRun") -> float:
        """Count a run's training FLOPs.

        6 x (all parameters) x tokens + 12 x layers x width x sequence length x tokens, as for MFU
        (PaLM, arXiv 2204.02311, appendix B). The tied embedding counts once, for the logits.
        """
        attention = 12 * run.layers * run.width * self.sequence_length
        return float((6 * self.parameters(run) + attention) * run.tokens)


@dataclasses.dataclass(frozen=True)
class LanguageModelRun:
    """One run: a model, its data and its hyperparameters.

    Attributes:
      tokens: training tokens.
      batch_size: sequences per step.
      learning_rate: the peak learning rate.
      mixture: (domain, weight) pairs in whole percents; None is the natural share of each domain.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_width: int
    tokens: int
    batch_size: int
    learning_rate: float
    seed: int
    mixture: tuple[tuple[str, float], ...] | None = None

    @property
    def model(self) -> str:
        """Return a name of the model, made from its shape."""
        return f"w{self.width}_l{self.layers}_h{self.heads}_k{self.kv_heads}_f{self.mlp_width}"

    @property
    def program(self) -> str:
        return f"{self.model}_b{self.batch_size}"

    @property
    def group(self) -> str:
        return f"{self.model}_d{self.tokens // 1024}k_b{self.batch_size}"

    @property
    def name(self) -> str:
        mixture = ""
        if self.mixture is not None:
            mixture = "_m" + "-".join(f"{100 * weight:.0f}" for _, weight in self.mixture)
        return f"{self.group}_lr{self.learning_rate:.3e}{mixture}_s{self.seed}"


@dataclasses.dataclass(frozen=True)
class LanguageModelTrainer:
    """Trains the runs of a plan, on a corpus, a vocabulary and rows that all runs share."""

    setup: LanguageModelSetup
    corpus: Corpus
    tokenizer: Tokenizer
    training: Mapping[str, Packed]
    validation: Mapping[str, Batch]

    @classmethod
    def make(cls, setup: LanguageModelSetup, cache_dir) -> "LanguageModelTrainer":
        """Read the corpus, train or load its vocabulary, and pack its rows.

        Raises:
          UserError: the corpus cannot be loaded, or the vocabulary size does not suit it.
        """
        corpus = load_corpus(setup.corpus)
        tokenizer = cached_tokenizer(corpus, setup.vocab_size, cache_dir)
        packed = {
            split: packed_corpus(
                corpus, tokenizer, setup.sequence_length, split=split, cache_dir=cache_dir
            )
            for split in ("train", "validation")
        }
        validation = {}
        for domain, rows in packed["validation"].items():
            count = min(setup.validation_rows, len(rows))
            validation[domain] = Pipeline(rows, count, seed=0).batch(0)
        smallest = min(len(batch.tokens_BT) for batch in validation.values())
        validation = {
            domain: jax.tree.map(lambda x: x[:smallest], batch)
            for domain, batch in validation.items()
        }
        return cls(setup, corpus, tokenizer, packed["train"], validation)

    def provenance(self) -> dict:
        """Return the facts besides the plan that losses depend on, for comparison."""
        return {
            "corpus": self.corpus.name,
            "corpus_version": self.corpus.version,
            "corpus_hash": self.corpus.content_hash,
            "tokenizer_hash": self.tokenizer.content_hash,
            "device": device_kind(),
        }

    def steps(self, run: LanguageModelRun) -> int:
        """Return the number of updates: training tokens over the tokens of a batch."""
        return max(1, run.tokens // (run.batch_size * self.setup.sequence_length))

    def train(
        self,
        runs: Sequence[LanguageModelRun],
        mesh: Mesh,
        *,
        checkpoints: Checkpoints | None = None,
        checkpoint_seconds: float = 60.0,
        on_steps: Callable[[int], None] = lambda count: None,
    ) -> list[Measurement]:
        """Train the runs of one group in one program; return a measurement per run."""
        pipelines = {
            (run.mixture, run.seed): Pipeline(
                self.training,
                run.batch_size,
                run.seed,
                weights=None if run.mixture is None else dict(run.mixture),
            )
            for run in runs
        }
        outcomes = sweep.train_group(
            self.setup.model(runs[0]),
            self.setup.optimizer,
            [sweep.Run(run.learning_rate, run.seed, (run.mixture, run.seed)) for run in runs],
            steps=self.steps(runs[0]),
            pipelines=pipelines,
            validation=self.validation,
            mesh=mesh,
            checkpoints=checkpoints,
            checkpoint_seconds=checkpoint_seconds,
            on_steps=on_steps,
        )
        return [
            Measurement(
                metrics={
                    "loss": float(np.mean(list(outcome.losses.values()))),
                    **{f"loss.{domain}": loss for domain, loss in outcome.losses.items()},
                },
                status=outcome.status,
                flops=self.setup.flops(run),
                seconds=outcome.seconds,
            )
            for run, outcome in zip(runs, outcomes, strict=True)
        ]


def language_model_plan(
    source: str,
    task: str,
    setup: LanguageModelSetup,
    experiments: Mapping,
    cells: Sequence[Cell],
    units: Mapping[str, str],
) -> Plan:
    """Make the plan of a task of language-model runs; `units` are the units of other columns."""
    return Plan(
        source=source,
        task=task,
        setup=setup,
        experiments=experiments,
        cells=tuple(cells),
        metric="loss",
        tolerance=1e-4,
        units={**units, "loss": "validation cross-entropy, nats per token, mean over the domains"},
        make_trainer=LanguageModelTrainer.make,
    )
