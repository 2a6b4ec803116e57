"""Reads the vocabulary of a GGUF file: tokens with merges (GPT-2) or scores (SentencePiece)."""

import re
from collections.abc import Mapping

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from autollm_jax.errors import UserError, one_line
from autollm_jax.published.fields import check_known, reading
from autollm_jax.published.tokenizer import PretrainedTokenizer
from autollm_jax.published.vocabularies import BytePairs, SentencePieces

# GGUF's token types (llama.cpp, gguf-py/gguf/constants.py): control tokens, user-defined ones.
_CONTROL, _USER_DEFINED = 3, 4
# The field that a vocabulary of each kind has beside its tokens.
_EXTRA = {"gpt2": "tokenizer.ggml.merges", "llama": "tokenizer.ggml.scores"}
# Further fields that are read, or that change no ids here: chat templates decide which control
# tokens stand where, and spaces before a text are SentencePiece's alone.
_KNOWN = {
    *("tokenizer.chat_template", "tokenizer.chat_templates", "tokenizer.huggingface.json"),
    *(
        f"tokenizer.ggml.{name}"
        for name in (
            *("model", "pre", "tokens", "token_type", "merges", "scores", "add_space_prefix"),
            *("add_bos_token", "add_eos_token", "add_sep_token"),
        )
    ),
}
_HARMLESS = re.compile(r"tokenizer\.(ggml\.\w+_token_ids?|chat_template\..*)")
_ONLY = {"tokenizer.ggml.remove_extra_whitespaces": (False,)}
# How a GPT-2 vocabulary cuts text into words before its merges (llama.cpp, src/llama-vocab.cpp):
# by GPT-2's rule, by it after every digit was cut off, or by a pattern. The cut that llama.cpp
# calls "default" stands for an unknown one.
_DIGITS_APART = ("smollm",)
_GPT2 = ("gpt-2", *_DIGITS_APART)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
_PATTERNS = {"qwen2": _QWEN2, **dict.fromkeys(_LLAMA3_NAMES, _LLAMA3)}


def from_gguf(fields: Mapping, where: str) -> PretrainedTokenizer:
    """Make the tokenizer of a GGUF file.

    Args:
      fields: the file's metadata.
      where: the file's path, for messages.

    Raises:
      UserError: a field is missing, impossible, or of a kind that is not known here.
    """
    kind, cut = _kind_and_cut(fields, where)
    try:
        tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
        extra = fields[_EXTRA[kind]]
    except KeyError as error:
        raise UserError(f"{where}: field {error} is missing") from error
    template = fields.get("tokenizer.chat_template")
    if template is None:
        raise UserError(
            f"{where}: no chat template (field 'tokenizer.chat_template'); take the file of an "
            "instruction-tuned model"
        )
    with reading(where):
        vocabulary_fields = {n: v for n, v in fields.items() if n.startswith("tokenizer.")}
        harmless = set(filter(_HARMLESS.fullmatch, vocabulary_fields))
        check_known(vocabulary_fields, _KNOWN | harmless, _ONLY)
    if not _texts(tokens) or not isinstance(types, list) or len(types) != len(tokens):
        raise UserError(f"{where}: the vocabulary is not a list of tokens with a type each")
    if not isinstance(template, str):
        raise UserError(f"{where}: the chat template is not a text")
    if kind == "llama":
        vocabulary = _sentence_pieces(tokens, extra, types, fields, where)
    else:
        vocabulary = _byte_pairs(tokens, extra, types, cut, where)
    names = {}
    for name, field in (("bos_token", "bos_token_id"), ("eos_token", "eos_token_id")):
        number = fields.get(f"tokenizer.ggml.{field}")
        if number is not None and number not in range(len(tokens)):
            raise UserError(
                f"{where}: {field} is {number!r}; the vocabulary has {len(tokens)} tokens"
            )
        names[name] = "" if number is None else tokens[number]
    return PretrainedTokenizer(vocabulary, template, names)


def _kind_and_cut(fields: Mapping, where: str) -> tuple[str, str]:
    """Read the kind of a vocabulary, and how it cuts text into words ("" for SentencePiece).

    Raises:
      UserError: the file does not say it, or names one that is not known here.
    """
    kind, cut = (fields.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if kind == "llama":
        return "llama", ""
    cuts = (*_GPT2, *_PATTERNS)
    for name, value, accepted in (("model", kind, tuple(_EXTRA)), ("pre", cut, cuts)):
        if value in (None, "default"):
            told = "missing" if value is None else "'default', which names no rule"
            raise UserError(
                f"{where}: it does not say how its text is cut into tokens: tokenizer.ggml.{name} "
                f"is {told}; take a newer conversion of the model, or its safetensors folder"
            )
        if value not in accepted:
            raise UserError(
                f"{where}: tokenizer.ggml.{name} is {value!r}; accepted are {', '.join(accepted)}"
            )
    return str(kind), str(cut)


def _texts(values) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _byte_pairs(tokens, merges, types, cut: str, where: str) -> BytePairs:
    """Make a vocabulary of tokens and merges."""
    if not _texts(merges):
        raise UserError(f"{where}: the merges are not a list of texts")
    try:
        ids = {token: number for number, token in enumerate(tokens)}
        # Llama 3 keeps a word that is a token, even where no merges lead to it (llama.cpp).
        whole = cut in _LLAMA3_NAMES
        pairs = [tuple(merge.split(" ")) for merge in merges]
        vocabulary = tokenizers.Tokenizer(models.BPE(ids, pairs, ignore_merges=whole))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{where}: not a vocabulary: {one_line(error)}") from error
    vocabulary.pre_tokenizer = pre_tokenizers.Sequence(_cuts(cut))
    vocabulary.decoder = decoders.ByteLevel()
    named = list(zip(tokens, types, strict=True))
    special = [AddedToken(t, special=True, normalized=False) for t, n in named if n == _CONTROL]
    vocabulary.add_special_tokens(special)
    vocabulary.add_tokens([AddedToken(t, normalized=False) for t, n in named if n == _USER_DEFINED])
    return BytePairs(vocabulary)


def _sentence_pieces(tokens, scores, types, fields: Mapping, where: str) -> SentencePieces:
    """Make a SentencePiece model; GGUF uses SentencePiece's token types."""
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise UserError(f"{where}: not every token of the vocabulary has a score")
    model = sentencepiece_model_pb2.ModelProto()
    try:
        for token, score, kind in zip(tokens, scores, types, strict=True):
            model.pieces.add(piece=token, score=score, type=kind)
        model.trainer_spec.model_type = model.trainer_spec.BPE
        model.trainer_spec.byte_fallback = True
        model.normalizer_spec.name = "identity"
        prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
        model.normalizer_spec.add_dummy_prefix = bool(prefix)
        model.normalizer_spec.remove_extra_whitespaces = False
        return SentencePieces(model.SerializeToString(), {})
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{where}: not a vocabulary: {one_line(error)}") from error


def _cuts(cut: str) -> list:
    if cut in _PATTERNS:
        regex = tokenizers.Regex(_PATTERNS[cut])
        return [
            pre_tokenizers.Split(regex, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    digits = [pre_tokenizers.Digits(individual_digits=True)] if cut in _DIGITS_APART else []
    return [*digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
