import dataclasses
import itertools
import json

import numpy as np
import pytest

from autollm_jax.curriculum import teacher
from autollm_jax.curriculum.lookahead import Lookahead, worth
from autollm_jax.curriculum.pairs import CurationConfig, Pair, curate
from autollm_jax.curriculum.teacher import (
    SimulationConfig,
    Trajectory,
    hindsight,
    simulate,
    turn_text,
)
from autollm_jax.forecasts.advice import decision_of
from autollm_jax.gym.environment import Episode
from autollm_jax.text import prompts
from autollm_jax.text.claims import audit
from autollm_jax.text.parsing import parse_action
from autollm_jax.text.playing import act
from autollm_jax.text.symbols import END_OF_TURN, LETTERS, PANELS
from tests.families import bowl_family, decided, panel_of

CURATION = CurationConfig(pairs=10, pairs_per_family=4)
CONFIG = SimulationConfig(budget=3, episodes=2)


@pytest.fixture(scope="module")
def played():
    """Pairs with their trajectories, each with the decisions of its turns."""
    made, decisions = [], []

    def deciding(*arguments):
        decisions.append(decision_of(*arguments))
        return decisions[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "decision_of", deciding)
        for pair in curate(bowl_family(), CURATION):
            found = simulate(pair, CONFIG)
            faced = iter(decision for decision in decisions if decision is not None)
            made += [(pair, t, list(itertools.islice(faced, len(t.turns) // 2))) for t in found]
            decisions.clear()
    return made


@pytest.fixture
def pair(family, recipe):
    return Pair(family[3], tuple(family[:3]), recipe)


def trusted_of(turn):
    """Return the position of the panel that an agent's turn trusts."""
    return PANELS.index(turn.text.rpartition("trust ")[2].partition(")")[0] + ")")


def test_every_statement_of_every_simulated_turn_is_true(played):
    claims = 0
    for pair, trajectory, decisions in played:
        episode = Episode(pair.target, pair.evidence, CONFIG.budget)
        for turn, decision in zip(trajectory.turns[1::2], decisions, strict=True):
            found = audit(parse_action(turn.text).think, decision)
            assert found.n == found.true > 0 and found.unread == found.unchecked == 0
            assert turn.text == turn_text(decision, trusted_of(turn))
            assert decision.observation.trials == episode.trials
            act(episode, turn.text, decision.offer.rows)
            claims += found.n
        best = [episode.best_regret(k + 1) for k in range(len(episode.trials))]
        assert list(trajectory.regrets) == best
    assert claims > 100


def test_hindsight_prefers_the_rewarding_panel_and_rules_none_out():
    rewards_P = np.array([0.0, 0.3, 0.1, 0.3, 0.9])
    for uniform, softness in ((0.1, 0.1), (0.3, 0.5)):
        config = SimulationConfig(softness=softness, uniform=uniform, prior=0.2)  # as of the others
        chance_P = hindsight(rewards_P, config)
        assert chance_P.sum() == pytest.approx(1) and chance_P.min() >= uniform / 5 > 0
        assert chance_P[0] < chance_P[2] < chance_P[1] == chance_P[3] < chance_P[4]
        guided_P = (chance_P - uniform / 5) / (1 - uniform)
        assert guided_P[4] / guided_P[1] == pytest.approx(np.exp(0.6 / softness))
    np.testing.assert_allclose(hindsight(np.full(4, 0.7), SimulationConfig(prior=0.25)), 0.25)


def test_before_hindsight_all_advisers_together_are_the_likeliest():
    config = SimulationConfig(softness=0.1, uniform=0.1, prior=0.4)
    np.testing.assert_allclose(hindsight(np.zeros(4), config), [0.2, 0.2, 0.2, 0.4])
    # Half a softness is too little for another panel, twice the softness is enough.
    assert hindsight(np.array([0.05, 0.0, 0.0, 0.0]), config).argmax() == 3
    assert hindsight(np.array([0.20, 0.0, 0.0, 0.0]), config).argmax() == 0


@pytest.mark.parametrize("ahead", [False, True])
def test_the_chances_of_a_turn_are_hindsights_over_what_the_picks_bring(pair, ahead):
    (first, *_) = simulate(pair, dataclasses.replace(CONFIG, lookahead=ahead))
    episode = Episode(pair.target, pair.evidence, CONFIG.budget)
    lookahead = Lookahead(panel_of(episode.setting, episode.evidence)) if ahead else None
    expected = hindsight(worth(episode, decided(episode).offer, lookahead), CONFIG)
    np.testing.assert_allclose(first.turns[1].chances, expected, atol=1e-4)
    assert np.ptp(expected) > 0.01 and first.turns[0].chances == ()


def test_panels_are_drawn_as_likely_as_their_chances_say(pair):
    """At a low temperature without a uniform share only the best picks are left."""
    sure = dataclasses.replace(
        CONFIG, softness=1e-3, uniform=0.0, prior=1 / len(PANELS), episodes=6
    )
    free = dataclasses.replace(CONFIG, softness=1e3, prior=1 / len(PANELS), episodes=6)
    for trajectory in simulate(pair, sure):
        for turn in trajectory.turns[1::2]:
            assert turn.chances[trusted_of(turn)] >= max(turn.chances) - 0.01
    said = [trusted_of(turn) for t in simulate(pair, free) for turn in t.turns[1::2]]
    assert len(set(said)) > 6


def test_the_teachers_texts_tell_nothing_of_the_untried_outcomes(family, pair):
    """Another target with the same cells, but other outcomes, gets the same first prompt."""
    other = dataclasses.replace(family[3], outcomes=family[0].outcomes)
    assert not np.array_equal(family[3].outcomes.values_R, other.outcomes.values_R)
    one, two = (
        simulate(dataclasses.replace(pair, target=target), CONFIG)[0].turns
        for target in (family[3], other)
    )
    assert one[0] == two[0] and one[1].chances != two[1].chances


def test_turns_alternate_and_end_with_an_agent_that_names_a_candidate(played):
    for _, trajectory, _ in played:
        roles = [turn.role for turn in trajectory.turns]
        assert roles == ["environment", "agent"] * (len(roles) // 2)
        for turn in trajectory.turns:
            assert turn.text.endswith(END_OF_TURN) == (turn.role == "agent") == turn.learned
            assert turn.text.count(END_OF_TURN) == (turn.role == "agent")
            assert turn.role == "environment" or parse_action(turn.text).letter is not None


def test_candidates_have_another_order_in_another_episode(pair):
    texts = {trajectory.turns[0].text for trajectory in simulate(pair, CONFIG)}
    assert len(texts) == CONFIG.episodes


def test_an_episode_ends_when_everything_is_tried(bowl, recipe):
    small = bowl("s", 1e7, 1e8, (2.0**-9, 64), "low", (2.0**-9, 2.0**-8), (64,))
    for trajectory in simulate(Pair(small, (), recipe), CONFIG):
        assert len(trajectory.regrets) == 2 and len(trajectory.turns) == 4


def test_a_trajectory_is_rebuilt_from_its_line(played):
    for _, trajectory, _ in played[::4]:
        line = trajectory.to_json()
        assert "\n" not in line
        assert Trajectory.from_json(line) == trajectory
        assert json.loads(line)["recipe"]["provenance"]


def test_without_reasoning_the_same_actions_are_taken_without_a_think_part(pair):
    spoken = simulate(pair, CONFIG)
    silent = simulate(pair, dataclasses.replace(CONFIG, reasoning=False))
    for loud, quiet in zip(spoken, silent, strict=True):
        assert quiet.regrets == loud.regrets
        for a, b in zip(quiet.turns[1::2], loud.turns[1::2], strict=True):
            assert "think" not in a.text and b.text.endswith(a.text) and len(a.text) < len(b.text)


def test_full_texts_are_written_where_they_are_asked_for(pair):
    for full in (False, True):
        (trajectory, *_) = simulate(pair, dataclasses.replace(CONFIG, full=full))
        assert all((" at learning_rate " in t.text) == full for t in trajectory.turns[::2])
        letter = parse_action(trajectory.turns[1].text).letter
        line = trajectory.turns[0].text.partition(f"\n{LETTERS[letter]}")[2]
        assert (" at learning_rate " in line.partition(prompts.LINE)[0]) == full
