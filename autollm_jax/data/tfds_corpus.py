"""Loads a text data set of tensorflow-datasets (TFDS) as a corpus, without TensorFlow."""

import os
from collections.abc import Iterator

from autollm_jax.data.corpus import VALIDATION_SHARE, Corpus, make_corpus
from autollm_jax.errors import UserError

_TEXT_NAMES = ("text", "content", "document")
_VALIDATION_SPLITS = ("validation", "valid", "test")


def load_tfds(name: str, *, max_bytes: int, data_dir: str | os.PathLike | None) -> Corpus:
    """Load `tfds:NAME[/CONFIG]` as one domain, named after the data set.

    Reads the first `max_bytes` of the training split, lazily; TFDS has shuffled the data set when
    it was prepared. Validation documents come from the data set's validation or test split. Without
    such a split they are training documents, chosen by hash.

    Args:
      name: The corpus' name, with the prefix "tfds:".
      max_bytes: Most bytes read of the training split.
      data_dir: Folder of prepared data sets; None is the default folder of TFDS.

    Returns:
      The corpus.

    Raises:
      UserError: The data set is unknown, cannot be prepared, lacks a training split or a text
        feature, or was prepared in a format that needs TensorFlow.
    """
    # Imported here: the import is slow, and no other corpus needs it.
    import tensorflow_datasets as tfds

    builder = _prepared_builder(tfds, name, data_dir)
    feature = _text_feature(tfds, name, builder.info.features)
    splits = builder.info.splits
    if "train" not in splits:
        raise UserError(f"{name}: has no split 'train'; it has {', '.join(splits) or 'none'}")
    train = _read(builder, name, "train", feature, max_bytes)
    held_out = next((split for split in _VALIDATION_SPLITS if split in splits), None)
    validation = None
    domain = builder.name
    if held_out is not None:
        texts = _read(builder, name, held_out, feature, int(max_bytes * VALIDATION_SHARE))
        validation = {domain: texts} if texts else None
    if not train:
        raise UserError(f"{name}: not one document within max_bytes={max_bytes}")
    return make_corpus(
        name,
        version=str(builder.info.version),
        description=f"tensorflow-datasets {builder.info.full_name}, feature {feature!r}",
        domains={domain: train},
        validation=validation,
    )


def _prepared_builder(tfds, name: str, data_dir):
    """Return the data set's builder; prepare the data set where it is not prepared yet."""
    short = name.removeprefix("tfds:")
    place = data_dir or "TFDS' own folder"
    how = (
        f"prepare it where it can be, with `tfds build {short} --file_format=array_record`, and "
        "set data.data_dir to its folder"
    )
    try:
        builder = tfds.builder(short, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"{name}: neither prepared under {place} nor one that tensorflow-datasets can prepare "
            f"here; {how}"
        ) from error
    except (ValueError, AssertionError) as error:
        raise UserError(f"{name}: not a name that TFDS accepts ({_line(error)})") from error
    if builder.is_prepared():
        return builder
    download = tfds.core.download
    try:
        builder = tfds.builder(short, data_dir=data_dir, try_gcs=False, file_format="array_record")
        builder.download_and_prepare()
    except (
        # Raised where the network, a folder, a package, a checksum or a permission is missing.
        OSError,
        ImportError,
        RuntimeError,
        ValueError,
        AssertionError,
        download.DownloadError,
        download.download_manager.NonMatchingChecksumError,
    ) as error:
        raise UserError(
            f"{name}: not prepared under {place}, and preparing failed ({_line(error)}); {how}"
        ) from error
    return builder


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _text_feature(tfds, name: str, features) -> str:
    """Find the feature that holds the text."""
    found = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
    if len(found) == 1:
        return found[0]
    for key in _TEXT_NAMES:
        if key in found:
            return key
    raise UserError(
        f"{name}: cannot tell which feature is the text; accepted is a single Text feature or one "
        f"named {', '.join(_TEXT_NAMES)}; it has {', '.join(sorted(features))}"
    )


def _read(builder, name: str, split: str, feature: str, max_bytes: int) -> dict[str, str]:
    """Read documents from the start of a split until they hold `max_bytes`."""
    texts, total = {}, 0
    for index, raw in enumerate(_raw(builder, name, split, feature)):
        if total + len(raw) > max_bytes:
            break
        total += len(raw)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if text:
            texts[f"{split}/{index:012d}"] = text
    return texts


def _raw(builder, name: str, split: str, feature: str) -> Iterator[bytes]:
    try:
        source = builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise UserError(
            f"{name}: {builder.data_path} is in a format that needs TensorFlow; prepare it with "
            "file_format=array_record"
        ) from error
    for index in range(len(source)):
        yield source[index][feature]
