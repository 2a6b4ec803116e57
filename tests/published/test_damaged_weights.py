"""Damaged and harmful weights are refused in one line, at once, and no code in them runs."""

import json
import random
import struct
import sys
import time

import gguf
import numpy as np
import pytest

from autollm_jax.errors import UserError
from autollm_jax.published import gguf_header, pretrained
from tests.published import small_vocabularies
from tests.published.test_pretrained import config_json, tensors, write, write_gguf

FORMATS = ["safetensors", "gguf"]
SECONDS = 30  # far more than opening such a small file takes, far less than an absurd count would


@pytest.fixture(params=FORMATS)
def published(request, tmp_path):
    """What is opened, and the file of it that gets damaged."""
    if request.param == "gguf":
        path = write_gguf(tmp_path / "m.gguf", "LlamaForCausalLM", tensors(), "Q8_0")
        return path, path
    folder = write(tmp_path / "in", tensors(), config_json())
    return folder, folder / "model.safetensors"


def opened(path) -> bool:
    """Open weights: whether that went well; `UserError` is the only way in which it may not."""
    began = time.perf_counter()
    try:
        pretrained.open_source(path)
        return True
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return False
    finally:
        assert time.perf_counter() - began < SECONDS


def header_bytes(path) -> int:
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        return 8 + struct.unpack("<Q", data[:8])[0]
    _, placed = gguf_header.read_header(data)
    return min(tensor.start for tensor in placed.values())


def test_a_file_that_ends_too_early_is_refused_wherever_it_does(published):
    path, file = published
    whole = file.read_bytes()
    assert opened(path)
    header = header_bytes(file)
    for kept in (*range(0, header, 97), header, *range(header, len(whole) - 32, 1999)):
        file.write_bytes(whole[:kept])
        assert not opened(path), kept


def test_a_header_with_other_bytes_is_read_or_refused(published):
    path, file = published
    whole, header = file.read_bytes(), header_bytes(file)
    absurd = [2**64 - 1, 2**63, 2**62, 2**32, 10**9, 0]
    rng, refused = random.Random(0), 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 8])):
            place = rng.randrange(header - 8)
            if rng.random() < 0.7:
                data[place] ^= rng.randrange(1, 256)
            else:
                data[place : place + 8] = struct.pack("<Q", rng.choice(absurd))
        file.write_bytes(data)
        refused += not opened(path)
    assert refused > 150


ODD = [None, 0, -1, 10**18, 1e308, float("inf"), float("nan"), "x", [], [1], {}, {"a": 1}, True]


@pytest.mark.parametrize("name", [*config_json(), "rope_scaling", "rope_parameters"])
def test_odd_values_in_the_config_are_read_or_refused(tmp_path, name):
    folder = write(tmp_path / "in", tensors(), config_json())
    for value in ODD:
        (folder / "config.json").write_text(json.dumps(config_json() | {name: value}))
        opened(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"factor": 0},
        {"original_max_position_embeddings": 0},
        {"low_freq_factor": 4.0},
        {"high_freq_factor": None},
        {"factor": float("nan")},
    ],
)
def test_stretching_by_numbers_that_cannot_be_is_refused(tmp_path, changes):
    rope = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    folder = write(tmp_path / "in", tensors(), config_json(rope_scaling=rope))
    assert opened(folder)
    (folder / "config.json").write_text(json.dumps(config_json(rope_scaling=rope | changes)))
    assert not opened(folder)


def test_a_config_nested_too_deeply_is_refused(tmp_path):
    folder = write(tmp_path / "in", tensors(), config_json())
    (folder / "config.json").write_text("[" * 100_000)
    assert not opened(folder)


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def gguf_bytes(fields=(), described=(), data=b"", tensor_count=None, field_count=None) -> bytes:
    """Spell a GGUF file out; counts may lie."""
    counts = (
        len(described) if tensor_count is None else tensor_count,
        len(fields) if field_count is None else field_count,
    )
    head = b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join(fields) + b"".join(described)
    return head + bytes(-len(head) % 32) + data


def described(name: str, shape=(8,), kind=0, offset=0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ARRAY, TEXT, UINT8, UINT32 = 9, 8, 0, 4
Q8_0 = int(gguf.GGMLQuantizationType.Q8_0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (gguf_bytes(tensor_count=2**60), "too short"),
        (gguf_bytes(field_count=2**60), "too short"),
        (gguf_bytes([struct.pack("<Q", 2**63) + b"name"]), "ends"),
        (gguf_bytes([string("a") + struct.pack("<IIQ", ARRAY, UINT8, 2**60)]), "too short"),
        (gguf_bytes([string("a") + struct.pack("<IIQ", ARRAY, TEXT, 2**40)]), "too short"),
        (gguf_bytes([string("a") + struct.pack("<IIQ", ARRAY, ARRAY, 1) * 9]), "array of arrays"),
        (gguf_bytes([string("a") + struct.pack("<I", 77)]), "77"),
        (gguf_bytes([string("a") + struct.pack("<II", UINT32, 7)] * 2), "twice"),
        (gguf_bytes([], [described("x")] * 2, bytes(64)), "twice"),
        (gguf_bytes([], [described("x"), described("y", offset=16)], bytes(64)), "overlap"),
        (gguf_bytes([], [described("x", (2**40, 2**40))], bytes(64)), "ends at byte"),
        (gguf_bytes([], [described("x", (0, 8))], bytes(64)), "shape"),
        (gguf_bytes([], [described("x", (1,) * 5)], bytes(64)), "5 axes"),
        (gguf_bytes([], [described("x", (30,), Q8_0)], bytes(64)), "blocks of 32"),
        (gguf_bytes([], [described("x", kind=99)], bytes(64)), "99"),
        (gguf_bytes([], [described("x", offset=2**63)], bytes(64)), "ends at byte"),
        (
            gguf_bytes([string("general.alignment") + struct.pack("<II", UINT32, 0)]),
            "general.alignment",
        ),
        (b"GGUF" + struct.pack(">I", 3) + bytes(64), "version"),
    ],
)
def test_a_gguf_header_that_lies_is_refused(tmp_path, data, words):
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(UserError, match=words):
        pretrained.open_source(path)


def safetensors_bytes(header: str, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + data


def entry(name="a", shape="[4]", offsets="[0,16]") -> str:
    return f'"{name}":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}'


@pytest.mark.parametrize(
    "header",
    [
        "{" + entry() + "," + entry(offsets="[16,32]") + "}",  # one name twice
        "{" + entry() + "," + entry("b", offsets="[8,24]") + "}",  # an overlap
        "{" + entry() + "," + entry("b", offsets="[32,48]") + "}",  # a hole
        "{" + entry(shape=f"[{2**62},4]") + "}",
        "{" + entry(offsets=f"[0,{2**62}]") + "}",
        "{" + entry(offsets="[16,0]") + "}",
        "{" + entry(shape="[-1]") + "}",
        "[" * 50_000,
        "{}",
    ],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, header):
    folder = write(tmp_path / "in", tensors(), config_json())
    (folder / "model.safetensors").write_bytes(safetensors_bytes(header, bytes(32)))
    assert not opened(folder)


@pytest.mark.parametrize("file", ["..", "../in/model.safetensors", "/etc/passwd", "", "x.bin"])
def test_an_index_names_files_of_its_folder_only(tmp_path, file):
    folder = write(tmp_path / "in", tensors(), config_json())
    index = {"weight_map": dict.fromkeys(tensors(), file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="does not name files of this folder"):
        pretrained.open_source(folder)


def test_a_link_out_of_the_folder_is_refused_but_for_the_hubs_cache(tmp_path):
    cache = tmp_path / "models--x" / "snapshots" / "main"
    cache.parent.mkdir(parents=True)
    folder = write(cache, tensors(), config_json())
    file, blob = folder / "model.safetensors", folder.parents[1] / "blobs" / "0123"
    blob.parent.mkdir()
    file.rename(blob)
    file.symlink_to(blob)
    assert opened(folder)
    elsewhere = write(tmp_path / "in", tensors(), config_json()) / "model.safetensors"
    elsewhere.unlink()
    elsewhere.symlink_to(blob)
    with pytest.raises(UserError, match="a link out of its folder"):
        pretrained.open_source(elsewhere.parent)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_a_pickled_checkpoint_is_not_opened(tmp_path, name):
    folder = write(tmp_path / "in", tensors(), config_json())
    (folder / "model.safetensors").rename(folder / name)
    for path in (folder, folder / name):
        with pytest.raises(UserError, match="pickled.*convert it to safetensors"):
            pretrained.open_source(path)


def test_code_beside_the_weights_is_not_imported(tmp_path):
    marker = tmp_path / "executed"
    auto_map = {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
    folder = write(tmp_path / "in", tensors(), config_json(auto_map=auto_map))
    for name in ("modeling_own.py", "__init__.py", "tokenization_own.py", "conftest.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w')\n")
    small_vocabularies.sentencepiece_folder(
        folder, auto_map={"AutoTokenizer": ["tokenization_own.Tokenizer", None]}
    )
    (folder / "config.json").write_text(json.dumps(config_json(auto_map=auto_map, vocab_size=340)))
    weights = tensors() | {"model.embed_tokens.weight": np.ones((340, 32), np.float32)}
    write(folder, weights, json.loads((folder / "config.json").read_text()))
    pretrained.load_tokenizer(folder).encode("text")
    assert opened(folder) and pretrained.find(str(folder)) == folder
    assert not marker.exists() and "modeling_own" not in sys.modules


def test_of_a_package_with_weights_nothing_is_imported(tmp_path, monkeypatch):
    package = tmp_path / "weights_of_somebody"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    path = write_gguf(package / "m.gguf", "LlamaForCausalLM", tensors(), "F16")
    monkeypatch.syspath_prepend(tmp_path)
    assert pretrained.find("weights_of_somebody") == path and opened(path)


def test_tensors_that_say_nothing_of_their_own_are_passed_over(tmp_path):
    weights = tensors()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    assert opened(write(tmp_path / "in", weights, config_json()))
    weights["lm_head.weight"] = 2 * weights["lm_head.weight"]
    folder = write(tmp_path / "in", weights, config_json())
    with pytest.raises(UserError, match="tie_word_embeddings"):
        pretrained.open_source(folder)


def test_a_vocabulary_that_does_not_fit_the_model_is_refused(tmp_path):
    folder = write(tmp_path / "in", tensors(), config_json())  # 96 rows
    small_vocabularies.sentencepiece_folder(folder)
    with pytest.raises(UserError, match="340 tokens does not fit a model of 96"):
        pretrained.load_tokenizer(folder)


def test_gguf_settings_that_are_not_computed_are_refused(tmp_path):
    for add, words in (
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), "yarn"),
        (lambda w: w.add_rope_dimension_count(8), "a part of each head"),
        (lambda w: w.add_rope_freq_base(-1.0), "rope.freq_base"),
    ):
        path = write_gguf(tmp_path / "m.gguf", "LlamaForCausalLM", tensors(), "F16", add=add)
        with pytest.raises(UserError, match=words):
            pretrained.open_source(path)


@pytest.mark.parametrize("whole", [True, False])
def test_the_folder_of_an_adapter_is_named(tmp_path, whole):
    folder = write(tmp_path / "in", tensors(), config_json())
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "a/base"}')
    if not whole:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="a LoRA adapter .* of a/base, not a whole model; merge"):
        pretrained.open_source(folder)


def test_a_folder_without_a_config_says_so(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json, so no safetensors folder of a model$"):
        pretrained.open_source(tmp_path)
    path = write_gguf(tmp_path / "m.gguf", "LlamaForCausalLM", tensors(), "F16")
    with pytest.raises(UserError, match=f"name one of its GGUF files, as {path}"):
        pretrained.open_source(tmp_path)


def test_a_path_may_begin_with_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write_gguf(tmp_path / "m.gguf", "LlamaForCausalLM", tensors(), "F16")
    assert pretrained.find("~/m.gguf") == path
    for absent in ("~/none.gguf", "~nobody-is-called-so/m.gguf"):
        with pytest.raises(UserError, match="no safetensors folder"):
            pretrained.find(absent)
