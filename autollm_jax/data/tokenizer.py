"""SentencePiece vocabularies: deterministic training, exact decoding, a cache by content."""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from autollm_jax.data.corpus import Corpus
from autollm_jax.errors import UserError
from autollm_jax.files import write_atomic

PAD, UNK, BOS, EOS = 0, 1, 2, 3
# Most characters of a training sentence: SentencePiece drops longer sentences.
_CHUNK = 4000
DEFAULT_SAMPLE_BYTES = 2_000_000
# SentencePiece writes a space as this character, so the character itself is encoded as bytes.
_SPACE_MARK = "\u2581"


class Tokenizer:
    """Map text to token ids and back, exactly.

    Attributes:
      vocab_size: Number of ids.
      pad_id, bos_id, eos_id: Control ids; `encode` never returns them.
      content_hash: SHA-256 of the model file.
      symbols: The user-defined symbols, each one id.
    """

    pad_id = PAD
    bos_id = BOS
    eos_id = EOS

    def __init__(self, model: bytes):
        """Read a serialised SentencePiece model that `train_tokenizer` wrote.

        Raises:
          RuntimeError: Not a SentencePiece model.
          ValueError: The model has no byte fallback, so `train_tokenizer` did not write it.
        """
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.model = model
        self.content_hash = hashlib.sha256(model).hexdigest()
        self.vocab_size = self._processor.vocab_size()
        self._bytes_of = [self._bytes(id) for id in range(self.vocab_size)]
        self._byte_id = {}
        for id in range(self.vocab_size):
            if self._processor.is_byte(id):
                self._byte_id[self._bytes_of[id][0]] = id
        if len(self._byte_id) != 256:
            raise ValueError("the model has no id for some bytes")
        # The order of ids is: four control ids, the symbols, 256 bytes, learned pieces.
        first_byte = self._byte_id[0]
        self.symbols = tuple(map(self._processor.id_to_piece, range(EOS + 1, first_byte)))
        longest_first = sorted(self.symbols, key=len, reverse=True)
        # A look-ahead also finds overlapping symbols.
        pattern = "|".join(map(re.escape, longest_first))
        self._inside_symbol = re.compile(f"(?={pattern})") if self.symbols else None

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Read a model file.

        Raises:
          UserError: The file is missing, or is not a SentencePiece model.
        """
        try:
            return cls(Path(path).read_bytes())
        except OSError as error:
            raise UserError(f"{path}: cannot read the tokenizer: {error.strerror}") from error
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path}: not a SentencePiece model with byte fallback") from error

    def encode(self, text: str, *, allow_symbols: bool = True) -> list[int]:
        """Encode a text.

        Args:
          text: Any text; a lone surrogate, which is not valid Unicode, is encoded as U+FFFD.
          allow_symbols: Whether the spelling of a symbol becomes the symbol's id. False encodes it
            as ordinary text: text from outside must not be able to write symbols.

        Returns:
          Token ids, without bos and eos.
        """
        if not text.isascii():
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if _SPACE_MARK in text:
            ids = []
            for number, part in enumerate(text.split(_SPACE_MARK)):
                if number:
                    ids += [self._byte_id[byte] for byte in _SPACE_MARK.encode()]
                ids += self._encode(part, allow_symbols)
            return ids
        return self._encode(text, allow_symbols)

    def _encode(self, text: str, allow_symbols: bool) -> list[int]:
        if allow_symbols or self._inside_symbol is None:
            return self._processor.encode(text)
        # Cut after the first character of every occurrence, so that no part holds a whole symbol.
        cuts = [match.start() + 1 for match in self._inside_symbol.finditer(text)]
        if not cuts:
            return self._processor.encode(text)
        ids = []
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            ids += self._processor.encode(text[start:end])
        return ids

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts as ordinary text (no symbols), each between bos and eos."""
        return [[BOS, *self.encode(text, allow_symbols=False), EOS] for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Decode token ids; control ids are dropped, invalid UTF-8 becomes U+FFFD.

        `decode(encode(text)) == text` for every text without lone surrogates.
        """
        table = self._bytes_of
        return b"".join([table[id] for id in ids]).decode("utf-8", "replace")

    def id_of(self, symbol: str) -> int:
        """Return the id of a symbol or piece.

        Raises:
          KeyError: The vocabulary has no such piece.
        """
        id = self._processor.piece_to_id(symbol)
        if id == UNK:
            raise KeyError(symbol)
        return id

    def _bytes(self, id: int) -> bytes:
        piece = self._processor.id_to_piece(id)
        if self._processor.is_byte(id):
            return bytes([int(piece[3:-1], 16)])
        if self._processor.is_control(id) or self._processor.is_unknown(id):
            return b""
        return piece.replace(_SPACE_MARK, " ").encode("utf-8")


def reserved_ids(symbols: Sequence[str] = ()) -> int:
    """Count a vocabulary's ids for control tokens, symbols and single bytes."""
    return EOS + 1 + len(symbols) + 256


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    path: str | os.PathLike | None = None,
    *,
    user_defined_symbols: Sequence[str] = (),
    split_digits: bool = True,
    model_type: str = "bpe",
    character_coverage: float = 0.9995,
    sample_bytes: int = DEFAULT_SAMPLE_BYTES,
) -> Tokenizer:
    """Train a vocabulary; the same texts and settings give the same model file.

    Every byte has an id, and text is not normalised, so every text round-trips. Uses SentencePiece
    (arXiv 1808.06226) with one thread.

    Args:
      texts: Training texts.
      vocab_size: Number of ids: 4 control ids, the symbols, 256 bytes and the learned pieces.
      path: Path of the model file, written atomically; None writes no file.
      user_defined_symbols: Strings of at least two characters; each gets one id.
      split_digits: Whether each digit is a piece of its own.
      model_type: "bpe" or "unigram".
      character_coverage: Share of the characters that get an id of their own; the others are
        encoded as bytes. A small vocabulary for texts with many characters needs a lower share.
      sample_bytes: Bytes of the training sample, about, spread evenly over the texts.

    Returns:
      The tokenizer.

    Raises:
      UserError: The vocabulary size does not suit the texts, or a symbol is too short.
    """
    for symbol in user_defined_symbols:
        if len(symbol) < 2 or _SPACE_MARK in symbol:
            raise UserError(f"tokenizer symbol {symbol!r}: must have at least two characters")
    taken = reserved_ids(user_defined_symbols)
    if vocab_size <= taken:
        raise UserError(
            f"tokenizer vocab_size={vocab_size} is too small: {taken} ids are taken by control "
            "ids, symbols and bytes"
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_sample(texts, sample_bytes)),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            user_defined_symbols=list(user_defined_symbols),
            split_digits=split_digits,
            character_coverage=character_coverage,
            **_FIXED_SETTINGS,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-200:]
        if most := re.search(r"value <= (\d+)", reason):
            reason = (
                f"the texts have pieces for {most[1]} ids; accepted are no more ids, or more texts"
            )
        raise UserError(f"tokenizer vocab_size={vocab_size}: training failed: {reason}") from error
    if path is not None:
        write_atomic(path, model.getvalue())
    return Tokenizer(model.getvalue())


def cached_tokenizer(
    source: Corpus | Iterable[str],
    vocab_size: int,
    cache_dir: str | os.PathLike,
    *,
    user_defined_symbols: Sequence[str] = (),
    split_digits: bool = True,
    model_type: str = "bpe",
    character_coverage: float = 0.9995,
    sample_bytes: int = DEFAULT_SAMPLE_BYTES,
) -> Tokenizer:
    """Load the vocabulary for these texts and settings from the cache, or train and cache it.

    Args:
      source: Texts, or a corpus (its training documents are used).
      vocab_size: As in `train_tokenizer`, like the other arguments.
      cache_dir: Folder of model files, each named by a hash of settings and content.

    Returns:
      The tokenizer.

    Raises:
      UserError: As in `train_tokenizer`, or the cached file is damaged.
    """
    settings = {
        "vocab_size": vocab_size,
        "user_defined_symbols": list(user_defined_symbols),
        "split_digits": split_digits,
        "model_type": model_type,
        "character_coverage": character_coverage,
        "sample_bytes": sample_bytes,
    }
    if isinstance(source, Corpus):
        texts = [text for domain in source.domains for text in source.documents[domain]]
        content = source.content_hash
    else:
        texts = list(source)
        total = hashlib.sha256()
        for text in texts:
            total.update(hashlib.sha256(text.encode("utf-8")).digest())
        content = total.hexdigest()
    key = json.dumps([settings, _FIXED_SETTINGS, _CHUNK, sentencepiece.__version__, content])
    name = f"tokenizer-{vocab_size}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.model"
    path = Path(cache_dir, name)
    if path.exists():
        return Tokenizer.load(path)
    return train_tokenizer(texts, path=path, **settings)


# The fixed settings of training. One thread and no shuffled subsample, so that the model depends on
# the texts and the arguments alone.
_FIXED_SETTINGS = {
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "pad_id": PAD,
    "unk_id": UNK,
    "bos_id": BOS,
    "eos_id": EOS,
    "num_threads": 1,
    "input_sentence_size": 0,
    "shuffle_input_sentence": False,
    "max_sentence_length": 4 * _CHUNK + 1,
    "minloglevel": 2,
}


def _sample(texts: Iterable[str], sample_bytes: int) -> list[str]:
    """Cut texts into chunks at line ends, and keep evenly spaced chunks."""
    chunks = [chunk for text in texts for chunk in _chunks(text)]
    total = sum(len(chunk.encode("utf-8")) for chunk in chunks)
    if total <= sample_bytes:
        return chunks
    kept = max(1, len(chunks) * sample_bytes // total)
    return [chunks[number * len(chunks) // kept] for number in range(kept)]


def _chunks(text: str) -> Iterable[str]:
    start = 0
    while start < len(text):
        end = start + _CHUNK
        if end < len(text):
            line_end = text.rfind("\n", start, end) + 1
            end = line_end if line_end > start else end
        yield text[start:end]
        start = end
