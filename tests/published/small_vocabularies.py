"""Small vocabularies in the published formats, and chat templates, for tests."""

import functools
import io
import json
import random

import sentencepiece
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
# Llama 2's, without its system prompt.
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' "
    "+ message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
# Zephyr's and TinyLlama's: no control token before the first text.
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] "
    "+ eos_token + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
    "{% endif %}"
)
# ChatML whose agent's words stand in a `generation` block, as for training with transformers.
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL = ["<|im_start|>", "<|im_end|>"]
# The control tokens as added to a SentencePiece model of 340 pieces (tokenizer_config.json).
ADDED = {
    str(340 + number): {"content": name, "special": True} for number, name in enumerate(CONTROL)
}
_WORDS = "the learning rate of a batch model is 0.01 128 so it's lower loss tokens é 日本".split()


def _texts() -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(_WORDS, k=12)) + ".\n" for _ in range(300)]


@functools.cache
def sentencepiece_model() -> bytes:
    """Train a model as Llama 2's was made: byte fallback, digits apart, a space before a text."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_texts()),
        model_writer=written,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return written.getvalue()


def sentencepiece_folder(folder, chat_template=ZEPHYR, **settings):
    """Write a tokenizer.model and its settings."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
        "chat_template": chat_template,
    } | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def gguf_fields(cut: str) -> dict:
    """Train merges over bytes, as a GGUF file would hold them."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        _texts(), trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet)
    )
    trained = json.loads(made.to_str())["model"]
    tokens = [*sorted(trained["vocab"], key=trained["vocab"].get), *CONTROL]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": cut,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 3],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in trained["merges"]],
        "tokenizer.chat_template": CHATML,
    }
