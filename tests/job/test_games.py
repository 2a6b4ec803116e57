import multiprocessing
import types

import pytest

from autollm_jax.curriculum.pairs import CurationConfig, Families, draw_recipes
from autollm_jax.job import training_stages

PLACES = 6


@pytest.fixture
def job(family):
    settings = CurationConfig(pairs=PLACES, pairs_per_family=1, synthetic=0.0, unchanged=1.0)
    recipes = list(draw_recipes(Families(family), settings))
    gym = types.SimpleNamespace(budget=3, matching=True, invalid_penalty=0.05)
    config = types.SimpleNamespace(gym=gym)
    return types.SimpleNamespace(training=family, pairs=lambda _: recipes, config=config)


def played(games):
    return [games.start(number) for number in range(2 * PLACES)]


def test_pairs_whose_processes_are_killed_are_prepared_by_this_one(job):
    """They are killed amid what they send, too, when the first pair has come."""
    numbers, others = range(2 * PLACES), {*multiprocessing.active_children()}
    with training_stages._Games(job, "grpo", numbers, ahead=True, processes=2) as games:
        games.start(0)
        for process in {*multiprocessing.active_children()} - others:
            process.kill()
        starts = played(games)
    with training_stages._Games(job, "grpo", numbers, ahead=True) as games:
        expected = played(games)
    assert [s.episode.setting.id for s in starts] == [s.episode.setting.id for s in expected]
    assert [start.order for start in starts] == list(numbers)
    for first, second in zip(starts[:PLACES], starts[PLACES:], strict=True):
        assert first.panel is second.panel and first.lookahead is second.lookahead is not None
