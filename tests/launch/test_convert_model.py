"""Published weights through the command line, vocabulary and all."""

import dataclasses
import functools
import json
import os
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, models

import autollm_jax
from autollm_jax.files import write_json_atomic
from autollm_jax.job import scoring_stages
from autollm_jax.job.job import Job
from autollm_jax.models import lora, transformer
from autollm_jax.published import config_json, families, pretrained, safetensors_files
from autollm_jax.published.tokenizer import load_folder
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.training.state import init_state
from tests import scripts

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
    shards = pretrained._shards(families.QWEN3, MODEL, params, np.float16, 2**30)
    safetensors_files.write(folder, shards)
    (folder / "config.json").write_text(
        json.dumps(config_json.json_from_shape(families.QWEN3, MODEL))
    )
    letters = {letter: n for n, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    vocabulary = tokenizers.Tokenizer(models.BPE(letters, []))
    vocabulary.add_special_tokens([AddedToken(t, special=True) for t in ("<u>", "</u>", "<a>")])
    vocabulary.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def convert(*arguments, environment=os.environ):
    return scripts.run("launch/convert_model.py", *arguments, environment=environment)


def test_a_converted_directory_holds_the_same_model(published, tmp_path):
    done = convert(f"--source={published}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert f"{transformer.parameter_count(MODEL):,} parameters in float16" in done.stdout
    one = make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])
    (config, params), (expected_config, expected) = (
        pretrained.load(folder, one) for folder in (tmp_path / "out", published)
    )
    assert config == expected_config == MODEL
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    ids = [load_folder(folder).encode_opening("abc") for folder in (tmp_path / "out", published)]
    assert ids[0] == ids[1]


@pytest.fixture
def trained(published, tmp_path):
    """Make the work directory of a job whose GRPO moved every parameter that it trains."""

    def make(**policy):
        config = runpy.run_path(str(ROOT / "configs" / "gym.py"))["get_config"]("smoke")
        config.policy.update({"weights": str(published), **policy})
        job = Job(config, tmp_path / "job", make_mesh(MeshShape(1, 2, 1), jax.devices()[:2]))
        write_json_atomic(job.workdir / "config.json", config.to_dict())
        optimizer, axes = job.optimizer(config.grpo), lora.logical_axes(job.model)
        init = functools.partial(lora.init, job.model)
        state = init_state(init, axes, optimizer, jax.random.key(7), job.mesh)
        moved = jax.tree.map(
            lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), state.params
        )
        checkpoints = job.checkpoints("grpo")
        checkpoints.save(config.grpo.steps, dataclasses.replace(state, params=moved), {})
        checkpoints.close()
        return job

    return make


@pytest.mark.parametrize("policy", [{}, {"lora_rank": 2, "lora_targets": "query,down"}], ids=str)
def test_a_trained_policy_is_written_with_its_factors_merged(trained, published, tmp_path, policy):
    job, out = trained(**policy), tmp_path / "out"
    done = convert(f"--workdir={job.workdir}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    one = make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])
    config, params = pretrained.load(out, one)
    assert config == MODEL
    tokens_BT = np.arange(12, dtype=np.int32)[None]
    logits = [
        np.asarray(jax.jit(transformer.apply, static_argnums=0)(model, p, tokens_BT))
        for model, p in (
            (config, params),
            (dataclasses.replace(job.model, dtype="float32"), job.parameters("grpo")),
            (config, pretrained.load(published, one)[1]),
        )
    ]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)
    assert np.abs(logits[0] - logits[2]).max() > 0.1
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (published / name).read_bytes()


def test_players_share_what_lora_froze(trained, monkeypatch):
    job, loads, load = trained(lora_rank=2, lora_targets="query,down"), [], pretrained.load
    job.config.gym.roots, job.config.distill.steps = "gym_data", 0
    job.config.evaluation.update({"methods": "agent,zero_shot,distilled", "shots": 0})
    monkeypatch.setattr(pretrained, "load", lambda *given: loads.append(given) or load(*given))
    given, player = [], scoring_stages.policy_player
    monkeypatch.setattr(
        scoring_stages, "policy_player", lambda *a, **k: given.append(a[1]) or player(*a, **k)
    )
    assert set(scoring_stages._players(job)) == {"agent", "zero_shot", "distilled"}
    agent, zero_shot, distilled = given
    assert len(loads) == 1
    assert agent["embedding"] is zero_shot["embedding"] is distilled["embedding"]
    name = "query" + transformer.LORA_OUT
    assert agent["layers"][name] is not zero_shot["layers"][name] is distilled["layers"][name]


def test_a_policy_that_several_processes_trained_is_written_by_one(trained, tmp_path):
    path = trained().workdir / "config.json"
    config = json.loads(path.read_text())
    config["distributed"].update(
        {"coordinator": "localhost:1", "processes": 2, "process_id": 0, "timeout_seconds": 5}
    )
    write_json_atomic(path, config)
    done = convert(f"--workdir={path.parent}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_what_was_not_trained_is_not_written(trained, published, tmp_path):
    out = f"--out={tmp_path / 'out'}"
    job = trained()
    own, unfinished = (json.loads((job.workdir / "config.json").read_text()) for _ in range(2))
    own["policy"]["weights"] = ""
    unfinished["grpo"]["steps"] = 99
    for name, config in (("own", own), ("unfinished", unfinished)):
        write_json_atomic(tmp_path / name / "config.json", config)
    for arguments, words in (
        ((f"--workdir={tmp_path / 'own'}", out), "only one that began from config.policy.weights"),
        ((f"--workdir={tmp_path / 'unfinished'}", out), "run --stage=grpo first"),
        ((f"--workdir={tmp_path / 'none'}", out), "config.json: missing"),
        (
            (f"--workdir={job.workdir}", f"--source={published}", out),
            "either --source or --workdir",
        ),
    ):
        done = convert(*arguments)
        (line,) = done.stderr.strip().splitlines()
        assert done.returncode == 1 and line.startswith("error: ") and words in line
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_in_a_used_folder_replaces_the_one_before(published, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokenizer.model").write_bytes(b"of another model")
    pretrained.export_tokenizer(published, tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"tokenizer.json", "chat_template.jinja"}


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


def test_paths_may_begin_with_the_home_directory(published, tmp_path):
    home = {**os.environ, "HOME": str(tmp_path)}
    done = convert("--source=~/published", "--out=~/out", environment=home)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()
