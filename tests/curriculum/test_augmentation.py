"""Changed copies of tables of the new kinds."""

import numpy as np
import pytest

from autollm_jax.curriculum.augmentation import (
    AUGMENTATIONS,
    CHEAPER_COPIES,
    applicable,
    augment,
    needs_copies,
)
from autollm_jax.curriculum.pairs import CurationConfig, curate
from autollm_jax.curriculum.synthetic import PROVENANCE
from autollm_jax.curriculum.synthetic_kinds import sample_family
from autollm_jax.gym.environment import Episode


def test_each_kind_has_its_own_augmentations(family, mixtures, architectures):
    assert "shifted axes" in applicable(family) and "other names" not in applicable(family)
    assert {"other names", "mixed objectives"} <= set(applicable(mixtures))
    assert "lower limit" in applicable(architectures)


def test_other_names_rename_and_permute_and_change_no_outcome(mixtures):
    for old, new in zip(mixtures, augment(mixtures, ["other names"], 1), strict=True):
        names = new.space["mixture"].choices
        assert not set(names) & set(old.space["mixture"].choices)
        np.testing.assert_allclose(new.outcomes.values_R, old.outcomes.values_R)
        np.testing.assert_allclose(np.sort(new.units_RD, 1), np.sort(old.units_RD, 1), atol=1e-9)
        assert not np.allclose(new.units_RD, old.units_RD)


def test_names_are_the_same_in_the_whole_family(mixtures):
    changed = augment(mixtures, ["other names"], 1)
    assert len({e.space["mixture"].choices for e in changed}) == 1


def test_a_lower_limit_excludes_more(architectures):
    changed = augment(architectures, ["lower limit"], 2)
    for old, new in zip(architectures, changed, strict=True):
        assert new.limit["at_most"] <= old.limit["at_most"]
        np.testing.assert_array_equal(new.feasible_R, new.outcomes.status_R == "ok")
    assert sum(e.feasible_R.sum() for e in changed) < sum(e.feasible_R.sum() for e in architectures)


def test_mixed_objectives_lie_between_two(mixtures):
    changed = augment(mixtures, ["mixed objectives"], 3)
    for old, new in zip(mixtures, changed, strict=True):
        others = [e for e in mixtures if e.fidelity == old.fidelity and e is not old]
        parts = np.stack([old.outcomes.values_R, others[0].outcomes.values_R, np.ones(90)], axis=1)
        _, residual, *_ = np.linalg.lstsq(parts, new.outcomes.values_R, rcond=None)
        assert residual < 1e-18
        assert not np.allclose(new.outcomes.values_R, old.outcomes.values_R)


def test_copies_of_tables_that_share_rows_share_them_still(mixtures):
    shared = []
    for seed in range(6):
        changed = augment(mixtures, ["sub-grid", "noise"], seed)
        shared.append(len({id(e.cells) for e in changed}))
    assert min(shared) == 1 < max(shared)


def test_copies_stand_in_where_nothing_is_cheaper(mixtures, family):
    same_cost = mixtures[2:]
    assert needs_copies(same_cost) and not needs_copies(mixtures) and not needs_copies(family[:1])
    pairs = curate(same_cost, CurationConfig(pairs=20, synthetic=0.0))
    assert all(CHEAPER_COPIES in pair.recipe.changes for pair in pairs)
    for pair in pairs:
        assert not pair.evidence or all(e.name.endswith("-cheaper") for e in pair.evidence)
        assert all(e.fidelity.flops < pair.target.fidelity.flops for e in pair.evidence)


def test_copies_resemble_what_they_copy(mixtures):
    made = augment(mixtures[2:], [CHEAPER_COPIES], 0)
    for original, copy in zip(made[:2], made[2:], strict=True):
        assert 0.3 < np.corrcoef(original.outcomes.values_R, copy.outcomes.values_R)[0, 1] < 0.9999


@pytest.mark.parametrize("kind", ["mixtures", "architectures", "tunings"])
def test_the_same_seed_gives_the_same_copies(kind, request):
    family = request.getfixturevalue(kind)
    first, again = (augment(family, AUGMENTATIONS, 5) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert a.space == b.space and a.limit == b.limit
        np.testing.assert_array_equal(a.outcomes.values_R, b.outcomes.values_R)


def test_the_prior_has_all_four_tasks_and_each_can_be_played():
    seen = {}
    for seed in range(30):
        family = sample_family(seed)
        seen.setdefault(family[0].task, family)
    assert set(seen) == {"architecture", "pretraining", "grpo", "data_mixture"}
    for family in seen.values():
        assert all(e.facts["provenance"] == PROVENANCE for e in family)
        assert Episode(family[-1], family[:1], 1).exec_config(family[-1].default).status == "ok"
    assert any(e.limit for e in seen["architecture"])
    assert not seen["grpo"][0].objective.minimize
