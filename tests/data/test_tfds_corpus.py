"""Text data sets of tensorflow-datasets, built here with TFDS itself, offline."""

import sys
from types import SimpleNamespace

import pytest
import tensorflow_datasets as tfds

from autollm_jax.data.corpora import load_corpus
from autollm_jax.data.tfds_corpus import _read
from autollm_jax.errors import UserError

TEXT = tfds.features.Text()


def build(folder, name, features, splits, config=None):
    """Prepare a data set under `folder`; it is then found by its files alone."""

    def info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def generators(self, manager):
        return {
            split: iter((f"{i}", example) for i, example in enumerate(examples))
            for split, examples in splits.items()
        }

    members = {
        "VERSION": tfds.core.Version("1.2.3"),
        "BUILDER_CONFIGS": [tfds.core.BuilderConfig(name=config)] if config else [],
        "_info": info,
        "_split_generators": generators,
        "_generate_examples": lambda self: iter(()),
        "name": name,
        # TFDS looks for files beside the module; a script's module has none.
        "__module__": "__main__",
    }
    with tfds.core.registered.skip_registration():
        kind = type(name, (tfds.core.GeneratorBasedBuilder,), members)
    kind(config=config, data_dir=folder, file_format="array_record").download_and_prepare()


def documents(count, start=0):
    return [{"text": f"Document {i} says é.\n"} for i in range(start, start + count)]


def test_loads_a_prepared_data_set_with_its_own_validation_split(tmp_path):
    splits = {"train": documents(30), "validation": documents(3, start=100)}
    build(tmp_path, "tiny", {"text": TEXT}, splits, config="en")
    corpus = load_corpus("tfds:tiny/en", data_dir=tmp_path, max_bytes=10_000)
    assert corpus.domains == ("tiny",)
    assert corpus.version == "1.2.3"
    assert set(corpus.documents["tiny"]) == {row["text"] for row in splits["train"]}
    assert set(corpus.validation["tiny"]) == {row["text"] for row in splits["validation"]}
    assert "tensorflow" not in sys.modules


def test_splits_by_hash_without_a_validation_split(tmp_path):
    build(tmp_path, "plain", {"text": TEXT}, {"train": documents(100)})
    corpus = load_corpus("tfds:plain", data_dir=tmp_path)
    assert len(corpus.documents["plain"]) + len(corpus.validation["plain"]) == 100
    assert 1 <= len(corpus.validation["plain"]) <= 5


def test_cap_limits_what_is_read(tmp_path):
    build(tmp_path, "plain", {"text": TEXT}, {"train": documents(100)})
    sizes = load_corpus("tfds:plain", data_dir=tmp_path, max_bytes=500).sizes()["plain"]
    assert 400 < sum(sizes.values()) <= 500


def test_reading_stops_at_the_cap():
    class Endless:
        def __len__(self):
            return 1 << 40

        def __getitem__(self, index):
            assert index <= 10
            return {"text": b"0123456789"}

    builder = SimpleNamespace(as_data_source=lambda split: Endless())
    assert len(_read(builder, "tfds:endless", "train", "text", 100)) == 10


def test_text_is_the_feature_named_so_among_several(tmp_path):
    rows = [{"text": f"Text {i}", "url": f"address {i}"} for i in range(40)]
    build(tmp_path, "page", {"text": TEXT, "url": TEXT}, {"train": rows})
    corpus = load_corpus("tfds:page", data_dir=tmp_path)
    assert all(text.startswith("Text") for text in corpus.documents["page"])


def test_ambiguous_text_features_are_listed(tmp_path):
    rows = [{"question": "Why?", "answer": "So."}]
    build(tmp_path, "quiz", {"question": TEXT, "answer": TEXT}, {"train": rows})
    with pytest.raises(UserError, match="answer, question"):
        load_corpus("tfds:quiz", data_dir=tmp_path)


def test_unknown_data_set_is_one_line_that_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="tfds build no_such_set/en") as error:
        load_corpus("tfds:no_such_set/en", data_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_data_set_that_cannot_be_downloaded_says_what_to_do(tmp_path, monkeypatch):
    def offline(self, **_):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    with pytest.raises(UserError, match="no route to host.*tfds build lm1b") as error:
        load_corpus("tfds:lm1b", data_dir=tmp_path)
    assert "\n" not in str(error.value)
