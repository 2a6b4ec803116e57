import functools
import multiprocessing
import os

import numpy as np
import pytest

from autollm_jax.curriculum.lookahead import worth
from autollm_jax.curriculum.pairs import CurationConfig, Families, Pair, build_pair, draw_recipes
from autollm_jax.curriculum.preparing import over_pairs, prepare
from autollm_jax.curriculum.teacher import SimulationConfig, simulate
from autollm_jax.forecasts.advice import decision_of
from autollm_jax.gym.environment import Episode
from tests.families import decided

BUDGET = 3
CONFIG = SimulationConfig(budget=1, episodes=2)


@pytest.fixture
def recipes(family):
    settings = CurationConfig(pairs=4, pairs_per_family=2, synthetic=0.0, unchanged=1.0)
    return list(draw_recipes(Families(family), settings))


def found(*arguments, **more):
    with over_pairs(*arguments, **more) as coming:
        return list(coming)


def started(pair, folder):
    """Leave a trace of a pair that is begun; all but the first wait until they may go on."""
    (folder / str(pair.recipe.number)).touch()
    while pair.recipe.number and not (folder / "go").exists():
        os.sched_yield()


def test_at_the_contexts_end_no_further_pair_is_begun(family, tmp_path):
    settings = CurationConfig(pairs=40, pairs_per_family=1, synthetic=0.0, unchanged=1.0)
    many = list(draw_recipes(Families(family), settings))
    with over_pairs(family, many, functools.partial(started, folder=tmp_path), 2) as coming:
        next(coming)
    (tmp_path / "go").touch()
    for process in multiprocessing.active_children():
        process.join()
    # Two were begun beside the first, and three may lie in the pool's queue.
    assert len(list(tmp_path.iterdir())) <= 1 + 1 + 2 + 3


def test_two_processes_play_what_one_plays(family, recipes):
    work = functools.partial(simulate, config=CONFIG)
    alone = found(family, recipes, work)
    assert found(family, recipes, work, processes=2) == alone
    assert [len(played) for played in alone] == [2] * 4


def test_work_comes_in_the_pairs_order_and_not_before_it_is_asked_for(family, recipes):
    done = []

    def number(pair):
        done.append(pair.recipe.number)
        return pair.recipe.number

    with over_pairs(family, recipes, number) as coming:
        assert not done and next(coming) == 0 and done == [0]
        assert [*coming] == [1, 2, 3] == done[1:]


@pytest.mark.parametrize("ahead", [False, True])
def test_what_another_process_prepares_plays_as_what_this_one_does(family, recipes, ahead):
    work = functools.partial(prepare, budget=BUDGET, ahead=ahead)
    here, there = (found(family, recipes, work, processes) for processes in (1, 2))
    families = Families(family)
    for recipe, *both in zip(recipes, here, there, strict=True):
        pair, played = build_pair(recipe, families), []
        for prepared in both:
            assert (prepared.lookahead is not None) == ahead
            episode = Episode(prepared.target, prepared.panel.evidence, BUDGET)
            while not episode.done:
                decision = decision_of(prepared.panel, episode.tell(), 0)
                brought_P = worth(episode, decision.offer, prepared.lookahead)
                played.append([*brought_P, *decision.advice.mean_AR.ravel()])
                episode.exec_config(pair.target.configurations[decision.offer.rows[0]])
        np.testing.assert_array_equal(played[:BUDGET], played[BUDGET:])


def test_preparing_asks_what_every_episode_begins_with(family, recipe, monkeypatch):
    pair = Pair(family[3], tuple(family[:3]), recipe)
    prepared = prepare(pair, BUDGET, ahead=True)
    episode = Episode(pair.target, pair.evidence, BUDGET)
    offer = decided(episode).offer
    expected = worth(episode, offer, prepared.lookahead)

    def asked(*_):
        raise AssertionError("not known yet")

    for member in prepared.panel.members:
        monkeypatch.setattr(type(member), "posterior", asked)
    np.testing.assert_array_equal(worth(episode, offer, prepared.lookahead), expected)
