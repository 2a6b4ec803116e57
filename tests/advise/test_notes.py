"""Notes: a best value at the edge of what was tried is named, and the space can be widened."""

import itertools
import json
import math

import pytest

from autollm_jax.advise.advisor import Advisor
from autollm_jax.advise.columns import Hints
from autollm_jax.advise.decider import Panels

from .conftest import TARGET


def falling(rates, best=0.1):
    """Runs whose best learning rate lies beyond all that were tried."""
    return [
        {"learning_rate": rate, "batch_size": batch, "parameters": size, "tokens": 20 * size,
         "loss": 2 + size**-0.1 + 0.1 * math.log(rate / best) ** 2 + 0.02 * abs(batch - 64) / 64}
        for size, rate, batch in itertools.product((1e6, 2e6, 4e6), rates, (32, 64, 128))
    ]  # fmt: skip


LISTED = (1e-4, 3e-4, 1e-3, 3e-3)
SPREAD = tuple(1e-4 * 30 ** (n / 19) for n in range(20))


def edges(advice):
    return [note for note in advice.notes if "space.json" in note]


@pytest.mark.parametrize(("rates", "further"), [(LISTED, 0.009), (SPREAD, 0.009)])
def test_a_best_value_at_the_edge_is_said_in_one_line(rates, further):
    advice = Advisor.from_runs(falling(rates), target=TARGET, decider=Panels()).ask()
    (note,) = edges(advice)
    assert "learning_rate, 0.003, is the largest that was tried" in note
    assert f"widen learning_rate to {further:g} in space.json" in note and "\n" not in note
    mirrored = Advisor.from_runs(falling(rates, 1e-6), target=TARGET, decider=Panels()).ask()
    (note,) = edges(mirrored)
    assert "learning_rate, 0.0001, is the smallest that was tried" in note


def test_a_best_value_inside_what_was_tried_is_not_remarked(rows):
    assert not edges(Advisor.from_runs(rows, target=TARGET, decider=Panels()).ask())


def test_where_only_candidates_may_be_proposed_no_space_is_to_be_widened():
    only = [{"learning_rate": rate, "batch_size": 64} for rate in (1e-3, 3e-3)]
    advisor = Advisor.from_runs(falling(LISTED), target=TARGET, candidates=only, decider=Panels())
    assert not edges(advisor.ask())


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        (LISTED, {"kind": "log-ordinal", "choices": [*LISTED, 0.01, 0.03, 0.1]}),
        (LISTED, {"choices": [*LISTED, 0.01, 0.03, 0.1]}),
        (LISTED, {"bounds": [1e-4, 0.1]}),
        (LISTED, {"kind": "log-ordinal", "bounds": [1e-4, 0.1]}),
        (SPREAD, {"bounds": [1e-4, 0.1]}),
        (SPREAD, {"choices": [*SPREAD, 0.01, 0.03, 0.1]}),
        (SPREAD, {"kind": "log-continuous", "bounds": [1e-4, 0.1]}),
    ],
)
def test_a_space_widened_beyond_the_runs_is_used(rates, said):
    rows = falling(rates)
    columns = json.loads(json.dumps({"learning_rate": {"role": "hyperparameter"} | said}))
    hints = Hints(columns=columns)
    advisor = Advisor.from_runs(rows, target=TARGET, hints=hints, decider=Panels())
    advice = advisor.ask()
    assert advisor.question.setting.space["learning_rate"].extent == (1e-4, 0.1)
    assert advice.config["learning_rate"] > 3e-3
    assert not any("largest that was tried" in note for note in edges(advice))
