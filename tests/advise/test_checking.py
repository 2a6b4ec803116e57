"""A table asked about as a stranger's file gives the regrets of the evaluation."""

import dataclasses

import numpy as np
import pytest

from autollm_jax.advise import checking
from autollm_jax.advise.decider import Panels
from autollm_jax.advise.intervals import COVERAGES, Calibration
from autollm_jax.baselines import BASELINES, Problem
from autollm_jax.gym.environment import Episode


@pytest.fixture(scope="module", params=["family", "architectures", "mixtures"])
def game(request):
    *cheap, target = request.getfixturevalue(request.param)
    return target, tuple(cheap)


@pytest.fixture(scope="module")
def checked(game):
    return checking.check(*game, Panels(), Calibration.normal(), budget=3)


def test_its_regrets_are_near_those_of_the_evaluation(game, checked):
    target, cheap = game
    episode = Episode(target, cheap, 3)
    method = BASELINES["panel"](Problem(episode.setting, cheap, 3), 0)
    while not episode.done:
        method.tell(episode.exec_config(method.ask()))
    assert checked.regrets[-1] == pytest.approx(episode.best_regret(), abs=0.05)


def games(deviations, count=500):
    """Games of sources whose errors have these deviations, by source and state of knowledge."""
    random = np.random.default_rng(0)
    return [
        checking.Checked(
            f"{source}/pretraining/a",
            (0.0,) * 5,
            tuple(
                (state, float(error), 1.0)
                for state, deviation in own.items()
                for error in random.normal(scale=deviation, size=count)
            ),
        )
        for source, own in deviations.items()
    ]


def test_calibrated_intervals_cover_as_much_as_they_say(checked):
    own = {"before": 1.0, "after": 1.0}
    made = games({"one": own, "two": own})
    calibration = checking.calibrated(made, {}, "the tests")
    for state in own:
        shares = checking.coverage(made, calibration, (state,))
        assert shares == pytest.approx(COVERAGES, abs=0.01)
    assert calibration.before == pytest.approx(Calibration.normal().before, rel=0.15)
    assert checked.errors and all(deviation > 0 for _, _, deviation in checked.errors)


def test_each_state_of_knowledge_has_quantiles_of_its_own():
    own = {"before": 1.0, "after": 5.0}
    made = games({"one": own, "two": own})
    calibration = checking.calibrated(made, {"one": [3.0, 3.0], "two": [3.0]}, "the tests")
    assert calibration.after[0] == pytest.approx(5 * calibration.before[0], rel=0.2)
    assert calibration.untested == (3.0, 3.0)
    assert checking.coverage(made, calibration, ("untested",)) is None
    both = checking.coverage(made, calibration, ("before", "after"))
    assert both == pytest.approx(COVERAGES, abs=0.01)


def test_each_source_weighs_alike():
    many = {"one": [1.0] * 98 + [2.0, 2.0], "two": [9.0] * 2}
    assert checking.weighted_quantiles(many) == (9.0, 9.0)  # half of the weight
    assert checking.weighted_quantiles({}) == Calibration.normal().before


def test_a_source_that_differs_is_covered_less_by_the_quantiles_of_the_others():
    alike = list(np.linspace(0, 1, 101))
    other = [9 * ratio for ratio in alike]
    assert checking.coverage_elsewhere({"a": alike, "b": alike}) == pytest.approx(
        COVERAGES, abs=0.02
    )
    left_out = checking.coverage_elsewhere({"a": alike, "b": alike, "c": other})
    assert left_out[0] == pytest.approx((1 + 1 + 0.8 / 9) / 3, abs=0.02)


def test_levels_of_cheap_experiments_tell_how_far_untested_ones_are_off(family):
    *cheap, target = family
    ratios = checking.untested_levels(family)
    assert list(ratios) == [target.source] and len(ratios[target.source]) >= len(cheap)
    assert all(np.isfinite(ratio) and ratio >= 0 for ratio in ratios[target.source])
    assert checking.untested_levels(family[:1]) == {}  # nothing cheaper


def test_runs_of_few_sizes_leave_the_level_untested_and_its_interval_wide(game):
    target, cheap = game
    alone = [e for e in cheap if e.fidelity == cheap[0].fidelity]
    wide = dataclasses.replace(Calibration.normal(), untested=(9.0, 99.0))
    few = checking.check(target, alone, Panels(), wide, budget=1)
    assert {state for state, _, _ in few.errors} == {"untested"}
    assert checking.coverage([few], wide, ("untested",))[1] == 1.0


def test_the_summary_tells_coverage_by_moment():
    own = {"untested": 1.0, "before": 1.0, "after": 3.0}
    made = games({"one": own})
    summary = checking.summarised(made, Calibration.normal())
    assert summary["experiments"] == 1 and summary["regret"] == {"1": 0.0, "3": 0.0, "5": 0.0}
    cover = summary["coverage"]
    assert cover["before"] == pytest.approx(COVERAGES, abs=0.03)
    assert cover["before"][0] == pytest.approx((cover["few_sizes"][0] + cover["more_sizes"][0]) / 2)
    assert cover["after"][0] < 0.5
