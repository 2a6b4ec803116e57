"""Families whose experiments have other choices, dimensions and components take every change."""

import dataclasses

import numpy as np
import pytest

from autollm_jax.curriculum.augmentation import (
    AUGMENTATIONS,
    CHEAPER_COPIES,
    applicable,
    augment,
    needs_copies,
)
from autollm_jax.curriculum.names import WORDS, part_names
from autollm_jax.curriculum.pairs import CurationConfig, curate
from autollm_jax.curriculum.teacher import SimulationConfig, simulate
from tests import differing

ALL = (*AUGMENTATIONS, CHEAPER_COPIES)


@pytest.fixture(params=differing.FAMILIES, ids=lambda make: make.__name__)
def different(request):
    return request.param()


def _names(experiments):
    return {
        (d.name, part)
        for e in experiments
        for d in e.space.dimensions
        for part in (d.choices if d.kind == "simplex" else ("",))
    }


@pytest.mark.parametrize("changes", [(), *((change,) for change in ALL), ALL], ids=str)
def test_every_change_keeps_each_experiment_in_its_own_space(different, changes):
    assert len({e.space for e in different}) > 1
    for seed in range(4):
        made = augment(different, changes, seed)
        assert [e.space.names for e in made[: len(different)]] == [e.space.names for e in different]
        for experiment in made:
            space = experiment.space
            space.validate(experiment.default)  # raises where it is not in the space
            keys = list(map(space.key_of, experiment.configurations))
            assert keys == [space.key_of(space.validate(c)) for c in experiment.configurations]
            assert experiment.outcomes.ok_R.any()
            assert not any(experiment.outcomes.ok_R & ~experiment.feasible_R)


def test_names_that_experiments_share_stay_shared(different):
    for seed in range(5):
        made = augment(different, ("other names",), seed)
        assert len(_names(made)) == len(_names(different))


@pytest.mark.parametrize("make", [differing.rates, differing.continuous])
def test_a_dimension_has_one_new_unit_in_all_experiments(make):
    for seed in range(5):
        old, new = make(), augment(make(), ("shifted axes",), seed)
        for name in ("learning_rate", "batch_size"):
            factors = [
                after.configurations[0][name] / before.configurations[0][name]
                for before, after in zip(old, new, strict=True)
            ]
            np.testing.assert_allclose(factors, factors[0])


def test_bounds_are_narrowed_with_the_rows_inside_them():
    original = differing.continuous()[1]
    narrowed = [augment([original], ["sub-grid"], seed)[0] for seed in range(6)]
    for copy in narrowed:
        for dimension in copy.space.dimensions:
            low, high = original.space[dimension.name].bounds
            assert low <= dimension.bounds[0] < dimension.bounds[1] <= high
        for config, outcome in zip(copy.configurations, copy.outcomes.values_R, strict=True):
            assert original.lookup(config) == pytest.approx(outcome)
    assert min(len(copy.cells) for copy in narrowed) < len(original.cells)


def test_mixing_leaves_a_run_alone_that_the_other_objective_lacks():
    """A run that diverged for one objective keeps its outcome for the other."""
    family = differing.mixtures()[:2]
    status_R = np.array(family[0].outcomes.status_R)
    status_R[:5], values_R = "diverged", family[0].outcomes.values_R.copy()
    values_R[:5] = np.nan
    outcomes = dataclasses.replace(family[0].outcomes, status_R=status_R, values_R=values_R)
    one = dataclasses.replace(family[0], outcomes=outcomes)
    other = dataclasses.replace(family[1], cells=one.cells)
    _, mixed = augment([one, other], ["mixed objectives"], 0)
    assert mixed.outcomes.ok_R.all()
    np.testing.assert_allclose(mixed.outcomes.values_R[:5], other.outcomes.values_R[:5])
    assert not np.allclose(mixed.outcomes.values_R[5:], other.outcomes.values_R[5:])


def test_copies_are_made_only_of_experiments_that_no_law_moves():
    family = [*differing.rates()[:1], *differing.architectures()[:1]]
    made = augment(family, [CHEAPER_COPIES], 0)
    assert needs_copies([dataclasses.replace(e, fidelity=family[0].fidelity) for e in family])
    assert [e.task for e in made] == ["pretraining", "architecture", "architecture"]


def test_a_mixture_may_have_more_components_than_there_are_words():
    names = part_names(np.random.default_rng(0), 300)
    assert len(set(names)) == 300 and set(WORDS) < {*names, *WORDS}


def test_recipes_are_drawn_and_played_where_spaces_differ(different):
    """Evidence and target differ in their spaces, and the teacher plays to the end."""
    config = CurationConfig(pairs=200, pairs_per_family=2, synthetic=0.0)
    pairs = curate(different, config)
    assert {c for pair in pairs for c in pair.recipe.changes} == set(applicable(different))
    mixed = [p for p in pairs if any(e.space != p.target.space for e in p.evidence)]
    assert len(mixed) > 40
    for pair in mixed[:: len(mixed) // 3]:
        (trajectory,) = simulate(pair, SimulationConfig(budget=2, episodes=1))
        assert len(trajectory.turns) == 4
        assert "invalid" not in trajectory.text
