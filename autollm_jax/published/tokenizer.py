"""The tokenizer of a published vocabulary and its chat template.

A template is rendered once, around placeholders; the pieces between the placeholders are encoded to
the ids that open, join and close turns. Each turn's text is then encoded by itself and never again,
so a policy reads the same ids in a rollout as in training. Text is encoded as ordinary text: it
cannot produce control ids.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from autollm_jax.errors import UserError
from autollm_jax.files import read_json, read_text, write_atomic, write_json_atomic
from autollm_jax.published.chat_template import renderer, split
from autollm_jax.published.vocabularies import (
    ADDED,
    SENTENCEPIECE,
    TOKENIZER,
    BytePairs,
    SentencePieces,
    Vocabulary,
)

TOKENIZER_CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
# Vocabulary files of a published folder; only the first four are read here.
FILES = (
    *(TOKENIZER, SENTENCEPIECE, TOKENIZER_CONFIG, TEMPLATE),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
)
_ENVIRONMENT, _AGENT, _REPLY = "\x02environment\x03", "\x02agent\x03", "\x02reply\x03"


@dataclasses.dataclass(frozen=True)
class _Frame:
    """The ids that a template puts around a text.

    Attributes:
      before, after: ids before and after the text.
      lead: spaces right before the text; they become a part of the text's first token.
    """

    before: list[int]
    lead: str
    after: list[int]


class PretrainedTokenizer:
    """A published vocabulary with its chat template.

    Attributes:
      vocab_size: one more than the largest id; a model may have more rows.
      opening: frame of a conversation's first text.
      joint: frame of a later text of the environment, after an agent's turn.
      stop_id: id that ends an agent's turn.
      content_hash: SHA-256 of vocabulary and template.
    """

    def __init__(self, vocabulary: Vocabulary, template: str, names: Mapping[str, str]):
        """Frame the vocabulary's texts by a chat template.

        Args:
          vocabulary: maps texts to ids.
          template: Jinja source, as in `chat_template`.
          names: control tokens that templates refer to: bos_token, eos_token.

        Raises:
          UserError: the template cannot be rendered, does not repeat its messages, or has no
            control token where an agent's turn ends.
        """
        self._vocabulary, self._template, self._names = vocabulary, template, dict(names)
        self.vocab_size = vocabulary.size
        self.content_hash = hashlib.sha256(vocabulary.serialised + template.encode()).hexdigest()
        first = [{"role": "user", "content": _ENVIRONMENT}]
        later = [
            *first,
            {"role": "assistant", "content": _AGENT},
            {"role": "user", "content": _REPLY},
        ]
        render = renderer(template, names)
        before, after = split(render(first), _ENVIRONMENT)
        self.opening = self._frame(before, after)
        if not any(map(vocabulary.is_control, self.opening.before[:1])):
            self.opening = self._frame(vocabulary.start + before, after)
        frame = self._frame(*split(split(render(later), _AGENT)[1], _REPLY))
        stops = (place for place, id in enumerate(frame.before) if vocabulary.is_control(id))
        place = next(stops, None)
        if place is None or self.decode(frame.before[:place]).strip():
            raise UserError(
                "chat template: no control token follows an agent's turn, so nothing ends it"
            )
        self.stop_id = frame.before[place]
        self.joint = dataclasses.replace(frame, before=frame.before[place + 1 :])

    def _frame(self, before: str, after: str) -> _Frame:
        bare, encode = before.rstrip(" "), self._vocabulary.encode
        return _Frame(encode(bare, control=True), before[len(bare) :], encode(after, control=True))

    def encode(self, text: str) -> list[int]:
        """Encode ordinary text; the spelling of a control token in it is text too."""
        return self._vocabulary.encode(text, control=False)

    def decode(self, ids: Iterable[int], control: bool = False) -> str:
        """Decode ids; control ids become nothing, or with `control` their spelling."""
        return self._vocabulary.decode(ids, control)

    def save(self, folder: Path) -> None:
        """Write the files that `load_folder` reads."""
        self._vocabulary.save(folder)
        write_atomic(folder / TEMPLATE, self._template)
        write_json_atomic(folder / TOKENIZER_CONFIG, {**self._vocabulary.settings, **self._names})

    def encode_opening(self, text: str) -> list[int]:
        """Encode the environment's first turn, up to the place of the agent's turn."""
        return self._framed(self.opening, text)

    def encode_reply(self, text: str) -> list[int]:
        """Encode a later turn of the environment, from the id after the agent's stop id on."""
        return self._framed(self.joint, text)

    def _framed(self, frame: _Frame, text: str) -> list[int]:
        return [*frame.before, *self.encode(frame.lead + text), *frame.after]


def load_folder(folder: Path) -> PretrainedTokenizer:
    """Read tokenizer.json, or else SentencePiece's tokenizer.model, and the chat template.

    Raises:
      UserError: a file is missing or damaged, or there is no chat template.
    """
    settings_path = folder / TOKENIZER_CONFIG
    settings = read_json(settings_path) if settings_path.exists() else {}
    names = {name: _name(settings.get(name)) for name in ("bos_token", "eos_token")}
    if (folder / TOKENIZER).exists():
        vocabulary = BytePairs.load(folder / TOKENIZER)
    elif (folder / SENTENCEPIECE).exists():
        vocabulary = SentencePieces.load(folder / SENTENCEPIECE, _added(settings, settings_path))
        names = {"bos_token": vocabulary.bos, "eos_token": vocabulary.eos} | {
            name: value for name, value in names.items() if value
        }
    else:
        raise UserError(f"{folder / TOKENIZER}: missing, and {SENTENCEPIECE} too")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    if (folder / TEMPLATE).exists():
        template = read_text(folder / TEMPLATE)
    if not isinstance(template, str):
        raise UserError(
            f"{folder}: no chat template; accepted are {TEMPLATE}, or chat_template "
            f"in {TOKENIZER_CONFIG}"
        )
    return PretrainedTokenizer(vocabulary, template, names)


def _added(settings: Mapping, where: Path) -> dict[str, tuple[int, bool]]:
    """Read the tokens that were added to a SentencePiece model: id and whether it is control."""
    try:
        return {
            str(token["content"]): (int(id), bool(token.get("special")))
            for id, token in settings.get(ADDED, {}).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: {ADDED} is not a mapping of ids to tokens") from error


def _name(token) -> str:
    """Read a token's spelling from a string or from a mapping with `content`; "" if it has none."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")
