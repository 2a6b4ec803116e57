"""A small job planned by the accelerators' own compilers, where they are installed."""

import importlib.util
import json

import pytest

from autollm_jax.errors import UserError
from autollm_jax.job import planning
from tests.compilers.test_targets import MODULES
from tests.job.test_planning import small

STEPS = ("distill update", "evaluate decode")


def planned(folder, compiler, **settings):
    """Plan two steps of a small job on fsdp=2, tensor=4."""
    if not importlib.util.find_spec(MODULES[compiler]):
        pytest.skip(f"{MODULES[compiler]} is not installed")
    config = small(remat="layer")
    config.mesh.update({"data": 2 if compiler.endswith(":2") else 1, "fsdp": 2, "tensor": 4})
    config.plan.update({"compiler": compiler, "steps": ",".join(STEPS), **settings})
    planning.plan(planning.start(config, str(folder)))
    made = json.loads((folder / "plan.json").read_text())
    return {step["name"]: step for step in made["steps"]}


@pytest.mark.parametrize("compiler", ["tpu:v5e:2x4", "tpu:v5e:2x4:2", "gpu:h100:1x8"])
def test_a_plan_says_what_the_compiler_made_of_each_step(tmp_path, compiler, capsys):
    steps = planned(tmp_path, compiler)
    printed = capsys.readouterr().out
    assert list(steps) == list(STEPS)
    for name, step in steps.items():
        found = step["findings"]
        assert 0 <= found["temporary_bytes"] < step["total"] > step["parameters"]
        assert found["collective_bytes"] == sum(each["bytes"] for each in found["collectives"]) > 0
        assert f"\n{name}: " in printed
        if compiler.startswith("tpu"):
            estimates = step["estimates"]
            recomputed = estimates["mfu"] < estimates["utilization"]
            assert recomputed == (name == "distill update") and 0 < estimates["mfu"] < 1
            assert found["cycles"] > found["loop_cycles"]
        else:
            assert step["estimates"] is None and found["cycles"] == 0
    # f32 rows of logits are an update's; 256 tokens of vocabulary over four devices.
    assert steps["distill update"]["findings"]["logits_bytes"] >= 4 * 127 * 256 / 4
    assert steps["distill update"]["findings"]["loop_parameter_count"] == 0
    if compiler.startswith("tpu"):
        assert steps["evaluate decode"]["findings"]["loop_cycles"] > 0


def test_a_step_over_its_budget_fails_the_stage(tmp_path, capsys):
    compiler, budgets = "gpu:h100:1x8", tmp_path / "budgets.json"
    planned(tmp_path, compiler, budgets=str(budgets), write_budgets=True)
    planned(tmp_path, compiler, budgets=str(budgets))
    assert "2 steps keep the budgets" in capsys.readouterr().out
    values = json.loads(budgets.read_text())
    values[compiler]["steps"]["distill update"]["temporary_bytes"] //= 2
    budgets.write_text(json.dumps(values))
    with pytest.raises(UserError, match="over budget.*distill update: temporary memory.*more than"):
        planned(tmp_path, compiler, budgets=str(budgets))
