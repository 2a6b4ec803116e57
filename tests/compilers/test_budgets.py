import dataclasses
import json

import pytest

from autollm_jax.compilers import budgets
from autollm_jax.compilers.findings import Collective, Findings
from autollm_jax.errors import UserError

FOUND = Findings(
    temporary_bytes=1000,
    collectives=(Collective("all-gather", 2, 500, 0, 0),),
    loop_parameter_count=0,
    loop_parameter_bytes=0,
    f32_activation_bytes=300,
    f32_activation="f32[75]",
    logits_bytes=200,
    score_bytes=0,
    scores="",
    cycles=0,
    loop_cycles=0,
    kernels=0,
)
MADE_WITH = {"mesh": "fsdp=4"}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "budgets.json"
    budgets.write(path, "tpu:v5e:4x4", MADE_WITH, {"grpo decode": FOUND})
    return path


def compared(path, compiler="tpu:v5e:4x4", made_with=MADE_WITH, step="grpo decode", **changed):
    found = dataclasses.replace(FOUND, **changed)
    return budgets.exceeded(path, compiler, made_with, {step: found})


def test_a_plan_keeps_its_own_budgets_and_a_little_more(path):
    assert compared(path) == []
    assert compared(path, temporary_bytes=1019) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"temporary_bytes": 1050}, "temporary memory take 1,050 bytes, 5.0% more than the budget"),
        ({"f32_activation_bytes": 600}, "largest f32 activation take 600 bytes, 100.0% more than"),
        ({"logits_bytes": 300}, "largest array over the vocabulary take 300 bytes, 50.0% more"),
        ({"score_bytes": 4096}, "array of T x T scores take 4,096 bytes, over the budget of 0"),
        ({"loop_parameter_bytes": 1}, "inside the decode loop take 1 bytes, over the budget of 0"),
        ({"collectives": (Collective("all-reduce", 1, 511, 0, 0),)}, "collectives take 511 bytes"),
    ],
)
def test_a_step_over_its_budget_is_named_with_figure_and_budget(path, changed, said):
    (line,) = compared(path, **changed)
    assert line.startswith("tpu:v5e:4x4, grpo decode: ") and said in line and str(path) in line


def test_budgets_of_several_compilers_lie_in_one_file(path):
    budgets.write(path, "gpu:h100:1x8", MADE_WITH, {"grpo decode": FOUND})
    assert list(json.loads(path.read_text())) == ["gpu:h100:1x8", "tpu:v5e:4x4"]
    assert compared(path) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"compiler": "gpu:h100:1x8"}, "no budgets of gpu:h100:1x8"),
        ({"step": "grpo append"}, "no budget of tpu:v5e:4x4, grpo append"),
        ({"made_with": {"mesh": "fsdp=8"}}, "made with mesh=fsdp=4, and this plan has mesh=fsdp=8"),
    ],
)
def test_what_cannot_be_compared_says_how_to_make_budgets(path, given, said):
    with pytest.raises(UserError, match="config.plan.write_budgets=True") as error:
        compared(path, **given)
    assert said in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        compared(tmp_path / "none.json")
