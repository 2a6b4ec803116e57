"""The two kinds of published vocabularies, behind one interface.

`BytePairs` uses the `tokenizers` library (tokenizer.json, or the fields of a GGUF file),
`SentencePieces` uses SentencePiece (tokenizer.model, as in Llama 2). Some published tokenizers put
a space before every text. Both classes leave that space out, since a turn is made of several texts;
it is their `start`, which belongs before a whole conversation.
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
    """Maps texts to ids and back.

    Attributes:
      size: one more than the largest id.
      serialised: bytes that identify the vocabulary.
      start: text that the published tokenizer puts before a whole conversation: "" or a space.
    """

    size: int
    serialised: bytes
    start: str

    @property
    def settings(self) -> dict:
        """Its fields of tokenizer_config.json."""
        ...

    def encode(self, text: str, control: bool) -> list[int]:
        """Encode a text; with `control`, the spelling of a control token is that token."""
        ...

    def decode(self, ids: Iterable[int], control: bool) -> str:
        """Decode ids; control ids become nothing, or with `control` their spelling."""
        ...

    def is_control(self, id: int) -> bool:
        """Return whether an id is a control token, which ordinary text never encodes to."""
        ...

    def save(self, folder: Path) -> None:
        """Write the vocabulary's file."""


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
          UserError: the file is damaged.
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
        self._tokenizer.encode_special_tokens = False  # state of the last call
        write_atomic(folder / TOKENIZER, self._tokenizer.to_str(pretty=True))


def _drop_prefix(values: dict) -> bool:
    """Change a tokenizer.json to add and remove no leading space; return whether it added one."""
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


# Steps of a tokenizer.json that can put a space before a text: type, field, and the field's value
# that puts none.
_PREFIXES = (
    ("Prepend", "prepend", ""),
    ("Metaspace", "prepend_scheme", "never"),
    ("ByteLevel", "add_prefix_space", False),
)


def _steps(part, inner: str) -> list[dict]:
    """List a step, or the steps of a sequence, which are in its field `inner`."""
    if not isinstance(part, dict):
        return []
    steps = part.get(inner)
    return [s for s in steps if isinstance(s, dict)] if isinstance(steps, list) else [part]


# ModelProto.normalizer_spec.add_dummy_prefix = false. Appended to a serialised model it overrides
# the model's own value (protobuf's encoding: the last one wins).
_NO_PREFIX = b"\x1a\x02\x18\x00"


class SentencePieces:
    """A SentencePiece model and the tokens that were added to it."""

    def __init__(self, model: bytes, added: Mapping[str, tuple[int, bool]]):
        """Read a serialised model.

        Args:
          model: the bytes of a tokenizer.model.
          added: id of each added token, and whether it is a control token.

        Raises:
          RuntimeError: the bytes are not a SentencePiece model.
          ValueError: an added token has the id of another token.
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
                raise ValueError(f"{name!r} is added as {id}, the id of another token")
            (self._control if control else self._text)[name] = id
        self._spelling = {id: name for name, id in {**self._control, **self._text}.items()}
        self.size = max([pieces, *(id + 1 for id in self._spelling)])
        self.serialised = model + repr(sorted(added.items())).encode()
        self._model, self._added = model, added

    @classmethod
    def load(cls, path: Path, added: Mapping[str, tuple[int, bool]]) -> "SentencePieces":
        """Read a tokenizer.model.

        Raises:
          UserError: the file is damaged, or an added token has the id of another token.
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
