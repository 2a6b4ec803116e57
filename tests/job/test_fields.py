"""Every field of a config has a rule, and a value that breaks it is refused in one line."""

import math
import re
import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from autollm_jax.errors import UserError
from autollm_jax.job import constraints, fields

CONFIGS = sorted(Path("configs").glob("*.py"))
CONFIG = runpy.run_path("configs/gym.py")["get_config"]()
LEAVES = dict(fields.flatten(CONFIG.to_dict()))


def changed(**changes):
    """Return the main job's config with fields changed; `__` stands for a dot."""
    config = CONFIG.copy_and_resolve_references()
    for name, value in changes.items():
        put(config, name.replace("__", "."), value)
    return config


def put(config, path, value):
    *sections, name = path.split(".")
    for section in sections:
        config = config[section]
    with config.ignore_type():
        config[name] = value


def refused(config):
    """Return the one line that refuses a config."""
    with pytest.raises(UserError) as error:
        constraints.check(fields.checked(config))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_leaf_of_every_config_has_a_rule_that_accepts_it(path):
    module = runpy.run_path(str(path))
    for variant in module.get("VARIANTS", ("", "smoke")):
        config = module["get_config"](variant)
        for name, value in fields.flatten(config.to_dict()):
            rule = fields.rule_of(name)
            assert rule is not None, f"config.{name} has no rule"
            assert rule.holds(value), f"config.{name}={value!r} is not {rule.accepted}"
        assert fields.checked(config).to_dict() == config.to_dict()
        constraints.check(config)


def test_every_rule_is_of_a_field():
    def fits(pattern):
        return any(
            re.fullmatch(pattern.replace(".", r"\.").replace("*", "[^.]+"), x) for x in LEAVES
        )

    stale = [pattern for pattern in fields.RULES if not fits(pattern)]
    assert stale == ["policy.shape.*"]  # empty in the main job


def test_the_fields_of_its_shape_reach_the_policy():
    sizes = dict(layers=5, width=80, short_conv=5, rope_fraction=0.5, row_logits=4096)
    shape = constraints.policy_shape(changed(**{f"policy__{k}": v for k, v in sizes.items()}))
    assert {name: getattr(shape, name) for name in sizes} == sizes


# Values of no field: another type, or no number.
NUMBERS = [math.nan, math.inf, -math.inf, "3", None, (1,), ConfigDict({"a": 1})]
# In a field of floats ml_collections makes 1.0 of True.
NONSENSE = {int: [*NUMBERS, True, 0.5], float: NUMBERS, bool: ["True", 1, None]}
NONSENSE |= {str: [3, None, True, ("a", 3)], tuple: [3, (), (None,), ("no such name",), "1,x"]}


@pytest.mark.parametrize("path", LEAVES)
def test_nonsense_is_refused_in_every_field(path):
    for value in NONSENSE[type(LEAVES[path])]:
        config = CONFIG.copy_and_resolve_references()
        put(config, path, value)
        line = refused(config)
        assert line.startswith(f"config.{path}"), line
        assert "accepted is" in line or "no such field" in line


@pytest.mark.parametrize(
    ("path", "value", "accepted"),
    [
        ("grpo.normalisation", "mean", "one of std, none"),
        ("grpo.temperature", 0.0, "a finite number over 0"),
        ("grpo.steps", -1, "a whole number from 0 on"),
        ("grpo.save_every", 0, "a whole number from 1 on"),
        ("grpo.optimizer.learning_rate", -1e-4, "a finite number from 0 on"),
        ("grpo.optimizer.decay", "cosin", "one of constant, cosine, linear, wsd"),
        ("distill.optimizer.b2", 1.0, "a finite number from 0 below 1"),
        ("distill.dtype", "float16", "one of float32, bfloat16"),
        ("distill.row_length", 0, "a whole number from 2 on"),
        ("policy.short_conv", 1, "a whole number from 2 on, or 0"),
        ("policy.cache_dtype", "int8", 'one of "", float32, bfloat16'),
        ("grpo.ratio", "word", "one of token, sequence"),
        ("grpo.dual_clip", 1.0, "a finite number over 1, or 0"),
        ("policy.activations", "int8", 'one of "", float32, bfloat16'),
        ("policy.attention", "flash", "one of auto, blocks, splash, triton"),
        ("policy.remat", "all", "one of none, attention, outputs, weights, layer, offload"),
        ("grpo.members", "all", "one of enumerated, sampled"),
        ("simulate.softness", 0.0, "a finite number over 0"),
        ("evaluation.methods", "random,grid", "names of agent, distilled, zero_shot"),
        ("evaluation.seeds", (0, -1), "each a whole number from 0 to"),
        ("evaluation.seeds", (0, 0), "each once"),
        ("gym.tasks", ("grpo", "poetry"), "names of architecture, data_mixture, grpo"),
        ("gym.invalid_penalty", -0.1, "a finite number from 0 on"),
        ("gym.roots", "", "one or more paths"),
        ("mesh.fsdp", 0, "a whole number from 1 on, or -1"),
        ("ground_truth.share", "3/3", "i/n with 0 <= i < n"),
        ("ground_truth.share", "2", "i/n with 0 <= i < n"),
        ("ground_truth.source", "../x", "a name without /"),
        ("ground_truth.pretraining.low.tokens", (16, 0), "each a whole number from 1 on"),
        ("ground_truth.pretraining.low.models", ("16x0",), "WIDTHxLAYERS such as 64x2"),
        ("protocol", "test", "one of dev, final"),
        ("seed", -1, "a whole number from 0 to"),
        ("stress.keep", 0.0, "a finite number over 0 to 1"),
    ],
)
def test_a_line_names_field_value_and_what_is_accepted(path, value, accepted):
    line = refused(changed(**{path.replace(".", "__"): value}))
    shown = value if isinstance(value, str) and value else repr(value)
    assert line.startswith(f"config.{path}={shown}: accepted is ") and accepted in line


def test_a_field_that_does_not_exist_and_one_that_is_missing_are_named():
    assert refused(changed(grpo__stepz=3)).startswith("config.grpo.stepz: no such field")
    config = CONFIG.copy_and_resolve_references()
    del config.grpo.steps
    assert refused(config).startswith("config.grpo.steps is missing; accepted is a whole number")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policy__kv_heads": 3}, "config.policy: heads=2 must be a multiple of kv_heads=3"),
        ({"policy__head_dim": 15}, "config.policy: head_dim=15 must be even"),
        ({"policy__turn_tokens": 800}, "config.policy.turn_tokens=800.*config.policy.context=800"),
        ({"policy__vocab_size": 260}, "config.policy.vocab_size=260: accepted is a number over"),
        ({"policy__weights": "somewhere"}, "config.grpo.members=enumerated.*accepted is sampled"),
        ({"policy__lora_rank": 4}, "config.policy.lora_rank=4.*config.policy.weights"),
        ({"grpo__members": "sampled", "grpo__group_size": 1}, "group_size=1.*2 or more"),
        ({"grpo__ratio": "sequence"}, "grpo.ratio=sequence: enumerated.*accepted is token"),
        ({"grpo__dual_clip": 3.0}, "grpo.dual_clip=3.0: enumerated.*accepted is 0"),
        ({"grpo__importance_cap": 2.0}, "grpo.importance_cap=2.0: enumerated.*accepted is 0"),
        (
            {"rollout__drafts": 3},
            "config.rollout.drafts=3 needs a policy without short convolutions",
        ),
        (
            {"grpo__members": "sampled", "grpo__group_size": 4, "rollout__rows": 6},
            "config.rollout.rows=6: accepted is a multiple of config.grpo.group_size=4",
        ),
        ({"evaluation__methods": "zero_shot"}, "zero_shot.*config.policy.weights"),
        ({"mesh__fsdp": -1}, "config.mesh: data=-1, fsdp=-1"),
        (
            {"gym__tasks": ("grpo",), "gym__trained_tasks": "pretraining"},
            "trained_tasks.*tasks=grpo",
        ),
        ({"ground_truth__language_model__vocab_size": 200}, "language_model.vocab_size=200"),
        (
            {"ground_truth__grpo__setup__minibatch_rows": 48},
            "config.ground_truth.grpo.setup.minibatch_rows=48: accepted is a divisor",
        ),
        (
            {"ground_truth__architecture__low__kv_heads": (3,)},
            "config.ground_truth.architecture: heads=2 must be a multiple of kv_heads=3",
        ),
        (
            {"ground_truth__architecture__low__limits": (5,)},
            "config.ground_truth.architecture: .*no default under the limit of 5",
        ),
        (
            {"plan__compiler": "tpu:v9:4x4"},
            "config.plan.compiler=tpu:v9:4x4: accepted is fake .*, tpu:KIND.*, or gpu:h100:",
        ),
        ({"plan__steps": "grpo,decode"}, "config.plan.steps=grpo,decode: .*grpo decode"),
        (
            {"plan__write_budgets": True},
            "config.plan.write_budgets=True: name their file in config.plan.budgets",
        ),
        (
            {"plan__budgets": "budgets.json"},
            "config.plan.budgets=budgets.json: .*name one in config.plan.compiler",
        ),
    ],
    ids=str,
)
def test_fields_that_contradict_each_other_are_refused(changes, words):
    assert re.search(words, refused(changed(**changes)))


@pytest.mark.parametrize(
    "given", ["grpo,pretraining", "grpo, pretraining", ["grpo", "pretraining"]]
)
def test_names_are_a_text_with_commas_or_a_list(given):
    config = fields.checked(changed(gym__tasks=given, gym__trained_tasks=given, gym__roots=given))
    assert config.gym.tasks == ("grpo", "pretraining")
    assert config.gym.trained_tasks == config.gym.roots == "grpo,pretraining"


# What `--config.gym.tasks=grpo,pretraining` becomes in ml_collections.
def test_a_tuple_of_one_text_with_a_comma_is_two_names():
    assert fields.checked(changed(gym__tasks=("grpo,pretraining",))).gym.tasks == (
        "grpo",
        "pretraining",
    )


@pytest.mark.parametrize(
    "path", ["gym.roots", "ground_truth.root", "policy.weights", "pool.workdirs"]
)
def test_a_tilde_is_the_home_folder_in_every_path(path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    config = changed(**{path.replace(".", "__"): "~/folder"})
    found = dict(fields.flatten(fields.checked(config).to_dict()))
    assert found[path] == "/home/somebody/folder"


def test_every_field_that_is_a_path_knows_the_tilde():
    """By its name or its default: a new path field has to be given a path's rule."""
    like_paths = [n for n in LEAVES if re.search(r"\.(roots?|weights|workdirs|path|folder)$", n)]
    for path in like_paths:
        assert "path" in fields.RULES[path].accepted, path


def test_a_config_that_was_checked_is_a_copy():
    config = changed(gym__tasks="grpo")
    assert fields.checked(config).gym.tasks == ("grpo",)
    assert config.gym.tasks == "grpo"


def test_traced_steps_are_steps_of_a_stage_that_trains():
    for steps in ("10", "3:3", "5:2", "a:b", ":4"):
        assert "config.profile.steps" in refused(changed(profile__steps=steps))
    constraints.check(fields.checked(changed(profile__steps="10:13")))
    assert "config.grpo.steps=8" in refused(changed(profile__steps="50:60", profile__stage="grpo"))
    constraints.check(fields.checked(changed(profile__steps="50:60")))  # distillation has them
    assert "profile.stage" in refused(changed(profile__stage="evaluate"))
