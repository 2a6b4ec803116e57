"""Published weights through the command line, vocabulary and all."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, models

import autollm_jax
from autollm_jax.data import pretrained_tokenizer
from autollm_jax.models import families, pretrained, safetensors_files, transformer
from autollm_jax.sharding.mesh import MeshShape, make_mesh

ROOT = pathlib.Path(autollm_jax.__file__).parents[1]
MODEL = transformer.TransformerConfig(
    vocab_size=40, width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp_width=48,
    qk_norm=True, scaled_embedding=False,
)  # fmt: skip
TEMPLATE = "{% for m in messages %}<u>{{ m.content }}</u>{% endfor %}<a>"


@pytest.fixture
def published(tmp_path):
    """A random Qwen3 with a vocabulary of letters, as it would be published."""
    folder = tmp_path / "published"
    params = jax.jit(lambda key: transformer.init(MODEL, key))(jax.random.key(0))
    shards = pretrained._shards(families.QWEN3, MODEL, params, np.float32, 2**30)
    safetensors_files.write(folder, shards)
    (folder / "config.json").write_text(json.dumps(families.json_from_shape(families.QWEN3, MODEL)))
    letters = {letter: n for n, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    vocabulary = tokenizers.Tokenizer(models.BPE(letters, []))
    vocabulary.add_special_tokens([AddedToken(t, special=True) for t in ("<u>", "</u>", "<a>")])
    vocabulary.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def convert(*arguments):
    return subprocess.run(
        [sys.executable, "launch/convert_model.py", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_converted_directory_holds_the_same_model(published, tmp_path):
    done = convert(f"--source={published}", f"--out={tmp_path / 'out'}", "--dtype=float32")
    assert done.returncode == 0, done.stderr
    assert f"{transformer.parameter_count(MODEL):,} parameters" in done.stdout
    one = make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])
    (config, params), (expected_config, expected) = (
        pretrained.load(folder, one) for folder in (tmp_path / "out", published)
    )
    assert config == expected_config == MODEL
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    ids = [
        pretrained_tokenizer.load_folder(folder).encode_opening("abc")
        for folder in (tmp_path / "out", published)
    ]
    assert ids[0] == ids[1]


def test_what_cannot_be_converted_is_one_line(published, tmp_path):
    weights = published / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    for arguments, words in (
        ((f"--source={published}", f"--out={tmp_path / 'out'}"), "not a whole safetensors file"),
        ((f"--source={published}", f"--out={published}"), "give another folder"),
        ((f"--source={published}",), "--out is missing"),
    ):
        done = convert(*arguments)
        (line,) = done.stderr.strip().splitlines()
        assert done.returncode == 1 and line.startswith("error: ") and words in line
    assert not (tmp_path / "out").exists()
