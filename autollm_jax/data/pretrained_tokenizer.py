"""Vocabularies that come with published weights, and their chat templates.

Turns are encoded one by one and never again, so what a policy reads in a rollout is what it was
trained on. A template is rendered around placeholders, once; what stands between them are the ids
that open, join and close turns. Text is encoded as ordinary text: it cannot write control ids.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jinja2
import jinja2.sandbox

from autollm_jax.data.published_vocabularies import (
    ADDED,
    SENTENCEPIECE,
    TOKENIZER,
    BytePairs,
    SentencePieces,
    Vocabulary,
)
from autollm_jax.errors import UserError, one_line
from autollm_jax.files import read_json, read_text, write_atomic, write_json_atomic

TOKENIZER_CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
# What a published folder may hold of a vocabulary; only the first four are read here.
FILES = (
    *(TOKENIZER, SENTENCEPIECE, TOKENIZER_CONFIG, TEMPLATE),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
)
_ENVIRONMENT, _AGENT, _REPLY = "\x02environment\x03", "\x02agent\x03", "\x02reply\x03"


@dataclasses.dataclass(frozen=True)
class _Frame:
    """What a template puts around a text.

    Attributes:
      before, after: ids.
      lead: spaces right before the text, which its first word's token takes in.
    """

    before: list[int]
    lead: str
    after: list[int]


class PretrainedTokenizer:
    """A published vocabulary with its chat template.

    Attributes:
      vocab_size: one more than the largest id; a model may have more rows.
      opening, joint: what stands around a conversation's first text, and a later one's.
      stop_id: the id that ends an agent's turn.
      content_hash: SHA-256 of vocabulary and template.
    """

    def __init__(self, vocabulary: Vocabulary, template: str, names: Mapping[str, str]):
        """Take a vocabulary.

        Args:
          vocabulary: maps texts to ids.
          template: Jinja, as in `chat_template`.
          names: of the control tokens that templates refer to: bos_token, eos_token.

        Raises:
          UserError: the template cannot be rendered, leaves out what it is given, or has no control
            token where an agent's turn ends.
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
        render = _renderer(template, names)
        before, after = _split(render(first), _ENVIRONMENT)
        self.opening = self._frame(before, after)
        if not any(map(vocabulary.is_control, self.opening.before[:1])):
            self.opening = self._frame(vocabulary.start + before, after)
        frame = self._frame(*_split(_split(render(later), _AGENT)[1], _REPLY))
        stops = (place for place, id in enumerate(frame.before) if vocabulary.is_control(id))
        place = next(stops, None)
        if place is None or self.decode(frame.before[:place]).strip():
            raise UserError(
                "chat template: nothing ends an agent's turn: no control token is behind it"
            )
        self.stop_id = frame.before[place]
        self.joint = dataclasses.replace(frame, before=frame.before[place + 1 :])

    def _frame(self, before: str, after: str) -> _Frame:
        bare, encode = before.rstrip(" "), self._vocabulary.encode
        return _Frame(encode(bare, control=True), before[len(bare) :], encode(after, control=True))

    def encode(self, text: str) -> list[int]:
        """Encode ordinary text: a control token's spelling in it is text too."""
        return self._vocabulary.encode(text, control=False)

    def decode(self, ids: Iterable[int], control: bool = False) -> str:
        """Decode ids; control ids give nothing, or with `control` their spelling."""
        return self._vocabulary.decode(ids, control)

    def save(self, folder: Path) -> None:
        """Write what `load_folder` reads."""
        self._vocabulary.save(folder)
        write_atomic(folder / TEMPLATE, self._template)
        write_json_atomic(folder / TOKENIZER_CONFIG, {**self._vocabulary.settings, **self._names})

    def encode_opening(self, text: str) -> list[int]:
        """Encode the environment's first turn, up to where the agent's begins."""
        return self._framed(self.opening, text)

    def encode_reply(self, text: str) -> list[int]:
        """Encode a later turn of the environment, from behind the agent's stop id on."""
        return self._framed(self.joint, text)

    def _framed(self, frame: _Frame, text: str) -> list[int]:
        return [*frame.before, *self.encode(frame.lead + text), *frame.after]


def _split(text: str, placeholder: str) -> tuple[str, str]:
    before, found, after = text.partition(placeholder)
    if not found or placeholder in after:
        raise UserError("chat template: does not repeat each message once, as it is")
    return before, after


def _renderer(template: str, names: Mapping[str, str]) -> Callable[[list[dict]], str]:
    """Compile a template in Jinja's sandbox; nothing else of a checkpoint is executed."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def refuse(message):
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)

    def render(messages):
        try:
            return environment.from_string(template).render(
                messages=messages, add_generation_prompt=True, **names
            )
        except Exception as error:  # a template may divide by zero, or ask for too much memory
            raise UserError(f"chat template: {one_line(error)}") from error

    return render


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
        raise UserError(f"{folder / TOKENIZER}: missing, and so is {SENTENCEPIECE}")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    if (folder / TEMPLATE).exists():
        template = read_text(folder / TEMPLATE)
    if not isinstance(template, str):
        raise UserError(f"{folder}: no chat template; {TEMPLATE} or {TOKENIZER_CONFIG} names one")
    return PretrainedTokenizer(vocabulary, template, names)


def _added(settings: Mapping, where: Path) -> dict[str, tuple[int, bool]]:
    """Read which tokens were added to a SentencePiece model."""
    try:
        return {
            str(token["content"]): (int(id), bool(token.get("special")))
            for id, token in settings.get(ADDED, {}).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: {ADDED} is no mapping of ids to tokens") from error


def _name(token) -> str:
    """Read a token's name, which may be a string or a mapping with its `content`."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")
