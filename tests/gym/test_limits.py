"""Parameter limits: what is infeasible is known before any run, and the table must agree."""

import json
import math

import numpy as np
import pytest

from autollm_jax.errors import UserError
from autollm_jax.gym import tables
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.gym.spaces import Dimension, Space

WIDTHS = (64, 128, 256)
SPACE = Space((Dimension("width", "ordinal", WIDTHS),))


def meta(*limits):
    return {
        "format": 1,
        "source": "test",
        "task": "architecture",
        "experiments": {
            f"p{limit}": {
                "context": {},
                "fidelity": {"level": "low", "parameters": 1, "tokens": 2, "flops": 12},
                "space": SPACE.to_json(),
                "objective": {"metric": "loss", "goal": "minimize"},
                "default": {"width": 64},
                "default_origin": "the tests",
            }
            | ({"limit": {"quantity": "parameters", "at_most": limit}} if limit else {})
            for limit in limits
        },
    }


def rows(limit, **changes):
    return [
        {
            "experiment": f"p{limit}",
            "config.width": width,
            "parameters": 10 * width,
            "loss": None if limit and 10 * width > limit else 3.0 - width / 256,
            "flops": 12.0,
            "seconds": None,
            "seed": 0,
            "status": "infeasible" if limit and 10 * width > limit else "ok",
        }
        | (changes if width == 128 else {})
        for width in WIDTHS
    ]


@pytest.fixture
def experiments(tmp_path):
    tables.write_table(tmp_path, meta(700, 1280, 0), rows(700) + rows(1280) + rows(0))
    return {e.name: e for e in load_experiments([tmp_path])}


def test_feasibility_follows_from_the_limit_and_is_open(experiments):
    sealed = {name: e.setting for name, e in experiments.items()}
    assert sealed["p700"].feasible_R.tolist() == [True, False, False]
    assert sealed["p1280"].feasible_R.tolist() == [True, True, False]
    assert sealed["p0"].feasible_R.all() and sealed["p0"].limit is None
    assert sealed["p0"].parameters_R.tolist() == [640, 1280, 2560]
    assert sealed["p700"].limit == {"quantity": "parameters", "at_most": 700}


def test_experiments_of_the_same_rows_share_their_cells(experiments):
    assert experiments["p700"].cells is experiments["p1280"].cells is experiments["p0"].cells


def test_an_infeasible_trial_is_valid_measures_nothing_and_scores_one(experiments):
    episode = Episode(experiments["p1280"], (), budget=2)
    trial = episode.exec_config({"width": 256})
    assert (trial.status, trial.valid, math.isnan(trial.outcome)) == ("infeasible", True, True)
    assert episode.best_regret() == 1.0
    assert json.loads(json.dumps(episode.score_rows()[0]["status"])) == "infeasible"
    assert episode.exec_config({"width": 128}).outcome == 2.5


@pytest.mark.parametrize(
    ("limit", "changes", "message"),
    [
        (700, {"status": "ok", "loss": 2.0}, "status is ok, but its 1280 parameters are over"),
        (1280, {"status": "infeasible"}, "status is infeasible, but its 1280 .* are within the"),
        (700, {"loss": 2.0}, "is infeasible and has the outcome 2.0"),
        (0, {"status": "infeasible", "loss": 2.0}, "is infeasible and has the outcome 2.0"),
        (700, {"parameters": None}, "`parameters` is None"),
        (700, {"parameters": math.nan}, "`parameters` is nan"),
        (700, {"parameters": "many"}, "column `parameters`"),
        (0, {"parameters": "many"}, "column `parameters`"),
    ],
)
def test_a_row_that_disagrees_with_the_limit_is_refused(tmp_path, limit, changes, message):
    with pytest.raises(UserError, match=message) as error:
        tables.write_table(tmp_path, meta(limit), rows(limit, **changes))
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_a_limit_needs_the_column(tmp_path):
    short = [{k: v for k, v in row.items() if k != "parameters"} for row in rows(700)]
    with pytest.raises(UserError, match="column `parameters` is missing"):
        tables.write_table(tmp_path, meta(700), short)


@pytest.mark.parametrize(
    "limit",
    [7, {}, {"quantity": "parameters"}, {"quantity": "flops", "at_most": 7}]
    + [{"quantity": "parameters", "at_most": value} for value in (0, -1, "7", True, math.inf)]
    + [{"quantity": "parameters", "at_most": 7, "at_least": 1}],
)
def test_a_malformed_limit_is_named(tmp_path, limit):
    described = meta(700)
    described["experiments"]["p700"]["limit"] = limit
    with pytest.raises(UserError, match="experiment p700: .*`(limit|quantity|at_most)`"):
        tables.write_table(tmp_path, described, rows(700))


def test_one_configuration_has_one_number_of_parameters(make):
    cells = [{"learning_rate": 0.001, "batch_size": 32}] * 2
    assert make(configurations=cells, parameters=[7, 7]).parameters_R == np.array([7.0])
    for parameters in ([7, 8], [7, None]):
        with pytest.raises(UserError, match="`parameters` differ"):
            make(configurations=cells, parameters=parameters)
    with pytest.raises(UserError, match="every run needs its `parameters`"):
        make(limit={"quantity": "parameters", "at_most": 7})
