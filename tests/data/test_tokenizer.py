"""Vocabularies: exact, deterministic, cached, and safe against spelt-out symbols."""

import random

import pytest

from autollm_jax.data.corpus import make_corpus
from autollm_jax.data.tokenizer import Tokenizer, cached_tokenizer, train_tokenizer
from autollm_jax.errors import UserError

SYMBOLS = ("<think>", "</think>", "<exec>", "<<exec>>")
WORDS = "learning rate batch size loss 0123456789 model width depth tokens\n  {}:,".split(" ")


def make_texts(count=60, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=80)) + "\n" for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(make_texts(), 340, user_defined_symbols=SYMBOLS)


def random_texts(count):
    draw = random.Random(7)
    fragments = ["<think>", "</think>", "<s>", "<pad>", "<0x41>", "\u2581", " ", "  ", "\n", "\x00"]
    fragments += [
        "\r\n",
        "\t",
        "learning rate",
        "é",
        "漢",
        "😀",
        "e\u0301",
        "\ufeff",
        "\u00a0",
        "<",
    ]
    for _ in range(count):
        kind = draw.randrange(3)
        if kind == 0:
            yield "".join(draw.choices(fragments, k=draw.randrange(12)))
        elif kind == 1:
            yield draw.randbytes(draw.randrange(40)).decode("utf-8", "replace")
        else:
            points = [draw.randrange(0x110000) for _ in range(draw.randrange(20))]
            yield "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


@pytest.mark.parametrize("allow_symbols", [True, False])
def test_any_text_round_trips(tokenizer, allow_symbols):
    for text in random_texts(2000):
        ids = tokenizer.encode(text, allow_symbols=allow_symbols)
        assert tokenizer.decode(ids) == text


def test_no_text_encodes_to_pad_bos_or_eos(tokenizer):
    control = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}
    for text in random_texts(500):
        assert control.isdisjoint(tokenizer.encode(text))


def test_outside_text_cannot_spell_a_symbol(tokenizer):
    symbols = {tokenizer.id_of(symbol) for symbol in SYMBOLS}
    for text in ["<think>", "a<<exec>>b", "<</think></think>", "<" * 9 + "exec>>>", *SYMBOLS]:
        ids = tokenizer.encode(text, allow_symbols=False)
        assert symbols.isdisjoint(ids)
        assert not symbols.isdisjoint(tokenizer.encode(text))


def test_a_symbol_is_one_id(tokenizer):
    assert tokenizer.symbols == SYMBOLS
    for symbol in SYMBOLS:
        assert tokenizer.encode(symbol) == [tokenizer.id_of(symbol)]


def test_learned_pieces_shorten_text(tokenizer):
    text = make_texts(1, seed=5)[0]
    assert len(tokenizer.encode(text)) < 0.6 * len(text)


def test_digits_are_split(tokenizer):
    assert len(tokenizer.encode("0123456789")) == 10


def test_decoding_broken_bytes_never_raises(tokenizer):
    draw = random.Random(3)
    for _ in range(200):
        ids = [draw.randrange(tokenizer.vocab_size) for _ in range(30)]
        assert isinstance(tokenizer.decode(ids), str)


def test_a_lone_surrogate_becomes_a_replacement_character(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_unknown_symbol_has_no_id(tokenizer):
    with pytest.raises(KeyError):
        tokenizer.id_of("<nowhere>")


def test_training_twice_gives_the_same_file(tokenizer):
    again = train_tokenizer(make_texts(), 340, user_defined_symbols=SYMBOLS)
    assert again.content_hash == tokenizer.content_hash


def test_a_long_text_without_line_ends_is_learned_from():
    # SentencePiece itself would drop a line of this length and then have no text at all.
    tokenizer = train_tokenizer(["parameter " * 5000], 275)
    assert len(tokenizer.encode("parameter")) <= 2


def test_sampling_reaches_the_last_texts():
    texts = ["alpha beta\n" * 400] * 50 + ["omicron\n" * 600] * 50
    tokenizer = train_tokenizer(texts, 290, sample_bytes=40_000)
    assert len(tokenizer.encode("omicron")) <= 2


def test_cache_returns_the_same_vocabulary_without_training(tmp_path, monkeypatch):
    first = cached_tokenizer(make_texts(), 310, tmp_path)
    monkeypatch.setattr("autollm_jax.data.tokenizer.train_tokenizer", None)
    assert cached_tokenizer(make_texts(), 310, tmp_path).content_hash == first.content_hash


def test_cache_tells_texts_and_settings_apart(tmp_path):
    cached_tokenizer(make_texts(), 310, tmp_path)
    cached_tokenizer(make_texts(seed=1), 310, tmp_path)
    cached_tokenizer(make_texts(), 310, tmp_path, user_defined_symbols=["<a>"])
    assert len(list(tmp_path.iterdir())) == 3


def test_a_corpus_trains_on_its_training_documents(tmp_path):
    texts = {str(i): text for i, text in enumerate(make_texts())}
    corpus = make_corpus(
        "c", version="1", description="", domains={"d": texts}, validation={"d": {"v": "zzzz" * 99}}
    )
    tokenizer = cached_tokenizer(corpus, 310, tmp_path)
    assert len(tokenizer.encode("zzzz")) == 4


@pytest.mark.parametrize("size", [100, 260, 50_000])
def test_unsuitable_size_is_an_explained_error(size):
    with pytest.raises(UserError, match=f"vocab_size={size}"):
        train_tokenizer(make_texts(), size)


def test_a_symbol_of_one_character_is_refused():
    with pytest.raises(UserError, match="at least two"):
        train_tokenizer(make_texts(), 340, user_defined_symbols=["|"])


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_damaged_file_is_an_explained_error(tmp_path, tokenizer, content):
    path = tmp_path / "broken.model"
    path.write_bytes(tokenizer.model[:2000] if content is None else content)
    with pytest.raises(UserError, match="broken.model"):
        Tokenizer.load(path)


def test_a_vocabulary_that_the_texts_cannot_fill_is_refused_in_plain_words():
    with pytest.raises(UserError, match=r"vocab_size=5000: .*have pieces for (\d+) ids; accepted"):
        train_tokenizer(["few words"] * 3, 5000)
