"""What is known of a target comes from its trials alone, and the harness keeps the accounts."""

import dataclasses

import numpy as np
import pytest

from autollm_jax.baselines import BASELINES, Problem
from autollm_jax.baselines.base import evidence_flops
from autollm_jax.evaluation.runner import Terms, evaluate, play_method
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.splits import Split

from .conftest import bowl, limited, mixed

METHODS = sorted(BASELINES)
BUDGET = 4


def scrambled(target):
    """Return the same target with other numbers for outcomes, of another scale and sign."""
    outcomes_R = 1e3 * np.random.default_rng(1).normal(size=len(target.configurations))
    outcomes_R = np.where(np.isfinite(target.outcomes.values_R), outcomes_R, np.nan)
    return dataclasses.replace(target, outcomes=target.outcomes.with_values(outcomes_R))


CASES = {
    "bowl": lambda: (bowl(4e8, 16e9, "mid"), (bowl(1e8, 1e9), bowl(2e8, 4e9, shift=2))),
    "mixed": lambda: (mixed("mid", 1e7), (mixed("low", 1e6), mixed("low", 2e6))),
    "limited": lambda: (limited("mid", 1e7), (limited(),)),
    "no evidence": lambda: (bowl(4e8, 16e9, "mid"), ()),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_the_first_trial_is_the_same_whatever_the_target_holds(method, case):
    target, evidence = CASES[case]()
    assert (scrambled(target).outcomes.values_R != target.outcomes.values_R).any()
    asked = [
        BASELINES[method](Problem(t.setting, evidence, BUDGET), 3).ask()
        for t in (target, scrambled(target))
    ]
    assert asked[0] == asked[1]


@pytest.mark.parametrize("method", METHODS)
def test_later_trials_follow_what_was_told_and_not_what_the_target_holds(method):
    """Told the same outcomes, a method asks the same, though the table holds others."""
    target, evidence = CASES["bowl"]()
    asked = []
    for held in (target, scrambled(target)):
        player = BASELINES[method](Problem(held.setting, evidence, BUDGET), 3)
        teller = Episode(target, evidence, BUDGET)
        while not teller.done:
            player.tell(teller.exec_config(player.ask()))
        asked.append([trial.config for trial in teller.trials])
    assert asked[0] == asked[1]


@pytest.mark.parametrize("method", METHODS)
def test_no_method_changes_its_evidence(method):
    target, evidence = CASES["bowl"]()
    before = [(e.outcomes.values_R.copy(), e.units_RD.copy(), dict(e.default)) for e in evidence]
    player = BASELINES[method](Problem(target.setting, evidence, BUDGET), 0)
    player.ask()
    for (outcomes_R, units_RD, default), experiment in zip(before, evidence, strict=True):
        np.testing.assert_array_equal(outcomes_R, experiment.outcomes.values_R)
        np.testing.assert_array_equal(units_RD, experiment.units_RD)
        assert default == experiment.default


def test_evidence_default_and_budget_are_the_harness_own(tmp_path):
    """Every baseline is built by the runner, of one problem; rows are the runner's."""
    target, evidence = CASES["bowl"]()
    elsewhere = bowl(1e8, 1e9, source="other")
    problems = {}

    def watch(name):
        def make(problem, seed):
            problems.setdefault(name, []).append((problem, seed))
            return BASELINES[name](problem, seed)

        return play_method(make)

    split = Split((*evidence, elsewhere), (target,))
    results = evaluate(
        {name: watch(name) for name in METHODS}, split, Terms(BUDGET, (0, 5)),
        tmp_path / "results.parquet", tables={}, progress=False,
    ).to_pylist()  # fmt: skip
    assert set(problems) == set(METHODS)
    for name in METHODS:
        assert [seed for _, seed in problems[name]] == [0, 5]
        for problem, _ in problems[name]:
            assert problem.setting is target.setting and problem.setting.default == target.default
            assert [e.id for e in problem.evidence] == [e.id for e in evidence]
            assert problem.budget == BUDGET
        trials = [row["trial"] for row in results if row["method"] == name]
        assert trials == [*range(1, BUDGET + 1)] * 2
    valid = [row for row in results if row["valid"]]
    regrets = [target.outcomes.regret(row["outcome"], row["status"]) for row in valid]
    assert [row["regret"] for row in valid] == pytest.approx(regrets)


@pytest.mark.parametrize("method", METHODS)
def test_every_methods_evidence_has_a_price(method):
    target, evidence = CASES["bowl"]()
    problem = Problem(target.setting, evidence, BUDGET)
    player = BASELINES[method](problem, 0)
    whole = sum(len(e.configurations) * e.fidelity.flops for e in evidence)
    assert 0 < evidence_flops(player, problem) <= whole * (1 + 1e-9)
