"""GGUF files: every quantisation by its definition, every field of the header, every refusal."""

import gguf
import jax
import numpy as np
import pytest

from autollm_jax.errors import UserError
from autollm_jax.published import gguf_files, pretrained
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from tests.published.test_pretrained import SHAPES, tensors, write_gguf

LLAMA = "LlamaForCausalLM"
HALF_HEAD = SHAPES["A"] // 2


def write(path, arrays=(), add=lambda writer: None):
    """Write a GGUF file that holds `arrays`: (name, bytes or numbers, type)."""
    writer = gguf.GGUFWriter(path, "llama")
    add(writer)
    for name, array, kind in arrays:
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# The blocks of ggml (ggml-common.h, ggml-quants.c), number by number. Each function takes a block's
# bytes but for the factors d and m, which the tests set to 2 and 3.
FACTOR, MINIMUM = 2.0, 3.0


def packed_scales(scales):
    """Unpack the 8 scales and 8 minima, 6 bits each, of Q4_K and Q5_K."""
    s = [int(x) for x in scales]
    pairs = [(s[j] & 63, s[j + 4] & 63) for j in range(4)]
    pairs += [
        (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4) for j in range(4, 8)
    ]
    return pairs


def q2_k(block):
    scales, quants, numbers = block[:16], block[16:80], []
    for j in range(16):  # 16 numbers a scale
        half, shift, side = j // 8, j % 8 // 2, j % 2
        for i in range(16):
            q = int(quants[32 * half + 16 * side + i]) >> 2 * shift & 3
            numbers.append(FACTOR * (scales[j] & 15) * q - MINIMUM * (scales[j] >> 4))
    return numbers


def q3_k(block):
    mask, quants, packed, numbers = block[:32], block[32:96], block[96:108], []
    for j in range(16):
        low = packed[j] & 15 if j < 8 else packed[j - 8] >> 4
        scale = int(low | (packed[8 + j % 4] >> 2 * (j // 4) & 3) << 4) - 32
        half, shift, side = j // 8, j % 8 // 2, j % 2
        for i in range(16):
            q = int(quants[32 * half + 16 * side + i]) >> 2 * shift & 3
            q -= 0 if int(mask[16 * side + i]) >> j // 2 & 1 else 4
            numbers.append(FACTOR * scale * q)
    return numbers


def q4_k(block):
    quants, numbers = block[16:], []
    for j, (scale, minimum) in enumerate(packed_scales(block[4:16])):
        for byte in quants[32 * (j // 2) : 32 * (j // 2) + 32]:
            q = byte >> 4 if j % 2 else byte & 15
            numbers.append(FACTOR * scale * q - MINIMUM * minimum)
    return numbers


def q5_k(block):
    high, quants, numbers = block[16:48], block[48:], []
    for j, (scale, minimum) in enumerate(packed_scales(block[4:16])):
        for i, byte in enumerate(quants[32 * (j // 2) : 32 * (j // 2) + 32]):
            q = int(byte >> 4 if j % 2 else byte & 15) + 16 * (int(high[i]) >> j & 1)
            numbers.append(FACTOR * scale * q - MINIMUM * minimum)
    return numbers


def iq4_nl(block):
    table = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
    quants = block[2:]
    return [FACTOR * table[b & 15] for b in quants] + [FACTOR * table[b >> 4] for b in quants]


# Of each type: where a block holds d, where m (if at all), and its numbers.
BLOCKS = {
    "Q2_K": (80, 82, q2_k),
    "Q3_K": (108, None, q3_k),
    "Q4_K": (0, 2, q4_k),
    "Q5_K": (0, 2, q5_k),
    "IQ4_NL": (0, None, iq4_nl),
}


def half(number):
    return np.array([number], np.float16).view(np.uint8)


def random_blocks(kind, rows=3, blocks=2):
    """Make rows of random blocks, with bytes that are d and m where the type is in `BLOCKS`."""
    length, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    raw = np.random.default_rng(0).integers(0, 256, (rows, blocks, size), np.uint8)
    d, m, _ = BLOCKS.get(kind, (None, None, None))
    for place, number in ((d, FACTOR), (m, MINIMUM)):
        if place is not None:
            raw[..., place : place + 2] = half(number)
    return raw, length


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_quantised_block_holds_the_numbers_of_its_definition(tmp_path, kind):
    raw, length = random_blocks(kind)
    quantised = gguf.GGMLQuantizationType[kind]
    path = write(tmp_path / "q.gguf", [("x", raw.reshape(3, -1), quantised)])
    file = gguf_files.GGUFFile(path)
    assert file.shapes["x"] == (3, 2 * length) and file.dtypes["x"] == "float32"
    expected = np.array([[BLOCKS[kind][2](block) for block in row] for row in raw.astype(int)])
    assert len(np.unique(expected)) > 10
    found = file.read("x", (slice(1, 3), slice(5, 2 * length)))
    np.testing.assert_allclose(found, expected.reshape(3, -1)[1:, 5:], rtol=1e-6)


@pytest.mark.parametrize("kind", gguf_files.READ)
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
def test_every_accepted_type_is_read_as_the_gguf_package_does(tmp_path, kind):
    quantised = gguf.GGMLQuantizationType[kind]
    raw, length = random_blocks(kind, blocks=256)
    raw = raw.reshape(3, -1)
    path = write(
        tmp_path / "q.gguf",
        [("x", raw if kind[0] != "F" else raw.view(f"<f{raw.shape[1] // 256}"), quantised)],
    )
    found = gguf_files.GGUFFile(path).read("x", (slice(0, 2), slice(3, 9)))
    np.testing.assert_array_equal(found, gguf.quants.dequantize(raw, quantised)[:2, 3:9])


def test_a_model_of_k_quants_is_loaded(tmp_path):
    """A model as it is usually downloaded: Q4_K matrices, and Q5_0 where a row has no 256."""
    sizes = {"V": 8, "D": 256, "H": 2, "K": 1, "A": 128, "F": 64}
    random = np.random.default_rng(0)

    def matrix(rows, columns):
        kind = "Q4_K" if columns % 256 == 0 else "Q5_0"
        quantised = gguf.GGMLQuantizationType[kind]
        block, size = gguf.GGML_QUANT_SIZES[quantised]
        raw = random.integers(0, 256, (rows, columns // block, size), np.uint8)
        raw[..., :2] = half(1e-4)
        raw[..., 2:4] = half(1e-4) if kind == "Q4_K" else raw[..., 2:4]
        return raw.reshape(rows, -1), quantised

    D, K, F = sizes["D"], sizes["K"] * sizes["A"], sizes["F"]
    layer = {
        "attn_q": (D, D), "attn_k": (K, D), "attn_v": (K, D), "attn_output": (D, D),
        "ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F),
    }  # fmt: skip
    arrays = [("token_embd.weight", *matrix(sizes["V"], D))]
    arrays += [(f"blk.0.{name}.weight", *matrix(*shape)) for name, shape in layer.items()]
    norms = ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")
    plain = gguf.GGMLQuantizationType.F32
    arrays += [(f"{name}.weight", np.ones(D, np.float32), plain) for name in norms]

    def add(writer):
        writer.add_block_count(1)
        writer.add_embedding_length(D)
        writer.add_head_count(sizes["H"])
        writer.add_head_count_kv(sizes["K"])
        writer.add_feed_forward_length(F)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_quantization_version(2)
        writer.add_file_type(15)

    path = write(tmp_path / "m.gguf", arrays, add)
    config, params = pretrained.load(path, make_mesh(MeshShape(1, 1, 1), jax.devices()[:1]))
    assert (config.head_dim, pretrained.lossless(path)) == (128, "float32")
    down = gguf.quants.dequantize(dict((n, a) for n, a, _ in arrays)["blk.0.ffn_down.weight"], 6)
    np.testing.assert_array_equal(params["layers"]["down"][0], down.T)


def shape(tmp_path, add, factors=None):
    """Open a small Llama with further fields, and optionally factors of its frequencies."""

    def with_factors(writer):
        add(writer)
        if factors is not None:
            writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))

    path = write_gguf(tmp_path / "m.gguf", LLAMA, tensors(), "F32", add=with_factors)
    return pretrained.open_source(path).config


def scaling(kind=None, factor=None, old=None):
    def add(writer):
        if kind is not None:
            writer.add_string("llama.rope.scaling.type", kind)
        if factor is not None:
            writer.add_rope_scaling_factor(factor)
        if old is not None:
            writer.add_float32("llama.rope.scale_linear", old)

    return add


@pytest.mark.parametrize(
    ("stated", "factor"),
    [
        (scaling("linear", 4.0), 4.0),
        (scaling(None, 4.0), 4.0),
        (scaling(None, None, 4.0), 4.0),
        (scaling(None, 2.0, 4.0), 2.0),
        (scaling("none", 4.0), 1.0),
        (scaling("linear"), 1.0),
        (scaling(None, 0.0), 1.0),
        (scaling(), 1.0),
    ],
)
def test_linear_scaling_is_read_however_it_is_stated(tmp_path, stated, factor):
    expected = () if factor == 1.0 else (factor,) * HALF_HEAD
    assert shape(tmp_path, stated).rope_factors == expected


def test_linear_scaling_multiplies_the_factors_of_single_frequencies(tmp_path):
    factors = [1.0] * (HALF_HEAD - 1) + [8.0]
    found = shape(tmp_path, scaling("linear", 2.0), factors).rope_factors
    assert found == (*[2.0] * (HALF_HEAD - 1), 16.0)


def test_linear_scaling_survives_an_export(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", LLAMA, tensors(), "F32", add=scaling(None, 4.0))
    config, params = pretrained.load(path, make_mesh(MeshShape(1, 1, 1), jax.devices()[:1]))
    pretrained.export(config, params, tmp_path / "out", path)
    assert pretrained.open_source(tmp_path / "out").config == config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("llama.attention.sliding_window", 4096),
        ("llama.attention.scale", 0.1),
        ("llama.expert_count", 8),
        ("llama.expert_used_count", 2),
        ("llama.attn_logit_softcapping", 50.0),
        ("llama.final_logit_softcapping", 30.0),
        ("llama.logit_scale", 0.5),
        ("llama.residual_scale", 0.22),
        ("llama.embedding_scale", 12.0),
        ("llama.attention.layer_norm_epsilon", 1e-5),
        ("llama.attention.value_length", 8),
        ("llama.attention.causal", False),
        ("llama.rope.scaling.attn_factor", 1.2),
        ("llama.rope.scaling.yarn_log_multiplier", 0.1),
        ("llama.rope.scaling.type", "longrope"),
        ("llama.a_field_of_tomorrow", 1),
        ("general.quantization_version", 1),
        ("general.type", "imatrix"),
        ("xlora.scale", 2.0),
    ],
)
def test_a_field_that_may_change_the_outputs_is_refused_by_name(tmp_path, name, value):
    def add(writer):
        kinds = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
        kinds.get(type(value), writer.add_float32)(name, value)

    with pytest.raises(UserError, match=name.removeprefix("llama.")) as refused:
        shape(tmp_path, add)
    assert "\n" not in str(refused.value) and "m.gguf: " in str(refused.value)


def test_fields_that_change_nothing_are_accepted(tmp_path):
    def add(writer):
        writer.add_name("a model")
        writer.add_type("model")
        writer.add_context_length(8192)
        writer.add_quantization_version(2)
        writer.add_rope_dimension_count(SHAPES["A"])
        writer.add_value_length(SHAPES["A"])
        writer.add_vocab_size(SHAPES["V"])
        writer.add_uint32("llama.expert_count", 0)
        writer.add_string("quantize.imatrix.file", "some.dat")
        writer.add_string("mradermacher.quantize_version", "2")

    assert shape(tmp_path, add).rope_factors == ()


@pytest.mark.parametrize("stated", [True, False])
def test_a_part_of_a_split_file_is_refused(tmp_path, stated):
    name = "part.gguf" if stated else "m-00002-of-00003.gguf"

    def add(writer):
        if stated:
            writer.add_uint16("split.no", 1)
            writer.add_uint16("split.count", 3)

    path = write(tmp_path / name, [("x", np.ones((2, 8), np.float32), None)], add)
    with pytest.raises(UserError, match="part 2 of 3 of a split GGUF file; join the parts"):
        pretrained.open_source(path)


def test_another_byte_order_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("x", np.ones((2, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="byte order is big-endian; accepted is little-endian"):
        pretrained.open_source(tmp_path / "m.gguf")


def test_a_tensor_without_rows_is_named(tmp_path):
    path = write(tmp_path / "m.gguf", [("token_embd.weight", np.ones((0, 8), np.float32), None)])
    with pytest.raises(UserError, match=r"token_embd.weight.*\(0, 8\).*holds no weights"):
        pretrained.open_source(path)


def test_an_adapter_in_a_gguf_file_is_named(tmp_path):
    def add(writer):
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")

    path = write(tmp_path / "m.gguf", [("x", np.ones((2, 8), np.float32), None)], add)
    with pytest.raises(UserError, match="a LoRA adapter, not a whole model"):
        pretrained.open_source(path)
