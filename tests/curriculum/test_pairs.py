import dataclasses

import numpy as np
import pytest

from autollm_jax.curriculum import synthetic
from autollm_jax.curriculum.augmentation import AUGMENTATIONS, augment
from autollm_jax.curriculum.names import WORDS
from autollm_jax.curriculum.pairs import (
    CurationConfig,
    Families,
    Recipe,
    build_pair,
    curate,
    draw_recipes,
)
from autollm_jax.curriculum.synthetic_kinds import sample_family
from autollm_jax.errors import UserError
from autollm_jax.forecasts.advisers import COUNSEL
from autollm_jax.forecasts.failing import Failing
from autollm_jax.gym.environment import Episode
from autollm_jax.text.spelling import short_names

SMALL = CurationConfig(pairs=60, pairs_per_family=6)


def _content(experiment):
    outcomes = experiment.outcomes.values_R.tolist()
    return experiment.id, experiment.fidelity, experiment.space, experiment.configurations, outcomes


def test_evidence_is_cheaper_than_its_target(family):
    for pair in curate(family, SMALL):
        flops = pair.target.fidelity.flops
        assert all(e.fidelity.flops < flops for e in pair.evidence)


def test_pairs_come_from_tables_changed_tables_and_the_prior(family):
    recipes = list(draw_recipes(Families(family), CurationConfig(pairs=300, pairs_per_family=6)))
    assert len(recipes) == 300
    provenances = {recipe.provenance for recipe in recipes}
    assert {"made/pretraining", synthetic.PROVENANCE} < provenances
    assert any("with sub-grid, shifted axes, noise" in p for p in provenances)


def test_evidence_comes_whole_and_in_part(family):
    tables = dataclasses.replace(SMALL, synthetic=0.0, pairs=200)
    counts = {(r.target, len(r.evidence)) for r in draw_recipes(Families(family), tables)}
    assert {(3, 3), (3, 2), (3, 1)} <= counts


def test_the_same_seed_gives_the_same_pairs_and_another_seed_others(family):
    config = dataclasses.replace(SMALL, pairs=12)
    first, again = (curate(family, config) for _ in range(2))
    assert [p.recipe for p in first] == [p.recipe for p in again]
    other = list(draw_recipes(Families(family), dataclasses.replace(config, seed=1)))
    assert [p.recipe for p in first] != other


def test_a_pair_is_rebuilt_from_its_line(family):
    families = Families(list(reversed(family)))
    for pair in curate(family, SMALL)[::7]:
        rebuilt = build_pair(Recipe.from_json(pair.recipe.to_json()), families)
        assert _content(rebuilt.target) == _content(pair.target)
        assert list(map(_content, rebuilt.evidence)) == list(map(_content, pair.evidence))
        assert rebuilt.provenance == pair.provenance


def test_an_environment_plays_on_every_pair(family):
    for pair in curate(family, SMALL):
        episode = Episode(pair.target, pair.evidence, 1)
        assert episode.exec_config(pair.target.default).valid


def test_shifted_axes_relabel_units_and_nothing_else(family):
    changed = augment(family, ["shifted axes"], 3)
    ratios = []
    for old, new in zip(family, changed, strict=True):
        np.testing.assert_allclose(new.outcomes.regrets_R, old.outcomes.regrets_R, atol=1e-9)
        rate = new.configurations[0]["learning_rate"] / old.configurations[0]["learning_rate"]
        batch = new.configurations[0]["batch_size"] / old.configurations[0]["batch_size"]
        tokens = new.fidelity.tokens / old.fidelity.tokens
        ratios.append((rate, batch, tokens))
        assert all(isinstance(c["batch_size"], int) for c in new.configurations)
    np.testing.assert_allclose(ratios, [ratios[0]] * len(ratios))
    assert ratios[0][0] != 1


def test_sub_grids_keep_outcomes_and_drop_cells(family):
    changed = augment(family, ["sub-grid"], 1)
    assert any(len(n.configurations) < len(o.configurations) for o, n in zip(family, changed))  # noqa: B905
    for old, new in zip(family, changed, strict=True):
        for config, outcome in zip(new.configurations, new.outcomes.values_R, strict=True):
            assert old.lookup(config) == pytest.approx(outcome)


def test_noise_changes_outcomes_by_about_its_floor(family):
    (new, *_), old = augment(family, ["noise"], 2), family[0]
    gap_R = new.outcomes.values_R - old.outcomes.values_R
    assert 0 < np.std(gap_R) < 0.1 * (old.outcomes.median - old.outcomes.optimum)


def test_augmented_copies_have_names_of_their_own(family):
    names = {e.id for seed in range(3) for e in augment(family, AUGMENTATIONS, seed)}
    assert len(names) == 3 * len(family)


def test_experiments_without_a_cheaper_one_need_the_prior(family):
    with pytest.raises(UserError, match="synthetic"):
        list(draw_recipes(Families(family[:1]), CurationConfig(pairs=3, synthetic=0.0)))
    recipes = list(draw_recipes(Families(family[:1]), CurationConfig(pairs=3, synthetic=0.1)))
    assert {r.family for r in recipes} == {synthetic.PROVENANCE}


@pytest.mark.parametrize("line", ["", "{}", "[1]", '{"family": "tables"}'])
def test_a_line_that_is_no_recipe_is_refused(line):
    with pytest.raises(UserError, match="recipe"):
        Recipe.from_json(line)


def test_a_recipe_of_other_tables_is_refused(family):
    recipe = Recipe("tables", "made", "pretraining", 0, (), False, "", 3, (0,), 0)
    with pytest.raises(UserError, match="same training tables"):
        build_pair(recipe, Families(family[:2]))


def test_synthetic_families_are_marked_and_varied():
    names, goals = set(), set()
    for seed in range(40):
        for experiment in sample_family(seed):
            assert experiment.facts["provenance"] == "synthetic prior"
            assert experiment.source == "synthetic"
            names.add(experiment.space.names)
            goals.add(experiment.objective.minimize)
            assert (experiment.outcomes.regrets_R < 0.999).sum() >= 3
    assert len(names) > 3 and goals == {True, False}


def test_synthetic_optima_lie_mostly_inside_their_grids():
    inside = []
    for seed in range(60):
        for experiment in sample_family(seed):
            best = experiment.configurations[experiment.outcomes.best_row]
            ends = [
                d.choices[0] < best[d.name] < d.choices[-1]
                for d in experiment.space.dimensions
                if d.kind == "log-ordinal"
            ]
            inside += [all(ends)] if ends else []
    assert np.mean(inside) > 0.6


def test_made_up_mixtures_call_their_parts_as_the_tables_do(mixtures):
    """The tables' names are drawn too, so that a policy has copied each of them."""
    pairs = curate(mixtures, CurationConfig(seed=0, pairs=240, synthetic=1.0))
    spaces = {pair.target.space for pair in pairs}
    names = {
        name
        for space in spaces
        for dimension in space.dimensions
        if dimension.kind == "simplex"
        for name in dimension.choices
    }
    own = set(short_names(mixtures[0].space["mixture"]).values())
    assert own & names - set(WORDS) and names & set(WORDS)


def test_a_renamed_pair_has_the_same_landscapes_under_neutral_names(family):
    config = dataclasses.replace(SMALL, synthetic=0.0, unchanged=1.0, renamed=1.0)
    plain = curate(family, dataclasses.replace(config, renamed=0.0))
    for pair, before in zip(curate(family, config), plain, strict=True):
        assert pair.recipe.renamed and "neutral names" in pair.provenance
        assert not before.recipe.renamed and before.recipe.evidence == pair.recipe.evidence
        for new, old in zip(
            (pair.target, *pair.evidence), (before.target, *before.evidence), strict=True
        ):
            assert new.space.names == ("x1", "x2")
            np.testing.assert_array_equal(new.outcomes.values_R, old.outcomes.values_R)


def test_a_share_of_the_pairs_has_an_adviser_that_fails(family):
    config = dataclasses.replace(SMALL, failing=0.5)
    pairs = curate(family, config)
    failing = [pair for pair in pairs if pair.recipe.failing]
    assert 0.2 < len(failing) / len(pairs) < 0.8
    assert not any(p.recipe.failing for p in curate(family, SMALL))
    pair = failing[0]
    name, failure = pair.recipe.failing.split(":")
    assert pair.recipe.failing in pair.provenance
    members = dict(zip(COUNSEL, pair.counsel().members, strict=True))
    assert [n for n, m in members.items() if isinstance(m, Failing)] == [name]
    assert members[name].failure == failure


def test_evidence_from_far_below_leaves_the_near_out(family):
    plain = CurationConfig(pairs=40, synthetic=0.0, all_evidence=1.0, no_evidence=0.0)
    near = curate(family, plain)
    far = curate(family, dataclasses.replace(plain, far=1.0))
    fewer = 0
    for before, after in zip(near, far, strict=True):
        assert after.evidence and {e.id for e in after.evidence} <= {e.id for e in before.evidence}
        kept = max(e.fidelity.flops for e in after.evidence)
        left_out = {e.id for e in before.evidence} - {e.id for e in after.evidence}
        assert all(e.fidelity.flops > kept for e in before.evidence if e.id in left_out)
        fewer += bool(left_out)
    assert fewer > len(near) / 4
