"""The input pipeline: documents -> packed rows -> batches, each a pure function of the step.

1. `tokenize` turns documents into one stream per domain; `packed_corpus` caches it on disk.
2. `pack` cuts a stream into rows of T + 1 tokens that overlap by one. A row gives T inputs and T
   next-token targets, and every token of the stream after the first is a target once.
3. `Pipeline` orders the rows (grain mixes, batches and prefetches them) and gathers batches. Batch
   `step` is a pure function of (rows, seed, step), so a run resumes from its step count alone.

Letters: N rows, T tokens per row, B rows per batch on this process, K steps.
"""

import dataclasses
import functools
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import grain
import jax
import numpy as np

from autollm_jax.data.corpus import Corpus
from autollm_jax.data.tokenizer import Tokenizer
from autollm_jax.errors import UserError
from autollm_jax.files import write_atomic

# Increase this number when the stream's format changes, so that old caches are not read.
_STREAM_FORMAT = 1
# The length of an endless sequence. grain multiplies lengths, so this is far below 2^63.
_ENDLESS = 1 << 60


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch, or K of them with a leading axis.

    Attributes:
      tokens_BT: int32 inputs.
      targets_BT: int32, the token after each input.
      loss_mask_BT: bool, False where the target is padding or starts another document.
      segments_BT: int32, number of the token's document in its row, from 1; 0 is padding.
      positions_BT: int32, position since the document's start in the row.
    """

    tokens_BT: np.ndarray | jax.Array
    targets_BT: np.ndarray | jax.Array
    loss_mask_BT: np.ndarray | jax.Array
    segments_BT: np.ndarray | jax.Array
    positions_BT: np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """M tokens of D concatenated documents.

    Attributes:
      tokens_M: uint16 (int32 for a vocabulary above 65536); each document is bos, its text, eos.
      starts_D: int64, index of each document's first token.
    """

    tokens_M: np.ndarray
    starts_D: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """Rows of T + 1 tokens; the last token of a row is the first of the next.

    Attributes:
      length: T.
      tokens_NT: [N, T + 1], padded with pad_id in the last row.
      segments_NT: [N, T + 1] uint16, number of the token's document in its row, from 1; 0 is
        padding.
      positions_NT: [N, T + 1] uint16, position since the document's start in the row.
    """

    length: int
    tokens_NT: np.ndarray
    segments_NT: np.ndarray
    positions_NT: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens_NT)


def tokenize(documents: Sequence[str], tokenizer: Tokenizer) -> Stream:
    """Encode documents into one stream; the spelling of a control symbol counts as plain text."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
    encoded = [np.array(ids, dtype) for ids in tokenizer.encode_documents(documents)]
    lengths = np.array([len(ids) for ids in encoded], np.int64)
    starts_D = np.cumsum(lengths) - lengths
    return Stream(np.concatenate(encoded) if encoded else np.zeros(0, dtype), starts_D)


def pack(documents: Sequence[str] | Stream, tokenizer: Tokenizer, length: int) -> Packed:
    """Concatenate documents and cut them into rows.

    Args:
      documents: Texts, or the stream that `tokenize` made from them.
      tokenizer: The vocabulary.
      length: T, the number of inputs per row, and of targets.

    Returns:
      ceil((tokens - 1) / T) rows; 0 rows without documents.

    Raises:
      UserError: The length is not between 1 and 65534.
    """
    if not 1 <= length < (1 << 16) - 1:
        raise UserError(f"rows of {length} tokens: accepted is 1 to 65534")
    stream = documents if isinstance(documents, Stream) else tokenize(documents, tokenizer)
    total = len(stream.tokens_M)
    rows = max(0, -(-(total - 1) // length))
    # M positions of the padded stream; a padded position belongs to no document.
    place_M = np.arange(rows * length + 1)
    tokens_M = np.full(len(place_M), tokenizer.pad_id, stream.tokens_M.dtype)
    tokens_M[:total] = stream.tokens_M[: len(place_M)]
    document_M = np.searchsorted(stream.starts_D, place_M, side="right")
    index_NT = np.arange(rows)[:, None] * length + np.arange(length + 1)[None, :]
    if not rows:
        empty = np.zeros((0, length + 1), np.uint16)
        return Packed(length, tokens_M[index_NT], empty, empty)
    document_NT = document_M[index_NT]
    segments_NT = document_NT - document_NT[:, :1] + 1
    segments_NT[index_NT >= total] = 0
    start_NT = np.maximum(stream.starts_D[document_NT - 1], index_NT[:, :1])
    positions_NT = np.where(segments_NT > 0, index_NT - start_NT, 0)
    return Packed(
        length, tokens_M[index_NT], segments_NT.astype(np.uint16), positions_NT.astype(np.uint16)
    )


def packed_corpus(
    corpus: Corpus,
    tokenizer: Tokenizer,
    length: int,
    *,
    split: str = "train",
    cache_dir: str | os.PathLike | None = None,
) -> dict[str, Packed]:
    """Pack each domain of a corpus by itself: a row holds text of one domain and one split.

    Args:
      corpus: The corpus.
      tokenizer: The vocabulary.
      length: T.
      split: "train" or "validation".
      cache_dir: Folder for cached token streams, in a file named by the hashes of the corpus and
        the tokenizer. A cached stream serves every length. None caches nothing.

    Returns:
      Rows by domain.
    """
    documents = corpus.split(split)
    if cache_dir is None:
        streams = {domain: tokenize(texts, tokenizer) for domain, texts in documents.items()}
    else:
        key = f"{_STREAM_FORMAT} {corpus.content_hash} {tokenizer.content_hash} {split}"
        name = f"tokens-{split}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
        streams = _cached_streams(Path(cache_dir, name), documents, tokenizer)
    return {domain: pack(stream, tokenizer, length) for domain, stream in streams.items()}


def _cached_streams(
    path: Path, documents: Mapping[str, Sequence[str]], tokenizer: Tokenizer
) -> dict[str, Stream]:
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {
                    domain: Stream(arrays[f"{domain}.tokens"], arrays[f"{domain}.starts"])
                    for domain in documents
                }
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: damaged token cache; delete it and run again") from error
    streams = {domain: tokenize(texts, tokenizer) for domain, texts in documents.items()}
    arrays = {}
    for domain, stream in streams.items():
        arrays[f"{domain}.tokens"] = stream.tokens_M
        arrays[f"{domain}.starts"] = stream.starts_D
    file = io.BytesIO()
    np.savez(file, **arrays)
    write_atomic(path, file.getvalue())
    return streams


class Pipeline:
    """Batches of packed rows, each a pure function of (seed, step).

    Attributes:
      rows: Number of rows in all domains.
      batch_size: Rows per batch on this process.
      steps_per_epoch: Full global batches in one pass over the rows (without weights).
      dataset: grain.MapDataset whose element `step` is that step's Batch on this process.
    """

    def __init__(
        self,
        packed: Packed | Mapping[str, Packed],
        batch_size: int,
        seed: int,
        *,
        weights: Mapping[str, float] | None = None,
        shuffle: bool = True,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Make the endless order of rows: a new permutation per epoch; a batch may span epochs.

        Args:
          packed: Rows, or rows by domain, all of one length.
          batch_size: Rows per global batch, over all processes.
          seed: Any non-negative integer.
          weights: Share of each domain in the drawn rows, by name; a domain without a name here
            gets 0. None draws every row once per epoch, so domains have their natural shares.
          shuffle: False keeps the order of the rows, for evaluation.
          process_index: Number of this process.
          process_count: Number of processes; each gets an equal slice of every global batch.

        Raises:
          UserError: There are no rows, the processes do not divide the batch, a weight names no
            domain, or a weight is not accepted.
        """
        if isinstance(packed, Packed):
            packed = {"all": packed}
        if batch_size < 1 or batch_size % process_count:
            raise UserError(
                f"batch_size={batch_size}: must be a positive multiple of {process_count}, "
                "the number of processes"
            )
        parts = list(packed.values())
        if len({part.length for part in parts}) > 1:
            raise ValueError("all domains must be packed at one length")
        self.length = parts[0].length
        self.rows = sum(len(part) for part in parts)
        if not self.rows:
            raise UserError("there is not one row to train on; the corpus is empty")
        self._tokens_NT = np.concatenate([part.tokens_NT for part in parts])
        self._segments_NT = np.concatenate([part.segments_NT for part in parts])
        self._positions_NT = np.concatenate([part.positions_NT for part in parts])
        self.batch_size = batch_size // process_count
        self.steps_per_epoch = self.rows // batch_size
        self._global_batch_size = batch_size
        first = process_index * self.batch_size
        self._local = slice(first, first + self.batch_size)
        # The elements are row numbers, so a tiny batch costs index arithmetic and one gather.
        self._order = _row_order(packed, seed, weights, shuffle)
        self.dataset = (
            grain.MapDataset.source(self._order)
            .batch(batch_size)
            .map(lambda rows_B: self._gather(np.asarray(rows_B)[self._local]))
        )

    def batch(self, step: int) -> Batch:
        """Return this process's slice of batch `step`, a Batch of [B, T] arrays."""
        return self.dataset[step]

    def batches(self, start: int, count: int) -> Batch:
        """Return batches `start` to `start + count - 1`, stacked: Batch of [K, B, T] arrays.

        Feeds a scan over steps faster than `batch` does, with the same values.
        """
        size = self._global_batch_size
        rows_I = self._rows_at(start * size, (start + count) * size)
        return self._gather(rows_I.reshape(count, size)[:, self._local])

    def _rows_at(self, start: int, stop: int) -> np.ndarray:
        """Return the row numbers at `start` to `stop - 1`; vectorised without a mixture."""
        if isinstance(self._order, _Epochs):
            return self._order.take(np.arange(start, stop))
        return np.fromiter(map(self._order.__getitem__, range(start, stop)), np.int64)

    def iterate(self, start: int = 0, *, prefetch: int = 8) -> Iterator[Batch]:
        """Yield batches from step `start` on, endlessly; a thread prefetches them.

        A run that consumed n batches resumes with `iterate(n)`: its checkpoint holds only n.
        """
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
        return iter(self.dataset[start:].to_iter_dataset(options))

    def _gather(self, rows: np.ndarray) -> Batch:
        tokens = self._tokens_NT[rows].astype(np.int32)
        segments = self._segments_NT[rows].astype(np.int32)
        positions = self._positions_NT[rows].astype(np.int32)
        here, after = segments[..., :-1], segments[..., 1:]
        return Batch(
            tokens_BT=tokens[..., :-1],
            targets_BT=tokens[..., 1:],
            loss_mask_BT=(here == after) & (after > 0),
            segments_BT=here,
            positions_BT=positions[..., :-1],
        )


class _Epochs:
    """A random-access source of row numbers for grain: endless, a new permutation per epoch.

    grain's own shuffle gives the same guarantee at about 10 us per row, too slow for the steps of a
    tiny model. The rows are in memory already, so a permutation of them fits too.
    """

    def __init__(self, first: int, count: int, seed: int, domain: int, shuffle: bool):
        self._first, self._count, self._shuffle = first, count, shuffle
        self._seed = (seed, domain)
        self._permutation = functools.lru_cache(maxsize=2)(self._make_permutation)

    def _make_permutation(self, epoch: int) -> np.ndarray:
        if not self._shuffle:
            return self._first + np.arange(self._count)
        return self._first + np.random.default_rng([*self._seed, epoch]).permutation(self._count)

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> int:
        epoch, place = divmod(int(index), self._count)
        return int(self._permutation(epoch)[place])

    def take(self, index_I: np.ndarray) -> np.ndarray:
        """Return the row numbers at the given indices, in one pass per epoch."""
        epoch_I, place_I = np.divmod(index_I, self._count)
        rows_I = np.empty(len(index_I), np.int64)
        for epoch in np.unique(epoch_I):
            here_I = epoch_I == epoch
            rows_I[here_I] = self._permutation(int(epoch))[place_I[here_I]]
        return rows_I


def _row_order(
    packed: Mapping[str, Packed], seed: int, weights: Mapping[str, float] | None, shuffle: bool
) -> "_Epochs | grain.MapDataset":
    """Return the endless sequence of row numbers."""
    if weights is None:
        return _Epochs(0, sum(map(len, packed.values())), seed, 0, shuffle)
    unknown = sorted(set(weights) - set(packed))
    if unknown:
        raise UserError(f"weights name {unknown[0]!r}; accepted: {', '.join(packed)}")
    parts, shares, first = [], [], 0
    for number, (domain, part) in enumerate(packed.items()):
        share = float(weights.get(domain, 0.0))
        if not (np.isfinite(share) and share >= 0) or (share and not len(part)):
            raise UserError(
                f"weights[{domain!r}]={share}: must be finite, not negative, and 0 for a "
                "domain without rows"
            )
        if share:
            epochs = _Epochs(first, len(part), seed, number, shuffle)
            parts.append(grain.MapDataset.source(epochs))
            shares.append(share)
        first += len(part)
    if not parts:
        raise UserError("weights: at least one weight must be above 0")
    total = sum(shares)
    return grain.MapDataset.mix(parts, weights=[share / total for share in shares])
