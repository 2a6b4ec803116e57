"""SentencePiece vocabularies give the ids of their own library, for whole texts and for parts."""

import json

import pytest
import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from autollm_jax.errors import UserError
from autollm_jax.published import gguf_vocabulary
from autollm_jax.published.tokenizer import load_folder
from autollm_jax.published.vocabularies import BytePairs, SentencePieces
from tests.published import small_vocabularies as small

TEXTS = [
    "",
    " ",
    "the learning rate",
    "  two  spaces \n\n",
    "12.5e-3",
    "é 日本 🎉",
    "</s><s>[INST]",
]
SIZE = 340
START, END = "<|im_start|>", "<|im_end|>"
ADDED = {
    str(SIZE + 3): {"content": START, "special": True},
    str(SIZE): {"content": END, "special": True},
    str(SIZE + 1): {"content": "<think>", "special": False},
}


@pytest.fixture(params=["folder", "written", "gguf"])
def tokenizer(request, tmp_path):
    if request.param == "gguf":
        return gguf_vocabulary.from_gguf(gguf_fields(), "test")
    folder = small.sentencepiece_folder(tmp_path / "in")
    if request.param == "written":
        load_folder(folder).save(tmp_path / "out")
        folder = tmp_path / "out"
    return load_folder(folder)


def gguf_fields(**changes):
    """The same model as llama.cpp writes it."""
    model = sentencepiece.SentencePieceProcessor(model_proto=small.sentencepiece_model())
    ids = range(model.vocab_size())

    def kind(id):
        kinds = (model.is_unknown, model.is_control, model.is_byte)
        return next((n for n, test in zip((2, 3, 6), kinds, strict=True) if test(id)), 1)

    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(id) for id in ids],
        "tokenizer.ggml.scores": [model.get_score(id) for id in ids],
        "tokenizer.ggml.token_type": [kind(id) for id in ids],
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.chat_template": small.ZEPHYR,
    } | changes


@pytest.mark.parametrize("text", TEXTS)
def test_a_whole_text_is_the_ids_that_its_own_library_gives(tokenizer, text):
    library = sentencepiece.SentencePieceProcessor(model_proto=small.sentencepiece_model())
    start = " " if text else ""
    assert tokenizer.encode(start + text) == library.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_parts_of_a_turn_join_without_a_space(tokenizer, text):
    ids = [*tokenizer.encode("<think>"), *tokenizer.encode(text), *tokenizer.encode("rate")]
    assert tokenizer.decode(ids) == f"<think>{text}rate"


def test_turns_stand_as_the_template_has_them(tokenizer):
    ids = [*tokenizer.encode_opening("one </s>"), *tokenizer.encode("two"), tokenizer.stop_id]
    ids += tokenizer.encode_reply("three")
    rendered = (
        "<|user|>\none </s></s>\n<|assistant|>\ntwo</s>\n<|user|>\nthree</s>\n<|assistant|>\n"
    )
    assert tokenizer.decode(ids, control=True).removeprefix(" ") == rendered
    assert ids.count(tokenizer.stop_id) == 3  # the text's own "</s>" is text


def test_a_space_before_a_text_goes_into_its_first_token(tmp_path):
    folder = small.sentencepiece_folder(tmp_path, chat_template=small.LLAMA2)
    made = load_folder(folder)
    library = sentencepiece.SentencePieceProcessor(model_proto=small.sentencepiece_model())
    (the,) = library.encode("the")
    assert the in made.encode_opening("the") and the in made.encode_reply("the")
    assert made.decode([made.stop_id], control=True) == "</s>"


def test_tokens_added_to_a_model_are_control_tokens_or_text(tmp_path):
    folder = small.sentencepiece_folder(tmp_path, small.CHATML, added_tokens_decoder=ADDED)
    made = load_folder(folder)
    assert made.vocab_size == SIZE + 4
    assert made.stop_id == SIZE
    assert made.opening.before[0] == SIZE + 3
    assert made.encode("<think>") == [SIZE + 1]
    assert made.decode([SIZE + 1, SIZE, SIZE + 2, SIZE + 9]) == "<think>"
    assert SIZE not in made.encode(END) and made.decode(made.encode(END)) == END
    made.save(tmp_path / "out")
    again = load_folder(tmp_path / "out")
    assert again.encode_opening("a <think>") == made.encode_opening("a <think>")
    assert again.content_hash == made.content_hash


@pytest.mark.parametrize(
    "added", [{"7": {"content": "x"}}, {"x": {"content": "y"}}, [1], {"400": {}}, {"400": "x"}]
)
def test_added_tokens_that_cannot_be_are_refused(tmp_path, added):
    folder = small.sentencepiece_folder(tmp_path, added_tokens_decoder=added)
    with pytest.raises(UserError, match="tokenizer"):
        load_folder(folder)


@pytest.mark.parametrize("kept", [0, 1, 100, 3000])
def test_a_truncated_model_is_refused(tmp_path, kept):
    folder = small.sentencepiece_folder(tmp_path)
    (folder / "tokenizer.model").write_bytes(small.sentencepiece_model()[:kept])
    with pytest.raises(UserError, match="not a SentencePiece model"):
        load_folder(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer.ggml.scores": [0.0]},
        {"tokenizer.ggml.scores": ["x"] * SIZE},
        {"tokenizer.ggml.token_type": [99] * SIZE},
        {"tokenizer.ggml.tokens": [1] * SIZE},
        {"tokenizer.ggml.tokens": ["x"] * SIZE},
        {"tokenizer.ggml.eos_token_id": SIZE},
        {"tokenizer.chat_template": 3},
    ],
)
def test_gguf_fields_that_cannot_be_are_refused(changes):
    with pytest.raises(UserError, match="test: "):
        gguf_vocabulary.from_gguf(gguf_fields(**changes), "test")


def test_a_tokenizer_json_cuts_no_text_and_puts_no_space_before_it(tmp_path):
    pieces = ["<unk>", "▁", "a", "b", "▁a"]
    made = tokenizers.Tokenizer(
        models.BPE({piece: id for id, piece in enumerate(pieces)}, [("▁", "a")], unk_token="<unk>")
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    made.enable_truncation(3)
    made.enable_padding(length=9)
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    ours = BytePairs.load(path)
    assert ours.start == " "
    assert ours.encode("ab ab ab", control=False) == [2, 3, 4, 3, 4, 3]
    assert ours.decode([4, 3], control=False) == " ab"
    made.normalizer, made.pre_tokenizer = None, pre_tokenizers.Metaspace()
    made.save(str(path))
    assert (BytePairs.load(path).start, BytePairs.load(path).encode("ab", False)) == (" ", [2, 3])
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    made.save(str(path))
    assert BytePairs.load(path).start == ""


def test_the_size_is_that_of_the_largest_id(tmp_path):
    made = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 70}, []))
    made.add_special_tokens([AddedToken("<s>", special=True)])
    assert BytePairs(made).size == max(made.get_vocab().values()) + 1 > made.get_vocab_size()


def test_a_model_keeps_its_bytes(tmp_path):
    made = SentencePieces(small.sentencepiece_model(), {})
    made.save(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == small.sentencepiece_model()


def test_of_several_templates_the_default_is_taken(tmp_path):
    templates = [
        {"name": "tool_use", "template": "{{ 1 / 0 }}"},
        {"name": "default", "template": small.ZEPHYR},
    ]
    folder = small.sentencepiece_folder(tmp_path, templates)
    made = load_folder(folder)
    one = load_folder(small.sentencepiece_folder(tmp_path / "one"))
    assert made.encode_opening("x") == one.encode_opening("x")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = templates[:1]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="no chat template"):
        load_folder(folder)
