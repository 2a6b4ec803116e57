"""Continuous dimensions in texts, forecasts and changed copies."""

import json

import numpy as np
import pytest

from autollm_jax.curriculum.augmentation import applicable, augment
from autollm_jax.forecasts import landscapes as evidence
from autollm_jax.forecasts.advisers import forecast
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.experiments import Fidelity, make_experiment
from autollm_jax.gym.spaces import Dimension, Space
from autollm_jax.text import prompts, spelling
from autollm_jax.text.claims import audit, think
from autollm_jax.text.parsing import parse_action
from tests.families import decided

RATE = Dimension("rate", "log-continuous", bounds=(1e-4, 1e-2))
DECAY = Dimension("decay", "continuous", bounds=(-0.5, 0.5))
BIAS = Dimension("bias", "categorical", (True, False))
LISTED = Dimension("rate", "log-ordinal", tuple(1e-4 * 2.0**n for n in range(7)))


def family(*dimensions, crowd=0):
    """Make four experiments over a law; `crowd` of the cells lie within a hair of the first."""
    space = Space(dimensions)
    made = []
    for number, parameters in enumerate((1e6, 2e6, 4e6, 8e6)):
        units_RD = np.random.default_rng(number).random((40, space.width))
        units_RD[1 : 1 + crowd] = units_RD[0] + 2e-6 * np.arange(1, crowd + 1)[:, None]
        configs = [space.from_unit(unit_D) for unit_D in units_RD]
        away_R = [np.log2(c["rate"] / 1e-3) ** 2 + abs(c.get("decay", 0)) for c in configs]
        made.append(
            make_experiment(
                source="made", task="pretraining", name=f"m{number}", space=space,
                fidelity=Fidelity("low", parameters, 1e9, 6e9 * parameters),
                configurations=configs, outcomes=[2 + 0.05 * away for away in away_R],
                default=configs[3], default_origin="the tests",
            )
        )  # fmt: skip
    return made


SPACES = {"law": (RATE, DECAY), "one": (RATE,), "mixed": (RATE, DECAY, BIAS)}


@pytest.mark.parametrize("dimensions", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("crowd", [0, 5])
def test_every_cell_reads_back_as_itself(dimensions, crowd):
    for experiment in family(*dimensions, crowd=crowd):
        cells = experiment.cells
        for row, config in enumerate(cells.configurations):
            said = {d.name: spelling.spell(cells, d, config[d.name]) for d in dimensions}
            shown = [f"{n} {v}" if len(said) > 1 else v for n, v in said.items()]
            assert spelling.spell_row(cells, row) == " ".join(shown)
            values = ", ".join(f"{json.dumps(name)}: {value}" for name, value in said.items())
            action = parse_action(f"<exec>{{{values}}}</exec>")
            assert cells.match(spelling.read_config(cells, action.config)) == (row, False)


def test_numbers_have_the_digits_that_their_table_needs():
    cells = family(RATE)[0].cells
    texts = [spelling.spell_row(cells, row) for row in range(len(cells))]
    assert max(map(len, texts)) <= len("1.2345e-3") and len(set(texts)) == len(texts)
    assert spelling.bounds_text(RATE) == "1.0e-4 to 1.0e-2"
    assert spelling.bounds_text(DECAY) == "-0.50 to 0.50"


@pytest.mark.parametrize("dimensions", SPACES.values(), ids=SPACES)
def test_texts_describe_it_and_what_they_state_is_true(dimensions):
    *cheap, target = family(*dimensions)
    episode = Episode(target, cheap, 3)
    assert "\nrate: 1.0e-4 to 1.0e-2;\n" in prompts.describe(decided(episode), full=True)
    while not episode.done:
        decision = decided(episode)
        found = audit(think(decision, 0), decision)
        assert found.n == found.true > 0
        episode.exec_config(target.configurations[decision.offer.rows[0]])


@pytest.mark.parametrize("below", [RATE, LISTED], ids=["continuous", "listed"])
@pytest.mark.parametrize("above", [RATE, LISTED], ids=["continuous", "listed"])
def test_the_law_reads_listed_and_continuous_evidence(below, above):
    cheap, target = family(below, DECAY)[:-1], family(above, DECAY)[-1]
    episode = Episode(target, cheap, 1)
    row = int(forecast(target.setting, cheap).expected_regrets().argmin())
    episode.exec_config(target.configurations[row])
    assert set(evidence.usable(cheap, target)) == set(cheap)
    assert episode.best_regret() < 0.3


def test_shifted_cells_are_those_of_the_shifted_grid():
    land = evidence.landscape(family(RATE, DECAY)[0])
    random = np.random.default_rng(0)
    x_XD, shifts = random.normal(size=(5, 2)), np.array([-1.0, 0.0, 0.5])
    axes = [column - shifts[:, None] for column in x_XD.T]
    found = land.shifted(axes)
    for i, first in enumerate(shifts):
        for j, second in enumerate(shifts):
            np.testing.assert_allclose(found[i, j], land(x_XD - [first, second]), atol=1e-9)


@pytest.mark.parametrize("dimensions", SPACES.values(), ids=SPACES)
def test_changed_copies_keep_every_value_within_moved_bounds(dimensions):
    tables = family(*dimensions)
    changes = [change for change in applicable(tables) if change != "sub-grid"]
    for old, new in zip(tables, augment(tables, changes, 3), strict=True):
        assert all(new.space.validate(c) == c for c in (*new.configurations, new.default))
        assert new.space["rate"].bounds != old.space["rate"].bounds
        ratio = new.space["rate"].bounds[0] / old.space["rate"].bounds[0]
        rates = {round(c["rate"] * ratio, 12) for c in old.configurations}
        assert {round(c["rate"], 12) for c in new.configurations} <= rates
