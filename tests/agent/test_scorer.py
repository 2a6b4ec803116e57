"""The scorer: it learns whom to follow, and plays by what players may know alone."""

import dataclasses

import jax
import numpy as np
import pytest

from autollm_jax.agent import scorer
from autollm_jax.agent.scorer import Scorer, Settings, features, init, logits, loss, pad, train
from autollm_jax.baselines.base import Problem
from autollm_jax.forecasts.advice import MOST, decision_of
from autollm_jax.forecasts.advisers import counsel
from autollm_jax.gym.environment import Episode
from tests.families import bowl_experiment

QUICK = Settings(pairs=6, rounds=2, updates=4, batch=8)


@pytest.fixture(scope="module")
def games():
    rates = (2.0**-8, 2.0**-9, 2.0**-9.5)
    cheap = [bowl_experiment(f"e{n}", 1e6 * 4**n, 1e8, (r, 128)) for n, r in enumerate(rates)]
    targets = [
        bowl_experiment(f"t{n}", 64e6, 1e8, (2.0 ** (-10 - n / 2), 128), level="mid")
        for n in range(3)
    ]
    return [(target, counsel(target.setting, cheap)) for target in targets]


@pytest.fixture
def decision(games):
    target, panel = games[0]
    return decision_of(panel, Episode(target, panel.evidence, 5).tell(), 0)


def chosen_by(params, decision):
    """Return the row that a scorer chooses."""
    padded = pad([features(decision)])
    return decision.offer.rows[int(np.asarray(logits(params, *padded)).argmax())]


def test_the_first_choice_is_the_panels(decision):
    params = init(jax.random.key(0), features(decision).shape[1])
    params |= {"out": np.zeros((scorer.WIDTH, 1))}
    rows = decision.offer.rows
    assert chosen_by(params, decision) == rows[decision.offer.picks[-1]]
    assert sum(np.size(leaf) for leaf in jax.tree.leaves(params)) < 50_000


def test_the_loss_is_minus_the_expected_reward():
    params = init(jax.random.key(0), 4)
    random = np.random.default_rng(0)
    x_BCF = random.normal(size=(2, MOST, 4))
    offered_BC = np.arange(MOST) < np.array([[3], [MOST]])
    reward_BC = random.random((2, MOST)) * offered_BC
    chance_BC = np.asarray(jax.nn.softmax(logits(params, x_BCF, offered_BC)))
    assert (chance_BC[~offered_BC] == 0).all()
    expected = -(chance_BC * reward_BC).sum(1).mean()
    np.testing.assert_allclose(loss(params, x_BCF, offered_BC, reward_BC, 0.0), expected, rtol=1e-5)


def test_padding_and_order_change_nothing(decision):
    params = init(jax.random.key(1), features(decision).shape[1])
    for count in (len(decision.offer.rows), 5):
        rows = decision.offer.rows[:count]
        there, back = (
            dataclasses.replace(decision, offer=dataclasses.replace(decision.offer, rows=order))
            for order in (rows, tuple(reversed(rows)))
        )
        assert chosen_by(params, there) == chosen_by(params, back)


def test_rewards_are_the_episodes_own(games):
    """The reward of the chosen candidate is what the episode pays for it."""
    params = train(games, 0, QUICK)
    regrets = params.pop("regrets")
    assert regrets.shape == (QUICK.rounds, QUICK.budget)
    (x_BCF, offered_BC, reward_BC), regret_GT = scorer.play(
        params, games, np.random.default_rng(0), 5, drawn=False
    )
    value_BC = np.asarray(logits(params, x_BCF, offered_BC))
    paid_B = np.take_along_axis(reward_BC, value_BC.argmax(1)[:, None], 1)[:, 0]
    np.testing.assert_allclose(paid_B.reshape(5, -1).sum(0), 1 - regret_GT.mean(1), rtol=1e-5)


def test_learning_follows_the_adviser_that_is_right(games):
    """On games whose optimum one adviser always knows, the scorer comes to choose as it does."""
    told = dataclasses.replace(QUICK, rounds=6, updates=60, batch=32, entropy=0.0)
    learned = train(games, 0, told)
    before, after = learned["regrets"][0].mean(), learned["regrets"][-1].mean()
    assert after < 0.8 * before


def test_it_plays_what_was_told_and_not_what_the_target_holds(games):
    learned = train(games, 0, QUICK)
    target, panel = games[0]
    other = target.outcomes.with_values(-1e3 * target.outcomes.values_R)
    asked = []
    for held in (target, dataclasses.replace(target, outcomes=other)):
        player = Scorer(Problem(held.setting, panel.evidence, 3), 0, learned)
        teller = Episode(target, panel.evidence, 3)
        while not teller.done:
            player.tell(teller.exec_config(player.ask()))
        asked.append([trial.row for trial in teller.trials])
    assert len(set(asked[0])) == 3 and asked[0] == asked[1]


def test_the_same_seed_learns_the_same(games):
    one, two = (train(games, 4, QUICK) for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_a_game_ends_where_nothing_is_left_to_try(games):
    small = {"learning_rates": (2.0**-8,), "batch_sizes": (64, 128)}
    cheap, target = (
        bowl_experiment(name, size, 2e8, (2.0**-8, 64), **small)
        for name, size in (("a", 1e6), ("b", 1e7))
    )
    tiny = target, counsel(target.setting, [cheap])
    learned = train([*games, tiny], 0, QUICK)
    assert np.isfinite(learned.pop("regrets")).all()
    player = Scorer(Problem(target.setting, (cheap,), 3), 0, learned)
    teller = Episode(target, (cheap,), 3)
    while not teller.done:
        player.tell(teller.exec_config(player.ask()))
    assert teller.best_regret() == 0
