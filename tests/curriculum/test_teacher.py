import dataclasses
import json

import numpy as np
import pytest

from autollm_jax.curriculum.pairs import CurationConfig, Families, Pair, curate, draw_recipes
from autollm_jax.curriculum.teacher import (
    SimulationConfig,
    Trajectory,
    respond,
    simulate,
    simulate_all,
)
from autollm_jax.gym.environment import Episode
from autollm_jax.text import candidates, prompts
from autollm_jax.text.claims import check_claims
from autollm_jax.text.parsing import parse_action
from autollm_jax.text.playing import act
from autollm_jax.text.spelling import read_config
from tests.families import bowl_family, observed

CURATION = CurationConfig(pairs=90, pairs_per_family=6, invented_names=0.3)


def _states(pair, trajectory, budget=5):
    """Replay a trajectory: yield each agent turn with the state in which it was said."""
    episode = Episode(pair.target, pair.evidence, budget)
    for turn in trajectory.turns:
        if turn.role == "agent":
            yield turn, observed(episode)
            act(episode, turn.text)


def _checked(pairs):
    for recipe_pair, trajectory in pairs:
        for turn, observation in _states(recipe_pair, trajectory):
            if turn.learned:
                think = parse_action(turn.text).think
                yield think, check_claims(think, observation)


@pytest.fixture(scope="module")
def played():
    config = SimulationConfig()
    pairs = curate(bowl_family(), CURATION)
    return [(pair, simulate(pair, pair.recipe.number, 5, config)) for pair in pairs]


def test_every_statement_of_every_simulated_turn_is_true(played):
    claims = 0
    for think, found in _checked(played):
        assert [c for c in found if not c.true] == [], think
        claims += len(found)
    assert claims > 800


def test_every_simulated_turn_makes_statements(played):
    for think, found in _checked(played):
        # The choice is a claim in every turn; "all tried" ends an episode without one.
        assert think == "all tried" or any("lowest" in c.text for c in found), think


def test_a_wrong_number_is_caught(family, recipe):
    pair = Pair(family[3], tuple(family[:3]), recipe)
    turn, observation = next(_states(pair, simulate(pair, 0)))
    think = parse_action(turn.text).think
    assert all(c.true for c in check_claims(think, observation))
    for old, new in [
        ("experiment: 2", "experiment: 7"),
        (" x tokens", "1 x tokens"),
        ("falls with parameters", "rises with parameters"),
        ("% at ", "% at 1"),
    ]:
        changed = think.replace(old, new)
        assert changed != think
        assert not all(c.true for c in check_claims(changed, observation)), new


def test_a_wrong_verdict_or_best_trial_is_caught(family, recipe):
    pair = Pair(family[3], tuple(family[:3]), recipe)
    _, (turn, observation), *_ = _states(pair, simulate(pair, 0))
    think = parse_action(turn.text).think
    assert all(c.true for c in check_claims(think, observation))
    assert think.startswith("latest is first and best is trial 1;\n")
    wrong = think.replace("first", "worse")
    assert not all(c.true for c in check_claims(wrong, observation))
    wrong = think.replace("trial 1", "trial 2")
    assert not all(c.true for c in check_claims(wrong, observation))


def test_the_script_knows_only_the_outcomes_of_its_trials(family, recipe):
    """Another target with the same cells, but other outcomes, gets the same first turn."""
    other = dataclasses.replace(family[3], outcomes=family[0].outcomes)
    turns = [
        simulate(Pair(target, tuple(family[:3]), recipe), 0).turns[1]
        for target in (family[3], other)
    ]
    assert turns[0] == turns[1]
    assert not np.array_equal(family[3].outcomes.values_R, other.outcomes.values_R)


def test_the_choice_is_the_lowest_forecast_on_the_list(played):
    for pair, trajectory in played[:40]:
        for turn, observation in _states(pair, trajectory):
            listed = candidates.list_candidates(observation)
            action = parse_action(turn.text)
            if turn.learned and not action.finished:
                lowest = min(listed, key=lambda c: c.expected)
                config = read_config(pair.target.cells, action.config)
                assert pair.target.match(config) == (lowest.row, False)


def test_the_script_beats_chance_by_far(family, recipe):
    pair = Pair(family[3], tuple(family[:3]), recipe)
    regrets = simulate(pair, 0).regrets
    assert regrets[0] < 0.2 and regrets[-1] < 0.05
    assert family[3].outcomes.regrets_R.mean() > 0.5


def test_perturbed_turns_are_not_learned_and_may_be_invalid_or_matched(played):
    perturbed = [t for _, trajectory in played for t in trajectory.turns if "a guess" in t.text]
    assert len(perturbed) > 10
    assert not any(turn.learned for turn in perturbed)
    text = "".join(trajectory.text for _, trajectory in played)
    assert "invalid" in text and "not measured, nearest is" in text


def test_turns_alternate_and_end_with_an_agent(played):
    for _, trajectory in played:
        roles = [turn.role for turn in trajectory.turns]
        assert roles == ["environment", "agent"] * (len(roles) // 2)
        for turn in trajectory.turns:
            assert turn.text.endswith(prompts.END_OF_TURN) == (turn.role == "agent")
            assert turn.text.count(prompts.END_OF_TURN) == (turn.role == "agent")


def test_an_episode_ends_when_everything_is_tried(bowl, recipe):
    small = bowl("s", 1e7, 1e8, (2.0**-9, 64), "low", (2.0**-9, 2.0**-8), (64,))
    trajectory = simulate(Pair(small, (), recipe), 0)
    assert len(trajectory.regrets) == 2
    assert parse_action(trajectory.turns[-1].text).finished
    episode = Episode(small, (), 5)
    assert not parse_action(respond(observed(episode))).finished


def test_a_trajectory_is_rebuilt_from_its_line(played):
    for _, trajectory in played[:5]:
        line = trajectory.to_json()
        assert "\n" not in line
        assert Trajectory.from_json(line) == trajectory
        assert json.loads(line)["recipe"]["provenance"]


def test_hindsight_leaves_bad_episodes_out(family, recipe):
    pair = Pair(family[3], tuple(family[:3]), recipe)
    strict = SimulationConfig(perturbed=1.0, perturbed_moves=1.0, worst_regret=0.0)
    assert not all(simulate(pair, seed, 2, strict).kept for seed in range(5))
    assert simulate(pair, 0).kept


def test_two_processes_play_what_one_plays(family):
    config = SimulationConfig()
    recipes = list(draw_recipes(Families(family), dataclasses.replace(CURATION, pairs=24)))
    alone = list(simulate_all(family, recipes, config))
    assert list(simulate_all(family, recipes, config, processes=2)) == alone
    assert len(alone) == 24


def test_without_reasoning_the_same_actions_are_taken_without_a_think_part(family, recipe):
    pair = Pair(family[-1], tuple(family[:-1]), recipe)
    config = SimulationConfig(perturbed=0.0, worst_regret=1.0)
    spoken = simulate(pair, 0, 3, config)
    silent = simulate(pair, 0, 3, dataclasses.replace(config, reasoning=False))
    assert silent.regrets == spoken.regrets
    for a, b in zip(silent.turns, spoken.turns, strict=True):
        if a.role == "agent":
            assert "think" not in a.text and b.text.endswith(a.text) and len(a.text) < len(b.text)


def test_with_matching_off_an_unmeasured_move_is_invalid(family):
    def messages(matching):
        config = SimulationConfig(perturbed=1.0, perturbed_moves=1.0, matching=matching)
        played = [simulate(Pair(family[-1], (), None), n, 5, config) for n in range(30)]
        return "".join(t.text for t in played)

    assert "not measured, nearest is" in messages(True)
    assert "not measured, nearest is" not in messages(False)
