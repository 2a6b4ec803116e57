"""Published weights: all families and formats are read, written back bit by bit, or refused."""

import dataclasses
import functools
import json
import pathlib
import struct

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from autollm_jax.errors import UserError
from autollm_jax.models import attention
from autollm_jax.published import families, pattern, pretrained
from autollm_jax.published.config_json import shape_from_json
from autollm_jax.sharding.mesh import MeshShape, make_mesh

SHAPES = {"V": 96, "D": 32, "H": 4, "K": 2, "A": 16, "F": 48}
LAYERS = 2
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def config_json(architecture="LlamaForCausalLM", tied=True, **changes):
    return {
        "architectures": [architecture],
        "hidden_size": SHAPES["D"],
        "num_hidden_layers": LAYERS,
        "num_attention_heads": SHAPES["H"],
        "num_key_value_heads": SHAPES["K"],
        "head_dim": SHAPES["A"],
        "intermediate_size": SHAPES["F"],
        "vocab_size": SHAPES["V"],
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        **changes,
    }


def tensors(architecture="LlamaForCausalLM", tied=True, dtype="float32", seed=0):
    """Make random weights under the names of the family's published files."""
    family = families.family_named(architecture, "architecture", "test")
    random, made = np.random.default_rng(seed), {}
    for leaf in family.leaves:
        if leaf.path == ("unembedding",) and tied:
            continue
        shape = pattern.stored_shape(leaf.pattern, SHAPES)
        for layer in range(LAYERS if leaf.layered else 1):
            values = random.normal(0.0, 0.2, shape) + (len(shape) == 1)
            made[leaf.name.format(layer=layer)] = values.astype(DTYPES[dtype])
    return made


def write(folder, values, config, files=1):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if files == 1:
        save_file(values, folder / "model.safetensors")
        return folder
    weights = {}
    for number, names in enumerate(np.array_split(sorted(values), files)):
        file = f"model-{number + 1:05}-of-{files:05}.safetensors"
        save_file({str(name): values[name] for name in names}, folder / file)
        weights |= {str(name): file for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    return folder


@pytest.fixture
def one():
    return make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("architecture", "tied"), [("LlamaForCausalLM", True), ("Qwen3ForCausalLM", False)]
)
def test_a_round_trip_gives_the_same_bits(tmp_path, one, architecture, tied, dtype, files):
    values = tensors(architecture, tied, dtype)
    origin = write(tmp_path / "in", values, config_json(architecture, tied), files)
    config, params = pretrained.load(origin, one)
    shard_bytes = 2**30 if files == 1 else 20_000
    pretrained.export(config, params, tmp_path / "out", origin, dtype, shard_bytes)
    written = sorted((tmp_path / "out").glob("*.safetensors"))
    assert (len(written) == 1) == (files == 1)
    again = {name: array for path in written for name, array in load_file(path).items()}
    assert again.keys() == values.keys()
    for name, array in values.items():
        assert again[name].dtype == array.dtype and again[name].tobytes() == array.tobytes(), name
    assert pretrained.open_source(tmp_path / "out").config == config


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_loses_nothing_is_a_directorys_own_type(tmp_path, dtype):
    values = tensors("LlamaForCausalLM", dtype=dtype)
    unused = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    folder = write(tmp_path / "in", values | unused, config_json())
    assert pretrained.lossless(folder) == dtype


def test_what_loses_nothing_of_several_types_is_float32(tmp_path):
    values = tensors(dtype="bfloat16") | {"model.norm.weight": np.ones(32, np.float16)}
    assert pretrained.lossless(write(tmp_path / "in", values, config_json())) == "float32"


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_1"])
def test_what_loses_nothing_of_a_gguf_file_holds_what_is_read_of_it(tmp_path, one, kind):
    path = write_gguf(tmp_path / "m.gguf", "LlamaForCausalLM", tensors(), kind)
    config, params = pretrained.load(path, one)
    pretrained.export(config, params, tmp_path / "out", path, pretrained.lossless(path))
    _, found = pretrained.load(tmp_path / "out", one)
    jax.tree.map(np.testing.assert_array_equal, found, params)


SHARD_BYTES = {1: 2**30, 2: 60_000, 3: 40_000}  # for so many files


@pytest.mark.parametrize(("before", "after"), [(2, 1), (3, 2), (1, 2)])
def test_an_export_into_a_used_folder_replaces_what_is_there(tmp_path, one, before, after):
    origin, folder = write(tmp_path / "in", tensors(), config_json()), tmp_path / "out"
    config, params = pretrained.load(origin, one)
    for files, factor in ((before, 2.0), (after, 3.0)):
        written = jax.tree.map(functools.partial(jnp.multiply, factor), params)
        pretrained.export(config, written, folder, origin, "float32", SHARD_BYTES[files])
        assert len(list(folder.glob("*.safetensors"))) == files
    _, found = pretrained.load(folder, one)
    jax.tree.map(np.testing.assert_array_equal, found, written)


def test_an_export_that_is_killed_in_a_used_folder_leaves_no_mixture(tmp_path, one, monkeypatch):
    origin, folder = write(tmp_path / "in", tensors(), config_json()), tmp_path / "out"
    config, params = pretrained.load(origin, one)
    pretrained.export(config, params, folder, origin, "float32", SHARD_BYTES[2])
    original, calls = pathlib.Path.rename, []

    def killed_at_the_second(path, target):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        pretrained.export(config, params, folder, origin, "float32", SHARD_BYTES[2])
    with pytest.raises(UserError, match="model.safetensors: missing"):
        pretrained.load(folder, one)


def test_heads_are_the_rows_that_the_file_gives_them(tmp_path, one):
    values = tensors()
    _, params = pretrained.load(write(tmp_path / "in", values, config_json()), one)
    stored = values["model.layers.1.self_attn.q_proj.weight"]
    head = stored[2 * SHAPES["A"] : 3 * SHAPES["A"]]  # [A, D]
    np.testing.assert_array_equal(params["layers"]["query"][1, :, 2], head.T)
    output = values["model.layers.0.self_attn.o_proj.weight"][:, SHAPES["A"] : 2 * SHAPES["A"]]
    np.testing.assert_array_equal(params["layers"]["output"][0, 1], output.T)


def test_a_sharded_load_is_the_same_and_reads_only_its_blocks(tmp_path, one, monkeypatch):
    folder = write(tmp_path / "in", tensors("Qwen3ForCausalLM"), config_json("Qwen3ForCausalLM"))
    _, whole = pretrained.load(folder, one)
    read = []
    original = pretrained.SafetensorsFiles.read

    def counted(self, name, slices):
        block = original(self, name, slices)
        read.append((name, block.size / np.prod(self.shapes[name])))
        return block

    monkeypatch.setattr(pretrained.SafetensorsFiles, "read", counted)
    mesh = make_mesh(MeshShape(1, 4, 2))
    _, params = pretrained.load(folder, mesh)
    jax.tree.map(np.testing.assert_array_equal, params, whole)
    assert len(params["layers"]["query"].sharding.device_set) == 8
    share = max(part for name, part in read if "q_proj" in name)
    assert share == 1 / 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("model.layers.1.mlp.up_proj.weight"), ["up_proj", "missing"]),
        (lambda v: v.update(extra=np.ones(3, np.float32)), ["extra", "not used"]),
        (
            lambda v: v.update({"model.norm.weight": np.ones(7, np.float32)}),
            ["model.norm.weight", "(7,)", "(32,)"],
        ),
        (lambda v: v.update({"model.norm.weight": np.ones(32, np.int8)}), ["I8", "BF16"]),
    ],
)
def test_keys_that_do_not_match_are_named(tmp_path, one, change, words):
    values = tensors()
    change(values)
    with pytest.raises(UserError) as error:
        pretrained.load(write(tmp_path / "in", values, config_json()), one)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "LlamaForCausalLM"),
        ({"architectures": []}, "none named"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "yarn"),
        ({"hidden_size": None}, "config.json"),
        ({"num_key_value_heads": 3}, "multiple"),
    ],
)
def test_a_shape_that_is_not_supported_is_refused(tmp_path, one, changes, word):
    folder = write(tmp_path / "in", tensors(), config_json() | changes)
    with pytest.raises(UserError, match=word):
        pretrained.load(folder, one)


@pytest.mark.parametrize("kept", [0, 4, 100, 4000])
def test_a_truncated_file_is_refused(tmp_path, one, kept):
    folder = write(tmp_path / "in", tensors(), config_json())
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        pretrained.load(folder, one)


def test_a_header_that_lies_about_its_length_is_refused(tmp_path, one):
    folder = write(tmp_path / "in", tensors(), config_json())
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        pretrained.load(folder, one)


def test_an_index_that_points_elsewhere_is_refused(tmp_path, one):
    folder = write(tmp_path / "in", tensors(), config_json(), files=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "../../secret.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match="does not name files of this folder"):
        pretrained.load(folder, one)


def test_llama_3_stretches_long_wavelengths_only(tmp_path):
    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    _, config = shape_from_json(config_json(rope_scaling=rope), "test")
    assert config.rope_factors[0] == 1.0 and config.rope_factors[-1] == 8.0
    assert list(config.rope_factors) == sorted(config.rope_factors)
    x = jax.random.normal(jax.random.key(0), (1, 9, 1, SHAPES["A"]))
    positions = jnp.arange(9)[None]

    def turn(x, positions, factors=()):
        return attention.rotate(
            x, *attention.rotations(positions, SHAPES["A"], 1e4, factors=factors)
        )

    turned, plain = turn(x, positions, config.rope_factors), turn(x, positions)
    # The slowest pair turns an eighth as far: position 8 lies where 1 lies without.
    slow = [SHAPES["A"] // 2 - 1, SHAPES["A"] - 1]
    moved = turn(x[:, 8:], jnp.ones((1, 1)))
    np.testing.assert_allclose(turned[:, 8:, :, slow], moved[..., slow], atol=1e-6)
    np.testing.assert_allclose(turned[..., [0, 8]], plain[..., [0, 8]], atol=1e-6)


QUANTISED = {"F32": 1e-7, "F16": 1e-3, "Q8_0": 4e-3, "Q4_0": 0.1, "Q4_1": 0.1}


def write_gguf(path, architecture, values, kind, drop=(), add=lambda writer: None):
    """Write a family's random weights as llama.cpp would."""
    family = families.family_named(architecture, "architecture", "test")
    writer = gguf.GGUFWriter(path, family.name)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(SHAPES["D"])
    writer.add_head_count(SHAPES["H"])
    writer.add_head_count_kv(SHAPES["K"])
    writer.add_key_length(SHAPES["A"])
    writer.add_feed_forward_length(SHAPES["F"])
    writer.add_layer_norm_rms_eps(1e-5)
    add(writer)
    for leaf in family.leaves:
        for layer in range(LAYERS if leaf.layered else 1):
            name = leaf.name.format(layer=layer)
            if name not in values or name in drop:
                continue
            array = values[name].astype(np.float32)
            if "(H h P)" in leaf.gguf_pattern or "(K h P)" in leaf.gguf_pattern:
                heads = SHAPES["H"] if "(H" in leaf.gguf_pattern else SHAPES["K"]
                array = array.reshape(heads, 2, SHAPES["A"] // 2, -1).swapaxes(1, 2)
                array = np.ascontiguousarray(array.reshape(-1, SHAPES["D"]))
            kept = "F32" if array.ndim == 1 or array.shape[-1] % 32 else kind
            quantised = gguf.GGMLQuantizationType[kept]
            data = gguf.quants.quantize(array, quantised)
            writer.add_tensor(f"{leaf.gguf.format(layer=layer)}.weight", data, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen3ForCausalLM"])
def test_gguf_files_hold_the_same_weights(tmp_path, one, architecture, kind):
    values = tensors(architecture)
    config, params = pretrained.load(
        write_gguf(tmp_path / "m.gguf", architecture, values, kind), one
    )
    folder = write(tmp_path / "in", values, config_json(architecture))
    expected_config, expected = pretrained.load(folder, one)
    assert dataclasses.replace(config, norm_epsilon=1e-5) == expected_config
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=QUANTISED[kind]), params, expected
    )


def test_q6_k_is_read_as_its_definition_says(tmp_path, one):
    """ggml block_q6_K: of 256 weights 128 low nibbles, 64 high pairs, 16 scales, one factor."""
    random = np.random.default_rng(0)
    raw = random.integers(0, 256, (3, 210), np.uint8)
    raw[:, 208:] = np.array([0.01], np.float16).view(np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    writer.add_tensor("x", raw, raw_dtype=gguf.GGMLQuantizationType.Q6_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = pretrained.GGUFFile(tmp_path / "q.gguf")
    found = file.read("x", (slice(1, 3), slice(32, 64)))
    row = raw[1]
    low, high, scales = row[:128], row[128:192], row[192:208].view(np.int8)
    # Weights 32 to 63: low nibbles of bytes 32 to 63, bits 2 and 3 of the high bytes 0 to 31.
    numbers = (low[32:64] & 15) | (((high[:32] >> 2) & 3) << 4)
    expected = (
        np.float16(0.01).astype(np.float32)
        * np.repeat(scales[2:4], 16)
        * (numbers.astype(np.int32) - 32)
    )
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


@pytest.mark.parametrize("kept", [0, 3, 200, 3000])
def test_a_truncated_gguf_file_is_refused(tmp_path, one, kept):
    path = write_gguf(tmp_path / "m.gguf", "LlamaForCausalLM", tensors(), "F16")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="m.gguf"):
        pretrained.load(path, one)


def test_a_gguf_file_that_lacks_a_tensor_is_refused(tmp_path, one):
    dropped = ("model.layers.0.mlp.up_proj.weight",)
    path = write_gguf(tmp_path / "m.gguf", "LlamaForCausalLM", tensors(), "F16", dropped)
    with pytest.raises(UserError, match="ffn_up.*missing"):
        pretrained.load(path, one)


def test_a_gguf_file_becomes_a_directory(tmp_path, one):
    path = write_gguf(tmp_path / "m.gguf", "LlamaForCausalLM", tensors(), "F32")
    config, params = pretrained.load(path, one)
    pretrained.export(config, params, tmp_path / "out", path, "float32")
    again, found = pretrained.load(tmp_path / "out", one)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_another_model_is_not_exported(tmp_path, one):
    folder = write(tmp_path / "in", tensors(), config_json())
    config, params = pretrained.load(folder, one)
    changed = dataclasses.replace(config, rope_theta=5e5)
    with pytest.raises(UserError, match="another model"):
        pretrained.export(changed, params, tmp_path / "out", folder)


def test_a_stated_shape_stands_in_for_weights_that_are_not_here(tmp_path):
    stated = config_json("Qwen3ForCausalLM")
    expected = shape_from_json(stated, "test")[1]
    assert pretrained.shape_of(str(tmp_path / "none"), stated) == expected
    folder = write(tmp_path / "here", tensors("Qwen3ForCausalLM"), stated)
    assert pretrained.shape_of(str(folder), stated) == expected
    assert pretrained.shape_of(str(folder), {}) == expected
    with pytest.raises(
        UserError, match=r"config\.policy\.shape states rope_theta=5.0; the weights"
    ):
        pretrained.shape_of(str(folder), stated | {"rope_theta": 5.0})
    with pytest.raises(UserError, match="none: no safetensors folder"):
        pretrained.shape_of(str(tmp_path / "none"), {})
