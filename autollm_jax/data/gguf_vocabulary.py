"""Vocabularies inside GGUF files: tokens with merges (GPT-2's) or with scores (SentencePiece's)."""

from collections.abc import Mapping

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from autollm_jax.data.pretrained_tokenizer import PretrainedTokenizer
from autollm_jax.data.published_vocabularies import BytePairs, SentencePieces
from autollm_jax.errors import UserError, one_line

# GGUF's token types (llama.cpp, gguf-py/gguf/constants.py): control tokens, user-defined ones.
_CONTROL, _USER_DEFINED = 3, 4
# What a vocabulary of each kind has beside its tokens.
_EXTRA = {"gpt2": "tokenizer.ggml.merges", "llama": "tokenizer.ggml.scores"}
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
        kind = str(fields["tokenizer.ggml.model"])
        cut = str(fields.get("tokenizer.ggml.pre", "default"))
        tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
        template = fields["tokenizer.chat_template"]
        extra = fields[_EXTRA[kind]] if kind in _EXTRA else None
    except KeyError as error:
        raise UserError(f"{where}: metadata {error} is missing") from error
    if not _texts(tokens) or not isinstance(types, list) or len(types) != len(tokens):
        raise UserError(f"{where}: the vocabulary is no list of tokens, each with its type")
    if not isinstance(template, str):
        raise UserError(f"{where}: the chat template is no text")
    if kind == "llama":
        vocabulary = _sentence_pieces(tokens, extra, types, fields, where)
    elif kind == "gpt2" and cut in (*_GPT2, *_PATTERNS):
        vocabulary = _byte_pairs(tokens, extra, types, cut, where)
    else:
        known = ", ".join((*_GPT2, *_PATTERNS))
        raise UserError(
            f"{where}: vocabulary {kind!r}, {cut!r}; accepted are 'llama', and 'gpt2' with {known}"
        )
    names = {}
    for name, field in (("bos_token", "bos_token_id"), ("eos_token", "eos_token_id")):
        number = fields.get(f"tokenizer.ggml.{field}")
        if number is not None and number not in range(len(tokens)):
            raise UserError(
                f"{where}: {field} is {number!r}; the vocabulary has {len(tokens)} tokens"
            )
        names[name] = "" if number is None else tokens[number]
    return PretrainedTokenizer(vocabulary, template, names)


def _texts(values) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _byte_pairs(tokens, merges, types, cut: str, where: str) -> BytePairs:
    """Make a vocabulary of tokens and the merges that lead to them."""
    if not _texts(merges):
        raise UserError(f"{where}: the merges are no list of texts")
    try:
        ids = {token: number for number, token in enumerate(tokens)}
        # Llama 3's takes a word that is a token whole, also where no merges lead to it (llama.cpp).
        whole = cut == "llama-bpe"
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
    """Make a SentencePiece model; GGUF's token types are SentencePiece's own."""
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
