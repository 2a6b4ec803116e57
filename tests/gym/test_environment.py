import dataclasses
import json
import math

import numpy as np
import pytest

from autollm_jax.gym.environment import Episode, EpisodeOver, Trial, describe_config

BEST = {"learning_rate": 0.001, "batch_size": 32}  # loss 0, regret 0
GOOD = {"learning_rate": 0.001, "batch_size": 128}  # loss 2, regret 2 / 5.5
BAD = {"learning_rate": 0.008, "batch_size": 128}  # loss 11, regret 1


@pytest.fixture
def episode(make):
    return Episode(make(), [make("cheap", flops=1e14)], budget=3)


def test_a_trial_says_what_was_measured(episode):
    assert episode.exec_config(GOOD) == Trial(1, GOOD, GOOD, 2.0, "ok", True, False, "", 2)


def test_a_trial_shows_no_regret():
    assert not any("regret" in field.name for field in dataclasses.fields(Trial))


def test_an_off_grid_trial_is_matched_and_says_so(episode):
    proposed = {"learning_rate": 0.0011, "batch_size": 40}
    trial = episode.exec_config(proposed)
    assert (trial.valid, trial.matched, trial.config, trial.proposed) == (
        True,
        True,
        BEST,
        proposed,
    )
    assert trial.message == "not in the table; the nearest measured is learning_rate 0.001, " + (
        "batch_size 32"
    )


def test_a_configuration_in_a_line_leaves_zero_weights_out():
    config = {"lr": 0.00123456, "layers": 3, "mixture": {"web": 0.25, "code": 0.75, "law": 0.0}}
    line = "lr 0.001235, layers 3, mixture (web 0.25, code 0.75)"
    assert describe_config(config) == line


@pytest.mark.parametrize(
    "config", [None, {}, {"learning_rate": 1}, {"learning_rate": "x", "batch_size": 1}, 7, "text"]
)
def test_an_invalid_trial_is_recorded_and_spent(episode, config):
    trial = episode.exec_config(config)
    assert (trial.status, trial.valid, trial.config) == ("invalid", False, None)
    assert math.isnan(trial.outcome) and trial.message
    assert episode.tell().budget_left == 2
    assert episode.best_regret() == 1.0


def test_the_text_that_held_no_configuration_is_recorded(episode):
    assert episode.exec_config(None, "I give up").proposed == "I give up"


def test_without_matching_only_measured_configurations_are_valid(make):
    experiment = make(configurations=make().configurations[:11])
    episode = Episode(experiment, (), budget=4, matching=False)
    assert episode.exec_config({"learning_rate": 0.00102, "batch_size": 32}).valid
    assert "accepted are" in episode.exec_config({"learning_rate": 0.003, "batch_size": 32}).message
    assert episode.exec_config(BAD).message == "this configuration was not measured"
    assert episode.exec_config(None).status == "invalid"


def test_the_budget_ends_the_episode(episode):
    for config in (BAD, GOOD, BEST):
        assert not episode.done
        episode.exec_config(config)
    assert episode.done and episode.tell().budget_left == 0
    with pytest.raises(EpisodeOver):
        episode.exec_config(BEST)


def test_finishing_early_leaves_the_remaining_trials_out(episode):
    episode.exec_config(GOOD)
    episode.finish()
    assert episode.done and episode.tell().budget_left == 0
    assert len(episode.score_rows()) == len(episode.rewards) == 1
    with pytest.raises(EpisodeOver):
        episode.exec_config(BEST)


def test_best_regret_is_that_of_the_first_k_trials(episode):
    for config in (BAD, GOOD, BEST):
        episode.exec_config(config)
    np.testing.assert_allclose([episode.best_regret(k) for k in range(4)], [1, 1, 2 / 5.5, 0])


def test_an_episode_returns_the_mean_score_of_its_trials_less_penalties(make):
    episode = Episode(make(), (), budget=4, invalid_penalty=0.1)
    for config in (GOOD, None, BAD, BEST):
        episode.exec_config(config)
    np.testing.assert_allclose(episode.rewards, [1 - 2 / 5.5, -0.1, 0, 2 / 5.5 / 4])
    scores = [1 - episode.best_regret(k + 1) for k in range(4)]
    np.testing.assert_allclose(sum(episode.rewards), np.mean(scores) - 0.1)


def test_a_diverged_trial_shows_its_loss_and_scores_one(make):
    episode = Episode(make(status=["diverged"] + ["ok"] * 11), (), budget=2)
    trial = episode.exec_config(BEST)
    assert (trial.status, trial.outcome, trial.valid) == ("diverged", 0.0, True)
    assert episode.best_regret() == 1.0


def test_score_rows_hold_each_trials_own_regret(episode):
    for config in (GOOD, BAD, None):
        episode.exec_config(config)
    rows = episode.score_rows()
    np.testing.assert_allclose([row["regret"] for row in rows], [2 / 5.5, 1, 1])
    np.testing.assert_allclose([row["regret_minmax"] for row in rows], [2 / 11, 1, 1])
    assert [row["trial"] for row in rows] == [1, 2, 3]
    assert [json.loads(row["config"]) for row in rows] == [GOOD, BAD, None]
    assert rows[0]["experiment"] == "small" and rows[0]["fidelity"] == "low"


def test_the_target_or_a_mere_setting_is_no_evidence(make):
    for evidence in (make(), make("other").setting):
        with pytest.raises(ValueError, match="cannot be evidence"):
            Episode(make(), [evidence], budget=1)


def test_trials_without_an_outcome_are_equal(make):
    def trial():
        return Episode(make(), (), 1).exec_config(None, "nothing")

    assert trial() == dataclasses.replace(trial(), outcome=float("nan"))
    assert trial() != dataclasses.replace(trial(), outcome=0.0)
    assert trial() != dataclasses.replace(trial(), message="other") and trial() != 3


def test_a_trial_keeps_its_row(make):
    experiment = make()
    episode = Episode(experiment, (), budget=3)
    trial = episode.exec_config(GOOD)
    assert experiment.configurations[trial.row] == GOOD
    assert episode.exec_config(None).row is None


def test_the_rewards_of_rows_are_those_that_running_them_would_bring(make):
    experiment = make()
    rows = range(len(experiment.configurations))

    def started(*trials):
        episode = Episode(experiment, [], budget=4)
        for config in trials:
            episode.exec_config(config)
        return episode

    for trials in ((), (GOOD,), (BAD, GOOD, {})):
        brought = []
        for row in rows:
            episode = started(*trials)
            episode.exec_config(experiment.configurations[row])
            brought.append(episode.rewards[-1])
        told = started(*trials).rewards_of(rows)
        np.testing.assert_allclose(told, brought, atol=1e-12)
        assert len(set(told.tolist())) > 1
