"""Vocabularies that come with published weights, and their chat templates.

Turns are encoded one by one and never again, so what a policy reads in a rollout is what it was
trained on. A template is rendered around placeholders, once; what stands between them are the ids
that open, join and close turns. Text is encoded as ordinary text: it cannot write control ids.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jinja2
import jinja2.sandbox
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from autollm_jax.errors import UserError
from autollm_jax.files import read_json, write_atomic, write_json_atomic

TOKENIZER, TOKENIZER_CONFIG, TEMPLATE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
# What a published folder may hold of a vocabulary; only the first three are read here.
FILES = (
    *(TOKENIZER, TOKENIZER_CONFIG, TEMPLATE),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
)
_ENVIRONMENT, _AGENT, _REPLY = "\x02environment\x03", "\x02agent\x03", "\x02reply\x03"


class PretrainedTokenizer:
    """A published vocabulary with its chat template.

    Attributes:
      vocab_size: number of ids that texts encode to; a model may have more rows.
      opening, joint: ids before and after a conversation's first text, and a later one's.
      stop_id: the id that ends an agent's turn.
      content_hash: SHA-256 of vocabulary and template.
    """

    def __init__(self, vocabulary: tokenizers.Tokenizer, template: str, names: Mapping[str, str]):
        """Take a vocabulary.

        Args:
          vocabulary: of the `tokenizers` library.
          template: Jinja, as in `chat_template`.
          names: of the control tokens that templates refer to: bos_token, eos_token.

        Raises:
          UserError: the template cannot be rendered, or leaves out what it is given.
        """
        self._vocabulary, self._template, self._names = vocabulary, template, dict(names)
        self.vocab_size = vocabulary.get_vocab_size(with_added_tokens=True)
        digest = hashlib.sha256(vocabulary.to_str().encode() + template.encode())
        self.content_hash = digest.hexdigest()
        first = [{"role": "user", "content": _ENVIRONMENT}]
        later = [
            *first,
            {"role": "assistant", "content": _AGENT},
            {"role": "user", "content": _REPLY},
        ]
        render = _renderer(template, names)
        self.opening = self._around(render(first), _ENVIRONMENT)
        between, after = _split(_split(render(later), _AGENT)[1], _REPLY)
        closing = self._control(between)
        if not closing:
            raise UserError("chat template: nothing ends an assistant's turn")
        self.stop_id = closing[0]
        self.joint = (closing[1:], self._control(after))

    def encode(self, text: str) -> list[int]:
        """Encode ordinary text: a control token's spelling in it is text too."""
        self._vocabulary.encode_special_tokens = True
        return self._vocabulary.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids; control ids give nothing."""
        return self._vocabulary.decode(list(ids), skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Write what `load_folder` reads."""
        self._vocabulary.encode_special_tokens = False
        write_atomic(folder / TOKENIZER, self._vocabulary.to_str(pretty=True))
        write_atomic(folder / TEMPLATE, self._template)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self._names}
        write_json_atomic(folder / TOKENIZER_CONFIG, settings)

    def _control(self, text: str) -> list[int]:
        """Encode a part of a template, control tokens as themselves."""
        self._vocabulary.encode_special_tokens = False
        return self._vocabulary.encode(text, add_special_tokens=False).ids

    def _around(self, text: str, placeholder: str) -> tuple[list[int], list[int]]:
        before, after = _split(text, placeholder)
        return self._control(before), self._control(after)

    def encode_opening(self, text: str) -> list[int]:
        """Encode the environment's first turn, up to where the agent's begins."""
        before, after = self.opening
        return [*before, *self.encode(text), *after]

    def encode_reply(self, text: str) -> list[int]:
        """Encode a later turn of the environment, from behind the agent's stop id on."""
        before, after = self.joint
        return [*before, *self.encode(text), *after]


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
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise UserError(f"chat template: {' '.join(str(error).split())}") from error

    return render


def load_folder(folder: Path) -> PretrainedTokenizer:
    """Read tokenizer.json and the chat template beside it.

    Raises:
      UserError: a file is missing or damaged, or there is no chat template.
    """
    path = folder / TOKENIZER
    if not path.exists():
        raise UserError(f"{path}: missing")
    try:
        vocabulary = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path}: not a tokenizer: {error}") from error
    settings_path = folder / TOKENIZER_CONFIG
    settings = read_json(settings_path) if settings_path.exists() else {}
    template = settings.get("chat_template")
    if (folder / TEMPLATE).exists():
        template = (folder / TEMPLATE).read_text(encoding="utf-8")
    if not isinstance(template, str):
        raise UserError(f"{folder}: no chat template; {TEMPLATE} or {TOKENIZER_CONFIG} names one")
    names = {name: _name(settings.get(name)) for name in ("bos_token", "eos_token")}
    return PretrainedTokenizer(vocabulary, template, names)


def _name(token) -> str:
    """Read a token's name, which may be a string or a mapping with its `content`."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


# GGUF's token types (llama.cpp, gguf-py/gguf/constants.py): control tokens, user-defined ones.
_CONTROL, _USER_DEFINED = 3, 4
# How each kind of vocabulary cuts text before its merges (llama.cpp, src/llama-vocab.cpp): the
# digits apart, and then as GPT-2 does.
_DIGITS_APART = ("smollm",)
_GPT2 = ("gpt-2", "default", *_DIGITS_APART)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_PATTERNS = {"qwen2": _QWEN2, "llama-bpe": _LLAMA3}


def from_gguf(fields: Mapping, where: str) -> PretrainedTokenizer:
    """Make the vocabulary that a GGUF file holds.

    Args:
      fields: the file's metadata.
      where: its path, for messages.

    Raises:
      UserError: it holds none, or one of a kind that is not known.
    """
    try:
        kind, cut = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre", "default")
        tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
        merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
        template = fields["tokenizer.chat_template"]
    except KeyError as error:
        raise UserError(f"{where}: metadata {error} is missing") from error
    if kind != "gpt2" or cut not in (*_GPT2, *_PATTERNS):
        known = ", ".join((*_GPT2, *_PATTERNS))
        raise UserError(f"{where}: vocabulary {kind!r}, {cut!r}; accepted are 'gpt2' with {known}")
    try:
        ids = {token: number for number, token in enumerate(tokens)}
        # Llama 3's takes a word that is a token whole, also where no merges lead to it (llama.cpp).
        whole = cut == "llama-bpe"
        vocabulary = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=whole))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{where}: not a vocabulary: {error}") from error
    vocabulary.pre_tokenizer = pre_tokenizers.Sequence(_cuts(cut))
    vocabulary.decoder = decoders.ByteLevel()
    named = list(zip(tokens, types, strict=True))
    special = [AddedToken(t, special=True, normalized=False) for t, n in named if n == _CONTROL]
    vocabulary.add_special_tokens(special)
    vocabulary.add_tokens([AddedToken(t, normalized=False) for t, n in named if n == _USER_DEFINED])
    names = {
        name: tokens[number] if number is not None else ""
        for name, number in (
            ("bos_token", fields.get("tokenizer.ggml.bos_token_id")),
            ("eos_token", fields.get("tokenizer.ggml.eos_token_id")),
        )
    }
    return PretrainedTokenizer(vocabulary, template, names)


def _cuts(cut: str) -> list:
    if cut in _PATTERNS:
        regex = tokenizers.Regex(_PATTERNS[cut])
        return [
            pre_tokenizers.Split(regex, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    digits = [pre_tokenizers.Digits(individual_digits=True)] if cut in _DIGITS_APART else []
    return [*digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
