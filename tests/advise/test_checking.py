"""A table asked about as a stranger's file gives the regrets of the evaluation."""

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


def test_calibrated_intervals_cover_as_much_as_they_say(checked):
    random = np.random.default_rng(0)
    errors = tuple(
        (tried, float(e), 1.0) for tried in (False, True) for e in random.normal(size=500)
    )
    made = [checking.Checked(f"{s}/pretraining/a", (0.0,), errors) for s in ("one", "two")]
    calibration = checking.calibrated(made, "the tests")
    for shares in checking.coverage(made, calibration).values():
        assert shares == pytest.approx(COVERAGES, abs=0.01)
    assert calibration.before == pytest.approx(Calibration.normal().before, rel=0.15)
    assert checked.errors and all(deviation > 0 for _, _, deviation in checked.errors)
