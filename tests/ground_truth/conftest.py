import jax
import pytest

from autollm_jax.data.corpus import make_corpus
from autollm_jax.data.pipeline import Pipeline, pack
from autollm_jax.data.tokenizer import train_tokenizer
from autollm_jax.ground_truth import architecture, data_mixture, pretraining
from autollm_jax.ground_truth.language_model import LanguageModelSetup, LanguageModelTrainer
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.training.optimizer import OptimizerConfig

SETUP = LanguageModelSetup(
    corpus="poems",
    vocab_size=300,
    sequence_length=8,
    dtype="float32",
    validation_rows=4,
    optimizer=OptimizerConfig(0.0),
)
DOMAINS = ("cats", "dogs", "emus", "foxes", "gnus")


@pytest.fixture(scope="session")
def setup():
    return SETUP


@pytest.fixture(scope="session")
def pretraining_plan():
    grid = {
        "models": ("16x1",),
        "tokens": (1024,),
        "learning_rates": (0.003, 0.03),
        "batch_sizes": (2, 4),
        "seeds": 2,
        "repeated_every": 1,
    }
    return pretraining.plan("tiny", SETUP, {"low": grid}, head_dim=8)


@pytest.fixture(scope="session")
def architecture_plan():
    grid = {
        "width": (8, 16),
        "layers": (1,),
        "heads": (2,),
        "kv_heads": (2,),
        "mlp_ratio": (1,),
        "tokens": (512,),
        "limits": (4_000, 9_000),
        "seeds": 1,
        "repeated_every": 1,
    }
    return architecture.plan("tiny", SETUP, {"low": grid}, batch_size=4, rate_times_width=0.5)


@pytest.fixture(scope="session")
def mixture_plan():
    def grid(tokens):
        return {
            "models": ("16x1",),
            "tokens": (tokens,),
            "mixtures": 6,
            "own": 2,
            "rate_times_width": 0.16,
            "seeds": 2,
            "repeated_every": 3,
        }

    natural = dict(zip(DOMAINS, (0.4, 0.3, 0.1, 0.1, 0.1), strict=True))
    levels = {"low": grid(512), "mid": grid(1024)}
    return data_mixture.plan("tiny", SETUP, levels, natural, head_dim=8, batch_size=4)


@pytest.fixture(scope="session")
def trainer():
    domains = {
        animal: {
            f"{animal}{i}": f"the {animal} {word} on the mat {i}\n" * 9
            for i, word in enumerate("sat ran lay ate sang slept hid fell".split() * 4)
        }
        for animal in DOMAINS
    }
    corpus = make_corpus("poems", version="1", description="", domains=domains)
    texts = [text for documents in domains.values() for text in documents.values()]
    tokenizer = train_tokenizer(texts, SETUP.vocab_size)
    rows = {
        split: {
            domain: pack(documents, tokenizer, SETUP.sequence_length)
            for domain, documents in corpus.split(split).items()
        }
        for split in ("train", "validation")
    }
    validation = {
        domain: Pipeline(packed, SETUP.validation_rows, seed=0).batch(0)
        for domain, packed in rows["validation"].items()
    }
    return LanguageModelTrainer(SETUP, corpus, tokenizer, rows["train"], validation)


@pytest.fixture(scope="session")
def mesh():
    return make_mesh(MeshShape(), jax.devices()[:1])
