"""Advice: what is proposed, how sure it is, and what it says besides."""

import dataclasses
import math

import numpy as np
import pytest

from autollm_jax.advise import levels
from autollm_jax.advise.advisor import Advisor
from autollm_jax.advise.decider import Choice, Panels, conversation
from autollm_jax.advise.target import Target
from autollm_jax.advise.words import advice_text
from autollm_jax.errors import UserError
from autollm_jax.forecasts.advice import decision_of
from autollm_jax.gym.environment import Observation
from autollm_jax.gym.spaces import InvalidConfiguration

from .conftest import TARGET, loss


@pytest.fixture(scope="module")
def advisor(rows):
    return Advisor.from_runs(rows, target=TARGET, decider=Panels())


@pytest.fixture(scope="module")
def advice(advisor):
    return advisor.ask()


def test_the_proposal_is_near_the_optimum_of_the_target(advice):
    config = advice.config
    best = min(loss(r, 64, 1.6e7) for r in np.geomspace(1e-4, 1e-2, 50))
    worst = loss(1e-2, 128, 1.6e7)
    found = loss(config["learning_rate"], config["batch_size"], 1.6e7)
    assert found - best < 0.1 * (worst - best)


def test_the_handful_is_ranked_each_with_prediction_and_intervals(advice):
    assert 2 <= len(advice.ranked) <= 5
    chances = [ranked.chance for ranked in advice.ranked[1:]]
    assert chances == sorted(chances, reverse=True)
    for ranked in advice.ranked:
        (low, high), (least, most) = ranked.interval_80, ranked.interval_95
        assert least < low < ranked.outcome < high < most
        assert math.isnan(ranked.beats_best) and min(ranked.advisers.values()) >= 0


def test_a_trials_outcome_moves_the_prediction(advisor, advice):
    expected = advice.ranked[0].outcome
    surprised, assured = (advisor.tell(advice.config, expected + d).ask() for d in (1.0, 0.0))
    assert surprised.config != advice.config
    assert abs(surprised.ranked[0].outcome - expected - 1.0) < 0.5
    assert 0 < assured.ranked[0].beats_best < 1 and not math.isnan(assured.expected_gain)


def test_where_the_level_is_unknown_a_trial_narrows_the_prediction(rows):
    advisor = Advisor.from_runs(rows[:15], target=TARGET, decider=Panels())  # of one size
    before = advisor.ask()
    after = advisor.tell(before.config, before.ranked[0].outcome).ask()
    wide, narrow = (np.ptp(found.ranked[0].interval_80) for found in (before, after))
    assert narrow < wide


def test_telling_makes_another_advisor_and_leaves_the_first(advisor, advice):
    told = advisor.tell(advice.config, 2.5).tell(
        {"learning_rate": 1e-4, "batch_size": 32}, math.nan
    )
    assert [t.status for t in told.question.trials] == ["ok", "diverged"]
    assert not advisor.question.trials
    with pytest.raises(InvalidConfiguration, match="learning_rate"):
        advisor.tell({"batch_size": 32}, 2.0)


def test_what_was_tried_is_not_proposed_again(advisor):
    found = advisor
    proposed = []
    for _ in range(4):
        config = found.ask().config
        assert config not in proposed
        proposed.append(config)
        found = found.tell(config, loss(config["learning_rate"], config["batch_size"], 1.6e7))


def test_it_says_stop_where_no_gain_is_left_beyond_the_noise(rows):
    noisy = [
        {**row, "seed": seed, "loss": row["loss"] + 0.3 * (-1) ** seed}
        for row in rows
        for seed in range(2)
    ]
    advisor = Advisor.from_runs(noisy, target=TARGET, decider=Panels())
    first = advisor.ask()
    assert first.noise == pytest.approx(0.3 * math.sqrt(2), rel=0.5) and not first.stop
    told = advisor.tell(first.config, first.ranked[0].outcome - 1.0)
    assert told.ask().stop
    assert not advisor.tell(first.config, first.ranked[0].outcome + 5.0).ask().stop


def test_runs_at_the_targets_size_are_its_trials_and_running_ones_are_not_repeated(rows):
    here = {"run": "x", **TARGET}
    dear = [
        {**here, "learning_rate": 1e-3, "batch_size": 64, "loss": 2.1, "state": "finished"},
        {**here, "learning_rate": 3e-4, "batch_size": 64, "loss": None, "state": "running"},
    ]
    cheap = [{**row, "state": "finished"} for row in rows]
    advisor = Advisor.from_runs(cheap + dear, target=TARGET, decider=Panels())
    question = advisor.question
    assert [trial.outcome for trial in question.trials] == [2.1]
    assert question.running == ({"learning_rate": 3e-4, "batch_size": 64},)
    tried = [{"learning_rate": r, "batch_size": 64} for r in (1e-3, 3e-4)]
    assert all(ranked.config not in tried for ranked in advisor.ask().ranked)


def test_thin_evidence_and_far_targets_are_said(rows):
    few = Advisor.from_runs(rows[:3], target=TARGET, decider=Panels()).ask()
    assert any("too few" in note for note in few.notes)
    assert any("one fidelity" in note for note in few.notes)
    far = Advisor.from_runs(
        rows, target={"parameters": 7e9, "tokens": 2e11}, decider=Panels()
    ).ask()
    assert any("beyond" in note for note in far.notes)
    near = Advisor.from_runs(rows, target=TARGET, decider=Panels()).ask()
    assert not near.notes


def test_the_cheap_run_is_cheaper_unmade_and_tells_something(rows, advisor, advice):
    run = advice.cheap_run
    assert run is not None and 0 < run.cost < 1 and 0 < run.lowers <= 1
    # The grids of all sizes are whole, so it is of a size between them and the target.
    assert run.fidelity not in {e.name for e in advisor.question.evidence}
    some = [row for number, row in enumerate(rows) if number % 3]
    run = Advisor.from_runs(some, target=TARGET, decider=Panels()).ask().cheap_run
    for experiment in advisor.question.evidence:
        assert run.fidelity != experiment.name or run.config in experiment.configurations


def test_candidates_are_the_only_ones_proposed(rows):
    only = [{"learning_rate": r, "batch_size": 32} for r in (1e-4, 3e-4)]
    advisor = Advisor.from_runs(rows, target=TARGET, candidates=only, default=only[0],
                                decider=Panels())  # fmt: skip
    assert all(ranked.config in only for ranked in advisor.ask().ranked)


def test_a_maximised_objective_is_the_mirror_image(rows, advice):
    mirrored = [
        {**{k: v for k, v in row.items() if k != "loss"}, "score": -row["loss"]} for row in rows
    ]
    found = Advisor.from_runs(mirrored, target=TARGET, decider=Panels()).ask()
    assert found.config == advice.config
    assert found.ranked[0].outcome == pytest.approx(-advice.ranked[0].outcome)


def test_advice_is_plain_json(advice):
    value = advice.to_json()
    assert value["ranked"][0]["beats_best"] is None
    assert value["ranked"][0]["config"] == advice.config


def test_a_decider_is_told_the_trials_as_an_episode(advisor, advice):
    told = advisor.tell(advice.config, 2.5).tell({"learning_rate": 1e-4, "batch_size": 32}, 3.0)
    question, panel = told.question, told.panel
    seen = Observation(question.setting, question.evidence, 3, question.trials)
    decision = decision_of(panel, seen, 0)
    turns = conversation(panel, seen, decision, budget=5, full=False)
    assert [turn.role for turn in turns] == ["environment", "agent"] * 2 + ["environment"]
    assert turns[0].text.startswith("5 trials;") and "trial 2" in turns[-1].text
    short = conversation(panel, seen, decision, budget=2, full=False)
    assert [turn.role for turn in short] == ["environment", "agent", "environment"]


def test_the_decider_has_the_last_word(advisor):
    class Last:
        def decide(self, panel, seen, decision):
            chances_C = np.zeros(len(decision.offer.rows))
            return Choice(len(chances_C) - 1, chances_C, "because")

    found = dataclasses.replace(advisor, decider=Last()).ask()
    assert found.thinking == "because" and found.ranked[0].chance == 0


@pytest.mark.parametrize("text", ["", "7e9", "parameters=many", "parameters=-1"])
def test_a_target_that_is_not_understood_is_refused(text):
    with pytest.raises(UserError, match="parameters=7e9,tokens=2e11"):
        Target.of(text)


def test_a_target_is_read_with_suffixes():
    assert Target.of("parameters=7B, tokens=200B") == Target({"parameters": 7e9, "tokens": 2e11})


def test_the_level_follows_a_power_law_and_its_error_grows_with_distance(rows, advisor):
    evidence, setting = advisor.question.evidence, advisor.question.setting
    fidelity = dataclasses.replace(setting.fidelity, parameters=1e9, tokens=2e10)
    far = dataclasses.replace(setting, fidelity=fidelity)
    near = levels.level_of(setting, evidence, 1.0)
    assert near.loss == pytest.approx(2 + 10 * 1.6e7**-0.2, abs=0.05)
    assert 0 < near.error < 0.1 and near.error < levels.level_of(far, evidence, 1.0).error
    # Runs of one size do not tell how a level moves.
    assert levels.level_of(setting, evidence[:1], 1.0).error > 0.5
    assert math.isnan(levels.level_of(setting, (), 1.0).loss)


def test_a_column_that_the_target_names_tells_experiments_apart(rows):
    both = [
        {**row, "corpus": corpus, "loss": row["loss"] + (corpus == "web")}
        for row in rows
        for corpus in ("web", "code")
    ]
    advisor = Advisor.from_runs(both, target={**TARGET, "corpus": "code"}, decider=Panels())
    question = advisor.question
    assert set(question.setting.space.names) == {"learning_rate", "batch_size"}
    assert len(question.evidence) == 6 and question.evidence[0].facts == {"corpus": "code"}
    with pytest.raises(UserError, match="no column 'planet'"):
        Advisor.from_runs(rows, target={**TARGET, "planet": "Mars"}, decider=Panels())


@pytest.mark.parametrize("trials", [1, 2])
def test_a_first_expensive_run_that_diverges_leaves_the_level_known(advisor, advice, trials):
    told, tried = advisor, advice.config
    for _ in range(trials):
        told = told.tell(tried, math.nan)
        after = told.ask()
        tried = after.config
    first = after.ranked[0]
    assert after.config != advice.config and after.state == advice.state
    assert abs(first.outcome - advice.ranked[0].outcome) < 0.5 and math.isnan(first.beats_best)
    assert np.isfinite([*first.interval_80, *first.interval_95]).all()
    assert "no expensive run has an outcome yet" in advice_text(told, after)
