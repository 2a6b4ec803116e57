"""What a plan says of a small job, against what is known of it by hand, and against the job."""

import dataclasses
import json
import os
import pathlib
import re
import runpy
import types

import jax
import numpy as np
import pytest

import autollm_jax
from autollm_jax.agent.distillation import distill, pack
from autollm_jax.errors import UserError
from autollm_jax.job import planned_steps, planning
from autollm_jax.job.job import Job
from autollm_jax.models.decoding import for_decoding
from autollm_jax.models.transformer import parameter_count
from autollm_jax.rl import loop as rl_loop
from autollm_jax.rl import sampler
from autollm_jax.rl.batches import Decisions, RolloutBatch
from autollm_jax.rl.grammar import LEAST_EDGES
from autollm_jax.rl.logprobs import Allowed
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.text.symbols import PANELS
from autollm_jax.training import loop, step
from tests import scripts

ROOT = pathlib.Path(autollm_jax.__file__).parents[1]
SHAPE = {
    "architectures": ("Qwen3ForCausalLM",), "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16,
    "vocab_size": 256, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
}  # fmt: skip
CONTEXT, ROWS = 320, 16


def small(**policy):
    """A job like those of published weights, that are not here, with every part of it small."""
    c = runpy.run_path(str(ROOT / "configs" / "gym.py"))["get_config"]("smoke")
    c.policy.update({"weights": "not-here", "shape": SHAPE, "context": CONTEXT, **policy})
    c.distill.update({"batch_rows": 16, "row_length": 128, "microbatches": 2})
    c.evaluation.games = ROWS
    c.rollout.cache_block = 256  # less than CONTEXT: the cache grows
    c.grpo.update({"groups": 8, "group_size": 2, "minibatch_rows": 8})
    return c


def planned(config, folder, shape=(1, 2, 4)):
    config.mesh.update(dict(zip(("data", "fsdp", "tensor"), shape, strict=True)))
    job = Job(config, folder, make_mesh(MeshShape(*shape)))
    planning.plan(job)
    made = json.loads((folder / "plan.json").read_text())["steps"]
    return job, {entry["name"]: entry for entry in made}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A plan of full fine-tuning on fsdp=2, tensor=4."""
    return planned(small(), tmp_path_factory.mktemp("full"))


@pytest.fixture
def uncompiled(monkeypatch):
    """Steps are lowered for their mesh only: a test that reads no activations waits for no more."""

    def lowered(mesh, jitted, *arguments, **static):
        with jax.set_mesh(mesh):
            jitted.lower(*arguments, **static)
        return planned_steps.Compiled(0, 0, 0)

    monkeypatch.setattr(planned_steps, "_compile", lowered)


def playing(name):
    return name.endswith(("append", "decode", "grow"))


def test_every_step_of_the_job_is_planned(full):
    parts = ("append", "decode", "grow")
    expected = ["distill update", "grpo update", "grpo reference"]
    expected += [f"{stage} {part}" for stage in ("grpo", "evaluate") for part in parts]
    assert list(full[1]) == expected


def test_memory_that_does_not_depend_on_the_compiler_is_what_arithmetic_says(full):
    job, steps = full
    # Every matrix is split over all eight devices but embeddings' like; norms are not.
    whole = 4 * parameter_count(job.model)
    for name, entry in steps.items():
        assert entry["parameters"] == pytest.approx(whole / 8, rel=0.05)
        training = not name.startswith("evaluate")
        assert entry["optimizer"] == pytest.approx(2 * whole / 8 * training, rel=0.05)
        # Published weights, or the reference, are held beside what is trained; and all once more,
        # as they are laid out for play: whole over fsdp.
        laid_out = whole / 4 * playing(name)
        assert entry["other"] == pytest.approx(entry["parameters"] + laid_out, rel=0.05)
        assert entry["total"] == sum(entry[column] for column in planning.COLUMNS)
    layers, kv, head = 2, SHAPE["num_key_value_heads"], SHAPE["head_dim"]
    cache = 2 * 4 * layers * ROWS * CONTEXT * kv * head
    for name in ("grpo append", "grpo decode", "grpo grow", "evaluate decode"):
        assert steps[name]["cache"] == cache / 8
    assert steps["distill update"]["cache"] == 0


def test_flops_are_those_of_the_parameters_and_tokens(full):
    job, steps = full
    model = job.model
    for name, passes, rows, length in (
        ("distill update", 3, 16, 128),
        ("grpo update", 3, 8, CONTEXT),
        ("grpo reference", 1, 8, CONTEXT),
    ):
        tokens = rows * (length - 1)
        products = 2 * parameter_count(model) * tokens
        # Causal blocks: a query is multiplied with half the keys at least, and all at most.
        square = 4 * model.layers * model.heads * model.head_dim * tokens * length
        assert (products + square / 2) * passes < steps[name]["flops"] * 1.01
        assert steps[name]["flops"] < (products + square) * passes * 1.05
    assert steps["grpo decode"]["flops"] < steps["grpo append"]["flops"] / 100


def test_lora_shares_its_frozen_base_and_has_a_small_optimizer(full, tmp_path, monkeypatch):
    monkeypatch.setattr(
        planned_steps, "_compile", lambda *_, **__: planned_steps.Compiled(0, 0, 0)
    )  # all of this is of shapes
    _, steps = planned(small(lora_rank=2), tmp_path)
    whole = full[1]["grpo update"]
    update = steps["grpo update"]
    assert update["optimizer"] < whole["optimizer"] / 5 and update["other"] < whole["other"] / 5
    assert update["parameters"] >= whole["parameters"]


def test_the_planned_step_is_the_one_that_runs(tmp_path, monkeypatch):
    """Distillation's program, as the plan lowers it and as training does."""
    config = small(weights="", turn_tokens=12)
    config.grpo.steps = 0
    assert 32 < config.gym.budget * config.policy.turn_tokens <= 64  # of which 64 are scored
    job = Job(config, tmp_path, make_mesh(MeshShape(1, 2, 4)))
    settings, texts = config.distill, []

    def lowered(mesh, jitted, *arguments, **_):
        with jax.set_mesh(mesh):
            texts.append(jitted.lower(*arguments).as_text())
        raise InterruptedError

    def training_step(*arguments):
        jitted, mesh = step.jit_train_step(*arguments[:5]), arguments[3]
        return lambda *given: lowered(mesh, jitted, *given)

    monkeypatch.setattr(planned_steps, "_compile", lowered)
    monkeypatch.setattr(loop, "make_train_step", training_step)
    conversations = [(np.arange(100, dtype=np.int32), np.arange(100) >= 60)] * 20
    with pytest.raises(InterruptedError):
        planning.plan(job)
    with pytest.raises(InterruptedError):
        distill(
            dataclasses.replace(job.model, dtype=settings.dtype),
            loop.LoopConfig(settings.steps, settings.microbatches),
            settings.batch_rows, job.optimizer(settings),
            pack(conversations, settings.row_length, 0),
            loop.Site(job.mesh, job.checkpoints("distill"), tmp_path), jax.random.key(0),
        )  # fmt: skip
    planned_text, trained_text = texts
    assert "dot_general" in planned_text and planned_text == trained_text


def test_grpos_planned_steps_are_those_that_run(tmp_path, monkeypatch):
    """The update's and the reference's program, as the plan lowers them and as the loop does."""
    config = small(weights="", context=128, dtype="float32", turn_tokens=12)
    config.distill.steps, config.grpo.first_turn = 0, 1
    spoken = config.gym.budget * config.policy.turn_tokens
    assert 32 < spoken <= 64  # tokens of a row, of which the programs score 64
    job = Job(config, tmp_path, make_mesh(MeshShape(1, 2, 4)))
    settings, planned_texts, run_texts = config.grpo, [], []

    def lowered(mesh, jitted, *arguments, **static):
        with jax.set_mesh(mesh):
            planned_texts.append(jitted.lower(*arguments, **static).as_text())
        return planned_steps.Compiled(0, 0, 0)

    class Noted(step.Program):
        def __call__(self, first, batch, *others):
            with jax.set_mesh(job.mesh):
                run_texts.append(self._jitted.lower(first, batch, *others).as_text())
            return super().__call__(first, batch, *others)

    rows, ones = settings.minibatch_rows, np.ones((settings.minibatch_rows, 128), np.int32)

    budget, choices = config.gym.budget, np.tile(np.arange(len(PANELS), dtype=np.int32), (rows, 1))
    brought = np.tile(choices[:, None], (1, budget, 1)).astype(np.float32)
    places = np.tile(np.arange(1, budget + 1, dtype=np.int32), (rows, 1))
    made = Decisions(places, brought, 0 * brought, choices)
    edges = np.ones((rows, 128, LEAST_EDGES), np.int32)
    allowed = Allowed(ones > 0, edges, np.ones((rows, job.model.vocab_size), bool))

    turns = np.where(np.arange(128) >= 128 - spoken, 0, -1) * ones

    def rollout(params, key, step):
        rewards = np.arange(rows, dtype=np.float32)[:, None]
        lengths, logprobs = np.full(rows, 128, np.int32), -np.ones((rows, 128), np.float32)
        steps = np.ones((rows, 1), bool)
        played = RolloutBatch(ones, lengths, turns, logprobs, rewards, steps, allowed, made)
        return played, {}

    monkeypatch.setattr(planned_steps, "_compile", lowered)
    monkeypatch.setattr(planned_steps, "_sampling", lambda *_, **__: iter(()))
    planning.plan(job)
    monkeypatch.setattr(rl_loop, "Program", Noted)
    rl_loop.train_grpo(
        job.model, job.grpo_hyperparameters(),
        rl_loop.GRPOLoopConfig(1, settings.group_size, rows, microbatches=settings.microbatches),
        job.optimizer(settings), rollout, job.first_parameters,
        loop.Site(job.mesh, job.checkpoints("grpo"), tmp_path), jax.random.key(0),
    )  # fmt: skip
    update, reference = planned_texts
    assert all("dot_general" in text for text in planned_texts) and update != reference
    assert run_texts == [reference, update]


def test_the_samplers_planned_steps_are_those_that_run(tmp_path, monkeypatch):
    """Reading and decoding, as the plan lowers them and as a turn does."""
    config = small(weights="", context=128, dtype="float32", cache_dtype="float32")
    config.distill.steps = config.grpo.steps = 0
    config.rollout.update({"cache_block": 128, "chunk": 8})
    # No axis of size 1: a program's results do not name it, and the plan's shapes do.
    job = Job(config, tmp_path, make_mesh(MeshShape(2, 2, 2)))
    planned_texts, run_texts = [], []

    def lowered(mesh, jitted, *arguments, **static):
        with jax.set_mesh(mesh):
            planned_texts.append(jitted.lower(*arguments, **static).as_text())
        return planned_steps.Compiled(0, 0, 0)

    class Lowering:
        """A jitted function that writes its programs down."""

        def __init__(self, jitted):
            self._jitted = jitted

        def __call__(self, *arguments, **static):
            run_texts.append(self._jitted.lower(*arguments, **static).as_text())
            return self._jitted(*arguments, **static)

    monkeypatch.setattr(planned_steps, "_compile", lowered)
    planning.plan(job)
    for name in ("jit_append", "jit_decode"):
        monkeypatch.setattr(sampler, name, Lowering(getattr(sampler, name)))
    sizes, params = job.play(config.evaluation.temperature).sampler, job.first_parameters()
    with jax.set_mesh(job.mesh):
        params = for_decoding(job.model, params)
        state = sampler.init_state(job.model, sizes, range(ROWS), job.mesh)
        state = sampler.append(job.model, params, sizes, state, [[1, 2, 3]] * ROWS)
        turn = sampler.TurnConfig(0, 2, config.evaluation.temperature)
        sampler.generate(job.model, params, sizes, state, jax.random.key(0), turn)
    assert all("dot_general" in text for text in planned_texts)
    assert len(planned_texts) == 2 and run_texts == planned_texts


def test_a_step_of_play_counts_its_parameters_once(full):
    """What is laid out for play is an argument of its programs, and no activation."""
    job, steps = full
    laid_out = 4 * parameter_count(job.model) / 4  # whole over fsdp=2, split over tensor=4
    for stage in ("grpo", "evaluate"):
        assert steps[f"{stage} decode"]["activations"] < laid_out
        shorter = steps[f"{stage} grow"]["cache"] * 256 / CONTEXT  # the cache that it grows
        assert 0.9 * shorter < steps[f"{stage} grow"]["activations"] < 1.3 * shorter


def test_play_is_planned_for_as_many_rows_as_play_at_once(tmp_path, uncompiled):
    config = small()
    config.rollout.rows, config.distill.steps = 8, 0
    _, steps = planned(config, tmp_path)
    assert steps["grpo decode"]["rows"] == 8 and steps["evaluate decode"]["rows"] == ROWS


def test_rollouts_one_step_off_are_planned_on_the_devices_that_play(tmp_path, uncompiled):
    config = small()
    config.distill.steps = 0
    config.grpo.update({"off_policy_steps": 1, "player_replicas": 1})
    job, steps = planned(config, tmp_path, (2, 2, 2))
    whole, decode = 4 * parameter_count(job.model), steps["grpo decode"]
    assert decode["optimizer"] == 0 and steps["grpo update"]["optimizer"] > 0
    assert decode["other"] == pytest.approx(whole / 2, rel=0.05)  # as laid out: tensor=2
    cache = 2 * 4 * 2 * ROWS * CONTEXT * SHAPE["num_key_value_heads"] * SHAPE["head_dim"]
    assert decode["cache"] == cache / 4  # of the one replica's devices


@pytest.mark.parametrize(("kl", "held"), [(0.0, 0), (0.01, 2)])
def test_the_reference_is_held_in_bfloat16_and_not_at_all_without_a_coefficient(
    tmp_path, uncompiled, kl, held
):
    config = small(dtype="bfloat16", activations="bfloat16")
    config.distill.steps, config.rollout.cache_block = 0, CONTEXT
    config.grpo.update({"kl_coefficient": kl, "importance_cap": 2.0, "members": "sampled"})
    job, steps = planned(config, tmp_path)
    assert ("grpo reference" in steps) == bool(kl) and "grpo weights" in steps
    size = held * parameter_count(job.model) / 8
    assert steps["grpo update"]["other"] == pytest.approx(size, rel=0.1)  # norms stay f32


def test_batches_that_do_not_divide_are_named(tmp_path, capsys, uncompiled):
    config = small()
    config.distill.batch_rows, config.grpo.microbatches, config.grpo.groups = 12, 3, 3
    _, plan = planned(config, tmp_path, (1, 8, 1))
    printed = capsys.readouterr().out
    assert "config.distill.batch_rows=12 is filled up to 16 rows" in printed
    assert "config.grpo.minibatch_rows=8 is filled up to 24 rows" in printed
    assert "config.grpo.groups=3 is no multiple of the players' data x fsdp=8" in printed
    assert all(plan[f"{stage} update"]["rows"] % 8 == 0 for stage in ("distill", "grpo"))


def test_microbatches_whose_gradients_cross_slices_are_named():
    config = small()
    config.distill.microbatches, config.grpo.microbatches = 4, 1
    chips = np.array([types.SimpleNamespace(slice_index=n % 2, platform="tpu") for n in range(4)])
    job = types.SimpleNamespace(config=config, mesh=types.SimpleNamespace(devices=chips))
    (line,) = planning._slow(job)
    assert "config.distill.microbatches=4" in line and "between 2 slices" in line
    job.mesh.devices = chips[::2]
    assert not list(planning._slow(job))


def test_play_is_planned_as_the_players_lay_it_out(tmp_path, uncompiled):
    config = small()
    config.mesh.player_tensor, config.distill.steps = 4, 0
    job, steps = planned(config, tmp_path, (1, 8, 1))
    whole = 4 * parameter_count(job.model)
    decode = steps["grpo decode"]
    assert decode["parameters"] == pytest.approx(whole / 8, rel=0.05)
    assert decode["other"] == pytest.approx(whole / 8 + whole / 4, rel=0.05)


def test_axes_that_stay_whole_and_too_little_memory_are_a_line_each(tmp_path, capsys, uncompiled):
    config = small()
    config.policy.shape.num_key_value_heads = 2
    config.distill.steps = config.grpo.steps = 0
    config.plan.device_memory_gib = 1e-6
    with pytest.raises(UserError, match="plan: evaluate .* GiB a device, config.plan.device_mem"):
        planned(config, tmp_path)
    printed = capsys.readouterr().out
    assert "config.mesh.tensor=4 does not divide the policy's kv_heads=2" in printed
    assert "evaluate decode" in printed and (tmp_path / "plan.json").exists()


def test_only_the_wanted_steps_are_compiled(tmp_path, uncompiled):
    config = small()
    config.plan.steps = "grpo reference,evaluate decode"
    assert list(planned(config, tmp_path)[1]) == ["grpo reference", "evaluate decode"]
    config.grpo.steps = 0
    with pytest.raises(UserError, match="this job has no grpo reference; it has distill update, "):
        planned(config, tmp_path)


def test_an_axis_of_minus_one_needs_the_number_of_devices():
    config = small()
    config.plan.devices = 0
    with pytest.raises(UserError, match=r"config\.plan\.devices=0: name the number"):
        planning.on_fake_devices(config)


def test_a_step_that_the_compiler_has_no_room_for_is_named(tmp_path, monkeypatch):
    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory: used 20G of 16G")

    monkeypatch.setattr(planned_steps, "_compile", exhausted)
    with pytest.raises(UserError, match="plan: distill update: the compiler has no room.*of 16G"):
        planned(small(), tmp_path)


def test_it_runs_by_the_stage_where_there_is_neither_work_nor_weights(tmp_path):
    flags = re.sub("--xla_force_host_platform_device_count=[0-9]+", "", os.environ["XLA_FLAGS"])
    done = scripts.run(
        "launch/main.py", "--config=configs/gym.py:smoke", "--stage=plan",
        f"--workdir={tmp_path / 'job'}", "--config.mesh.fsdp=4", "--config.plan.devices=4",
        "--config.distill.steps=0", "--config.grpo.steps=0",
        environment=os.environ | {"XLA_FLAGS": flags},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "4 devices (data=1, fsdp=4, tensor=1)" in done.stdout
    assert [p.name for p in (tmp_path / "job").iterdir()] == ["plan.json"]


@pytest.mark.parametrize("name", ["gym_qwen3_0p6b", "gym_qwen3_4b"])
def test_configs_of_published_models_have_their_published_sizes(name, tmp_path):
    module = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))
    published = {"gym_qwen3_0p6b": 596_049_920, "gym_qwen3_4b": 4_022_468_096}[name]
    for variant in module["VARIANTS"]:
        config = module["get_config"](variant)
        job = Job(config, tmp_path, make_mesh(MeshShape()))
        plain = dataclasses.replace(job.model, lora_rank=0, lora_targets=())
        assert parameter_count(plain) == published
        assert job.model.dtype == config.distill.dtype == "bfloat16"
        assert job.model.remat == ("weights" if config.mesh.fsdp == 8 else "layer")
        assert bool(job.model.lora_rank) == variant.endswith("lora")
    with pytest.raises(ValueError, match="the variants are"):
        module["get_config"]("big")
