"""GRPO as the stage runs it: config, rollouts, loss and reference belong together."""

import contextlib
import dataclasses
import json
import pathlib
import runpy

import jax
import numpy as np
import pytest

import autollm_jax
from autollm_jax.agent import grpo_rollout, player
from autollm_jax.agent.dialogue import PolicyTokenizer
from autollm_jax.checkpointing.checkpoints import Checkpoints
from autollm_jax.curriculum.pairs import CurationConfig, Families, build_pair, draw_recipes
from autollm_jax.curriculum.teacher import SimulationConfig, simulate
from autollm_jax.data.tokenizer import reserved_ids, train_tokenizer
from autollm_jax.job import training_stages
from autollm_jax.job.job import Job
from autollm_jax.models import lora, transformer
from autollm_jax.rl import batches, objective
from autollm_jax.rl.grpo import GRPOHyperparameters
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.text.symbols import LETTERS, PANELS, SYMBOLS
from autollm_jax.training.optimizer import updates_of
from autollm_jax.training.state import abstract_state

ROOT = pathlib.Path(autollm_jax.__file__).parents[1]
GROUPS, G, STEPS, CONTEXT = 2, 4, 3, 768
FAMILIES = Families([])  # synthetic ones alone
# Every hyperparameter differs from its default, or its test would show nothing.
SETTINGS = {
    "steps": STEPS, "groups": GROUPS, "group_size": G, "minibatch_rows": GROUPS * G, "epochs": 1,
    "clip_low": 0.3, "clip_high": 0.4, "kl_coefficient": 0.05, "entropy_coefficient": 0.01,
    "temperature": 0.6, "normalisation": "none", "credit": "episode",
    "speech_coefficient": 0.2, "first_turn": 2, "members": "sampled", "refills": 0, "kept_out": 0,
    "dual_clip": 3.0, "ratio": "sequence", "importance_cap": 2.0, "mask_truncated": True,
}  # fmt: skip
# Largest mean |log-probability of the sampler - that of the trainer|, nats a token, before a step.
LARGEST_GAP = {"float32": 1e-4, "bfloat16": 0.02}


@pytest.fixture(scope="module")
def recipes():
    settings = CurationConfig(seed=1, pairs=GROUPS * STEPS, synthetic=1.0, pairs_per_family=1)
    return list(draw_recipes(FAMILIES, settings))


@pytest.fixture(scope="module")
def tokenizer(recipes):
    config = SimulationConfig(budget=2, episodes=1)
    texts = [t.text for recipe in recipes for t in simulate(build_pair(recipe, FAMILIES), config)]
    size = reserved_ids(SYMBOLS) + 60
    made = train_tokenizer(texts, size, user_defined_symbols=SYMBOLS, split_digits=False)
    return PolicyTokenizer(made.model)


class SmallJob(Job):
    """A job of a small policy whose earlier stages' results are given."""

    given: dict = {}

    training = property(lambda self: ())
    tokenizer = property(lambda self: self.given["tokenizer"])
    model = property(lambda self: self.given["model"])

    def pairs(self, name):
        return self.given["recipes"]

    def parameters(self, stage, first=None):
        return self.given["params"]


@dataclasses.dataclass
class Record:
    """Arguments of a run's parts, in order, and the metrics and parameters of each step."""

    temperatures: list
    experiments: list
    hyperparameters: list
    rows: list
    before: dict
    after: dict


def small_config(**grpo):
    config = runpy.run_path(str(ROOT / "configs" / "gym.py"))["get_config"]("smoke")
    config.grpo.update({**SETTINGS, **grpo})
    config.grpo.optimizer.update({"learning_rate": 3e-3, "warmup_fraction": 0.0})
    config.policy.update({"context": CONTEXT, "turn_tokens": 8})
    config.rollout.update({"cache_block": CONTEXT, "chunk": 256})
    config.gym.budget = 2
    return config


def deciding(state, tokenizer):
    """Let every turn begin with a panel and its letter, as no untrained policy's does."""
    tokens_BS = np.array(state.tokens_BS)
    said = tokenizer.encode(PANELS[0])[0], tokenizer.encode(LETTERS[0])[0]
    for row, turns_S in enumerate(state.turns_BS):
        for turn in range(turns_S.max() + 1):
            places = np.flatnonzero(turns_S == turn)[:2]
            tokens_BS[row, places] = said[: len(places)]
    return dataclasses.replace(state, tokens_BS=tokens_BS)


def run(folder, monkeypatch, recipes, tokenizer, grpo=None, **policy):
    """Run the GRPO stage on one device; rewards are made up, so that every group is informative."""
    config = small_config(**(grpo or {}))
    model = transformer.TransformerConfig(
        vocab_size=tokenizer.vocab_size, width=16, layers=1, heads=2, kv_heads=1, head_dim=8,
        mlp_width=32, attention_block=CONTEXT, **policy,
    )  # fmt: skip
    # Three times the usual weights, or every temperature would sample alike.
    params = jax.tree.map(lambda x: 3 * x, transformer.init(model, jax.random.key(0)))
    job = SmallJob(config, folder, make_mesh(MeshShape(), jax.devices()[:1]))
    given = {"model": model, "params": params, "tokenizer": tokenizer, "recipes": recipes}
    monkeypatch.setattr(SmallJob, "given", given)
    members = config.grpo.members
    record, play, policy_loss = (
        Record([], [], [], [], params, {}),
        grpo_rollout.play,
        objective.policy_loss,
    )

    def playing(policy, config, starts, *arguments, **options):
        record.temperatures.append(config.temperature)
        record.experiments.append([start.episode.setting.id for start in starts])
        played = play(policy, config, starts, *arguments, **options)
        random = np.random.default_rng(len(record.temperatures))
        rewards = [[float(random.normal()) for _ in row] for row in played.rewards]
        known = [[random.normal(size=x.shape) for x in row] for row in played.hindsight]
        if config.temperature and members == "enumerated":
            played = dataclasses.replace(played, state=deciding(played.state, tokenizer))
        return dataclasses.replace(played, rewards=rewards, hindsight=known)

    def losing(model, hp, params, batch):
        record.hyperparameters.append(hp)
        return policy_loss(model, hp, params, batch)

    for module in (grpo_rollout, player):
        monkeypatch.setattr(module, "play", playing)
    monkeypatch.setattr(objective, "policy_loss", losing)
    training_stages.grpo(job)
    record.rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    trained, _ = job.checkpoints("grpo").restore(
        abstract_state(
            lambda key: lora.init(model, key), lora.logical_axes(model),
            job.optimizer(config.grpo), job.mesh,
        )
    )  # fmt: skip
    record.after = lora.join(lora.split(model, params)[0], trained.params)
    assert trained.step == updates_of(config.grpo) > 0
    return record


@pytest.fixture(scope="module")
def whole(tmp_path_factory, recipes, tokenizer):
    with pytest.MonkeyPatch.context() as patch:
        return run(tmp_path_factory.mktemp("grpo"), patch, recipes, tokenizer)


def test_every_hyperparameter_of_the_config_reaches_the_loss(whole):
    (hp,) = set(whole.hyperparameters)
    for field in dataclasses.fields(GRPOHyperparameters):
        assert SETTINGS[field.name] != field.default or field.name == "members"
        assert getattr(hp, field.name) == SETTINGS[field.name]


def test_enumerated_groups_learn_from_decisions_and_the_best_policy_is_kept(
    tmp_path, monkeypatch, recipes, tokenizer
):
    grpo = {"members": "enumerated", "kept_out": 2, "evaluate_every": 2}
    grpo |= {"dual_clip": 0.0, "ratio": "token", "importance_cap": 0.0}
    record = run(tmp_path, monkeypatch, recipes, tokenizer, grpo)
    assert {hp.members for hp in record.hyperparameters} == {"enumerated"}
    rows = [row for row in record.rows if "decision_kl" in row]
    assert rows and abs(rows[0]["decision_kl"]) < 1e-5 < rows[-1]["decision_kl"]
    assert all(row["policy_loss"] == 0 for row in rows)
    # Before the first step and the third, and after the last, kept-out games are played greedily.
    assert record.temperatures.count(0.0) == 3
    looks = [row["kept_out_regret"] for row in record.rows if "kept_out_regret" in row]
    best = Checkpoints(tmp_path / "checkpoints" / "grpo_best")
    assert len(looks) == 3 and best.extra(best.latest())["regret"] == min(looks)


def test_rollouts_and_loss_have_the_configs_temperature(whole):
    assert whole.temperatures == [SETTINGS["temperature"]] * STEPS
    # Log-probabilities of another temperature, in the sampler or the loss, are far from these.
    assert max(row["logprob_gap"] for row in whole.rows) < LARGEST_GAP["float32"]


def test_every_step_plays_its_own_groups(whole, recipes):
    expected = [build_pair(recipe, FAMILIES).target.id for recipe in recipes]
    assert len(set(expected)) == GROUPS * STEPS
    played = [ids[::G] for ids in whole.experiments]
    assert played == [expected[i : i + GROUPS] for i in range(0, len(expected), GROUPS)]


def test_the_kl_is_that_against_the_policy_that_training_started_from(whole):
    first, *later = [row["kl"] for row in whole.rows]
    # One update a step: against the policy itself each would be rounding, as the first is.
    assert abs(first) < 1e-6
    assert min(later) > 1e-5


def test_sampler_and_trainer_agree_in_bfloat16(tmp_path, monkeypatch, recipes, tokenizer):
    record = run(tmp_path, monkeypatch, recipes, tokenizer, {"steps": 2}, dtype="bfloat16")
    gaps = [row["logprob_gap"] for row in record.rows]
    # bfloat16 is in use, and the bound is far below another temperature's gap.
    assert LARGEST_GAP["float32"] < max(gaps) < LARGEST_GAP["bfloat16"]


def test_lora_trains_its_factors_alone(tmp_path, monkeypatch, recipes, tokenizer):
    record = run(
        tmp_path, monkeypatch, recipes, tokenizer, {"steps": 2}, lora_rank=2,
        lora_targets=("query", "up"),
    )  # fmt: skip
    model = SmallJob.given["model"]
    (base, factors), (base_after, factors_after) = (
        lora.split(model, params) for params in (record.before, record.after)
    )
    jax.tree.map(np.testing.assert_array_equal, base, base_after)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), factors, factors_after)
    assert min(jax.tree.leaves(moved)) > 1e-4
    assert max(row["logprob_gap"] for row in record.rows) < LARGEST_GAP["float32"]
    assert record.rows[-1]["kl"] > 1e-5
    # In the first update the reference is the policy, so that its gradient is the objective's.
    assert all(row["gradient_norm"] > 1e-4 for row in record.rows)


def test_the_fields_of_rollouts_reach_them(tmp_path, monkeypatch, recipes, tokenizer):
    config = small_config(off_policy_steps=1, player_replicas=1)
    config.rollout.update({"rows": G, "ended_share": 0.5, "cache_doubling": True, "drafts": 2})
    config.rollout.processes = 2
    config.grpo.share_prefixes = True
    mesh = make_mesh(MeshShape(data=2), jax.devices()[:2])
    given = {"model": None, "params": None, "tokenizer": tokenizer, "recipes": recipes}
    monkeypatch.setattr(SmallJob, "given", given)
    made, trained = [], []
    monkeypatch.setattr(
        training_stages, "Workers", lambda count, tokenizer: contextlib.nullcontext(count)
    )
    monkeypatch.setattr(training_stages, "make_rollout", lambda *given: made.extend(given))
    monkeypatch.setattr(training_stages, "train_grpo", lambda *given: trained.extend(given))
    training_stages.grpo(SmallJob(config, tmp_path, mesh))
    play, layout, (site, *_, players) = made[2], made[4], trained[6:]
    assert play.drafts == 2 and trained[2].share_prefixes and layout.workers == 2
    assert play.ended_share == 0.5 and play.sampler.cache_doubling and layout.rows == G
    assert players is layout.mesh and players.devices.flat[0] == mesh.devices.flat[0]
    assert [*site.mesh.devices.flat] == [*mesh.devices.flat][1:]


def test_a_schedule_that_decays_ends_with_the_last_update(tmp_path):
    """A rollout of 8 rows in minibatches of 3, two epochs: six updates."""
    config = small_config(minibatch_rows=3, epochs=2)
    rows = np.arange(GROUPS * G)
    columns = [rows[:, None]] * (len(dataclasses.fields(batches.UpdateBatch)) - 6)
    settings = batches.GRPOLoopConfig(STEPS, G, minibatch_rows=3, epochs=2)
    a_rollout = len(
        list(batches.minibatches(batches.UpdateBatch(*columns), rows, settings, seed=0))
    )
    assert a_rollout == 6 and updates_of(config.grpo) == 6 * STEPS
    config.grpo.optimizer.update({"decay": "linear", "final_fraction": 0.0, "clip_norm": 0.0})
    job = SmallJob(config, tmp_path, make_mesh(MeshShape(), jax.devices()[:1]))
    optimizer, weight = job.optimizer(config.grpo), {"w": np.ones(1, np.float32)}
    state, rates = optimizer.init(weight), []
    for _ in range(6 * STEPS):
        # Adam's step on a constant gradient is the learning rate.
        update, state = optimizer.update(weight, state, weight)
        rates.append(-float(update["w"][0]) / config.grpo.optimizer.learning_rate)
    wanted = np.minimum(1, np.arange(6 * STEPS, 0, -1) / (6 * STEPS - 1))
    np.testing.assert_allclose(rates, wanted, rtol=1e-3)
