"""The two kinds of vocabulary that published weights come with, behind one interface.

`BytePairs` is what the `tokenizers` library reads (tokenizer.json, or a GGUF file's fields),
`SentencePieces` what SentencePiece does (tokenizer.model, as of Llama 2). Both encode a text as the
tokens that it is within another: a space that the published tokenizer puts before every text is
not put there, since turns are made of several texts. It is the `start` of a whole one.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import sentencepiece
import tokenizers

from autollm_jax.errors import UserError, one_line
from autollm_jax.files import read_json, write_atomic

ADDED = "added_tokens_decoder"
TOKENIZER, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"


class Vocabulary(Protocol):
    """Map texts to ids and back.

    Attributes:
      size: one more than the largest id.
      serialised: what it is read from.
      start: what a whole text begins with beside its own characters.
      settings: what tokenizer_config.json says of it.
    """

    size: int
    serialised: bytes
    start: str
    settings: dict

    def encode(self, text: str, control: bool) -> list[int]:
        """Encode a text; `control` says whether a control token's spelling is that token."""

    def decode(self, ids: Iterable[int], control: bool) -> str:
        """Decode ids; `control` says whether control ids give their spelling, or nothing."""

    def is_control(self, id: int) -> bool:
        """Whether ordinary text never encodes to an id."""

    def save(self, folder: Path) -> None:
        """Write what it is read from."""


class BytePairs:
    """A vocabulary of the `tokenizers` library."""

    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}

    def __init__(self, tokenizer: tokenizers.Tokenizer, start: str = ""):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self.start = tokenizer, start
        added = tokenizer.get_added_tokens_decoder().items()
        self._control = {id for id, token in added if token.special}
        self.size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.serialised = tokenizer.to_str().encode()

    @classmethod
    def load(cls, path: Path) -> "BytePairs":
        """Read a tokenizer.json.

        Raises:
          UserError: it is damaged.
        """
        values = read_json(path)
        start = " " if _drop_prefix(values) else ""
        try:
            return cls(tokenizers.Tokenizer.from_str(json.dumps(values)), start)
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{path}: not a tokenizer: {one_line(error)}") from error

    def encode(self, text: str, control: bool) -> list[int]:
        self._tokenizer.encode_special_tokens = not control
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], control: bool) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=not control)

    def is_control(self, id: int) -> bool:
        return id in self._control

    def save(self, folder: Path) -> None:
        self._tokenizer.encode_special_tokens = False  # how the last text was encoded is no part
        write_atomic(folder / TOKENIZER, self._tokenizer.to_str(pretty=True))


def _drop_prefix(values: dict) -> bool:
    """Let a tokenizer.json put no space before a text, nor take one off; returns whether it did."""
    dropped = False
    for part in _steps(values.get("decoder"), "decoders"):
        if part.get("type") == "Strip":
            part["start"] = 0
        elif part.get("type") == "Metaspace":
            part["prepend_scheme"] = "never"
    for part in (
        *_steps(values.get("normalizer"), "normalizers"),
        *_steps(values.get("pre_tokenizer"), "pretokenizers"),
    ):
        for kind, field, none in _PREFIXES:
            if part.get("type") == kind and part.get(field, none) != none:
                part[field], dropped = none, True
    return dropped


# How a step of a tokenizer.json puts a space before a text: its type, its field, and the value with
# which it does not.
_PREFIXES = (
    ("Prepend", "prepend", ""),
    ("Metaspace", "prepend_scheme", "never"),
    ("ByteLevel", "add_prefix_space", False),
)


def _steps(part, inner: str) -> list[dict]:
    """List a step, or those that a sequence of them has in its field `inner`."""
    if not isinstance(part, dict):
        return []
    steps = part.get(inner)
    return [s for s in steps if isinstance(s, dict)] if isinstance(steps, list) else [part]


# ModelProto.normalizer_spec.add_dummy_prefix = false: a message appended to another overrides it
# (protobuf's encoding, "Last One Wins").
_NO_PREFIX = b"\x1a\x02\x18\x00"


class SentencePieces:
    """A SentencePiece model, and tokens that were added to it."""

    def __init__(self, model: bytes, added: Mapping[str, tuple[int, bool]]):
        """Take a serialised model.

        Args:
          model: as SentencePiece writes it.
          added: ids of further tokens, and whether they are control tokens.

        Raises:
          RuntimeError: not a SentencePiece model.
          ValueError: an added token has the id of another.
        """
        prefixing = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model + _NO_PREFIX)
        self.start = " " if prefixing.encode("a") == self._processor.encode(" a") else ""
        self._pieces = pieces = self._processor.vocab_size()
        names = {self._processor.id_to_piece(id): id for id in range(pieces)}
        self._control = {n: id for n, id in names.items() if self._processor.is_control(id)}
        self._text = {}
        for name, (id, control) in added.items():
            if names.get(name, id) != id or id < pieces and name not in names:
                raise ValueError(f"{name!r} is added as {id}, which is another token")
            (self._control if control else self._text)[name] = id
        self._spelling = {id: name for name, id in {**self._control, **self._text}.items()}
        self.size = max([pieces, *(id + 1 for id in self._spelling)])
        self.serialised = model + repr(sorted(added.items())).encode()
        self._model, self._added = model, added

    @classmethod
    def load(cls, path: Path, added: Mapping[str, tuple[int, bool]]) -> "SentencePieces":
        """Read a tokenizer.model.

        Raises:
          UserError: it is damaged, or does not go with the added tokens.
        """
        try:
            return cls(path.read_bytes(), added)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{path}: not a SentencePiece model: {one_line(error)}") from error

    @property
    def bos(self) -> str:
        return self._name(self._processor.bos_id())

    @property
    def eos(self) -> str:
        return self._name(self._processor.eos_id())

    def _name(self, id: int) -> str:
        return self._processor.id_to_piece(id) if id >= 0 else ""

    @property
    def settings(self) -> dict:
        added = {
            str(id): {"content": name, "special": control}
            for name, (id, control) in self._added.items()
        }
        return {"tokenizer_class": "LlamaTokenizer", ADDED: added}

    def encode(self, text: str, control: bool) -> list[int]:
        named = {**self._text, **self._control} if control else self._text
        if not named:
            return self._processor.encode(text)
        ids = []
        longest_first = sorted(map(re.escape, named), key=len, reverse=True)
        for part in re.split(f"({'|'.join(longest_first)})", text):
            ids += [named[part]] if part in named else self._processor.encode(part)
        return ids

    def decode(self, ids: Iterable[int], control: bool) -> str:
        text, run = [], []
        for id in ids:
            if id not in self._spelling:
                run += [id] if id < self._pieces else []  # a model may have more rows
                continue
            text.append(self._processor.decode(run))
            text += [self._spelling[id]] if control or not self.is_control(id) else []
            run = []
        return "".join([*text, self._processor.decode(run)])

    def is_control(self, id: int) -> bool:
        return self._control.get(self._spelling.get(id)) == id

    def save(self, folder: Path) -> None:
        write_atomic(folder / SENTENCEPIECE, self._model)
