import json
import runpy
from pathlib import Path

import pytest

from autollm_jax.errors import UserError
from autollm_jax.ground_truth.data_mixture import mixtures
from autollm_jax.ground_truth.tasks import TASKS, make_plan
from autollm_jax.gym.spaces import Space

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def config():
    return runpy.run_path(str(CONFIGS / "gym.py"))["get_config"]().ground_truth.to_dict()


@pytest.mark.parametrize("task", TASKS)
def test_the_shipped_plan_is_as_large_as_promised(config, task):
    """Six settings at mid and four at high, and three seeds on a third of the configurations."""
    plan = make_plan(config, task)
    settings = {"low": set(), "mid": set(), "high": set()}
    for name, entry in plan.experiments.items():
        facts = dict(entry["context"])
        facts.pop("objective", None)  # several objectives of the same runs are one setting
        limit = entry.get("limit")
        settings[entry["fidelity"]["level"]].add(json.dumps([facts, limit], sort_keys=True))
        seeds = [c.run.seed for c in plan.cells if c.experiment == name and not c.infeasible]
        assert seeds.count(0) >= 12
        assert seeds.count(1) == seeds.count(2) >= seeds.count(0) / 4
    sizes = {level: len(found) for level, found in settings.items()}
    assert sizes["low"] >= 4 and sizes["mid"] >= 6 and sizes["high"] >= 4
    assert sizes["low"] + sizes["mid"] >= 6


@pytest.mark.parametrize("task", TASKS)
def test_every_cell_and_default_is_in_its_space(config, task):
    plan = make_plan(config, task)
    spaces = {name: Space.from_json(entry["space"]) for name, entry in plan.experiments.items()}
    for cell in plan.cells:
        spaces[cell.experiment].validate(cell.config)
    for name, entry in plan.experiments.items():
        default = spaces[name].validate(entry["default"])
        assert len(entry["default_origin"]) > 20
        limit = entry.get("limit")
        (cell, *_) = [
            c
            for c in plan.cells
            if c.experiment == name and spaces[name].validate(c.config) == default
        ]
        assert limit is None or cell.extra["parameters"] <= limit["at_most"]


@pytest.mark.parametrize("task", TASKS)
def test_groups_hold_each_run_once_and_are_small(config, task):
    plan = make_plan(config, task)
    groups = plan.groups()
    names = [run.name for runs in groups for run in runs]
    assert len(names) == len(set(names))
    assert set(names) == {c.run.name for c in plan.cells if not c.infeasible}
    assert max(map(len, groups)) <= 20
    assert all(len({run.group for run in runs}) == 1 for runs in groups)


def test_levels_follow_each_other_and_within_one_the_groups_of_a_program(config):
    plan = make_plan(config, "architecture")
    level_of = {}  # a run of two levels is trained with the cheaper one
    for cell in plan.cells:
        level = plan.experiments[cell.experiment]["fidelity"]["level"]
        level_of.setdefault(cell.run.name, level)
    order = [(level_of[runs[0].name], runs[0].program) for runs in plan.groups()]
    changes = [a for a, b in zip(order, [*order[1:], ("", "")], strict=True) if a != b]
    assert len(changes) == len(set(order)) < len(order)
    assert list(dict.fromkeys(level for level, _ in order)) == ["low", "mid", "high"]


def test_a_hyperparameter_with_one_choice_is_a_fact_and_each_budget_an_experiment(config):
    fields = config["grpo"] | {"choices": config["grpo"]["choices"] | {"clip_range": (0.2,)}}
    fields["low"] = fields["low"] | {"problems": ("sorting",), "steps": (5, 9)}
    fields["low"]["backbone_steps"] = {"sorting": 3}
    plan = make_plan(config | {"grpo": fields}, "grpo")
    low = {n: e for n, e in plan.experiments.items() if e["fidelity"]["level"] == "low"}
    assert list(low) == ["sorting_w32_s5", "sorting_w32_s9"]
    for name, entry in low.items():
        dimensions = [d["name"] for d in entry["space"]["dimensions"]]
        assert "clip_range" not in dimensions and len(dimensions) == 4
        assert entry["context"]["clip_range"] == 0.2 and "clip_range" not in entry["default"]
        cells = [cell for cell in plan.cells if cell.experiment == name]
        assert {cell.run.steps for cell in cells} == {entry["context"]["steps"]}
        assert {cell.run.clip_range for cell in cells} == {0.2}


def test_the_task_configs_name_their_task():
    for task in TASKS:
        config = runpy.run_path(str(CONFIGS / f"{task}.py"))["get_config"]()
        assert config.gym.tasks == (task,)


def test_an_unknown_task_is_refused(config):
    with pytest.raises(UserError, match="no task 'cooking'.*architecture"):
        make_plan(config, "cooking")


def test_levels_share_some_mixtures_and_not_others(mixture_plan):
    def of(level):
        name = {"low": "w16_l1_d0k_mean", "mid": "w16_l1_d1k_mean"}[level]
        cells = [c for c in mixture_plan.cells if c.experiment == name]
        return {tuple(c.config["mixture"].values()) for c in cells}

    assert len(of("low")) == len(of("mid")) == 6
    assert len(of("low") & of("mid")) == 4


def test_mixtures_are_whole_percents_that_sum_to_one():
    natural = {"a": 0.5, "b": 0.3, "c": 0.1, "d": 0.06, "e": 0.04}
    drawn = mixtures(natural, 40, seed=3)
    assert drawn[0] == natural
    assert len({tuple(m.values()) for m in drawn}) == 40
    for mixture in drawn:
        percents = [100 * weight for weight in mixture.values()]
        assert sum(percents) == pytest.approx(100, abs=1e-9)
        assert all(p == pytest.approx(round(p), abs=1e-9) for p in percents)


def test_each_objective_is_an_experiment_of_its_own(mixture_plan):
    metrics = {
        entry["context"]["objective"]: entry["objective"]["metric"]
        for entry in mixture_plan.experiments.values()
    }
    assert metrics["mean"] == "loss" and metrics["cats"] == "loss.cats" and len(metrics) == 6


def test_each_choice_of_grpo_has_repeated_configurations():
    config = runpy.run_path(str(CONFIGS / "gym.py"))["get_config"]().ground_truth.to_dict()
    plan = make_plan(config, "grpo")
    for name, entry in plan.experiments.items():
        cells = [cell for cell in plan.cells if cell.experiment == name]
        repeated = [cell.config for cell in cells if cell.run.seed == 1]
        assert 3 * len(repeated) == sum(cell.run.seed == 0 for cell in cells)
        for dimension in Space.from_json(entry["space"]).dimensions:
            for choice in dimension.choices:
                share = sum(config[dimension.name] == choice for config in repeated)
                assert abs(share - len(repeated) / len(dimension.choices)) <= 1
