"""The environment's turns: what a brief text holds, and a full one besides."""

import re

import pytest

from autollm_jax.gym.environment import Episode
from autollm_jax.text import prompts, spelling
from autollm_jax.text.playing import act
from autollm_jax.text.symbols import CONTROL, EXEC, EXEC_END, LETTERS, PANELS, PERCENTS, percent
from tests.families import decided

KINDS = ["family", "scores", "mixtures", "architectures", "tunings"]


@pytest.fixture
def episode(family):
    return Episode(family[-1], family[:-1], budget=4)


def told(episode, config, full=False):
    """Run a configuration; return the environment's next turn."""
    trial = episode.exec_config(config)
    return prompts.feedback(trial, decided(episode), episode.tell(), full)


def candidate_lines(text):
    return [line for line in text.split(prompts.LINE) if line.startswith("#")]


@pytest.mark.parametrize("share", [0, 0.0024, 0.0026, 0.034, 0.036, 0.176, 0.33, 0.899, 0.91, 7])
def test_a_share_is_rounded_to_the_nearest_of_the_percents(share):
    nearest = min(PERCENTS, key=lambda number: abs(number - 100 * share))
    assert percent(share) == f"{nearest:g}%"


def test_every_percent_is_rounded_to_itself():
    assert [percent(number / 100) for number in PERCENTS] == [f"{n:g}%" for n in PERCENTS]


@pytest.mark.parametrize("kind", KINDS)
def test_a_brief_text_holds_no_configuration_and_a_full_one_each_candidates(kind, request):
    *cheap, target = request.getfixturevalue(kind)
    episode = Episode(target, cheap, 3)
    for number in range(2):
        decision = decided(episode)
        if number:
            texts = [
                prompts.feedback(episode.trials[-1], decision, episode.tell(), full)
                for full in (False, True)
            ]
        else:
            texts = [prompts.describe(decision, full) for full in (False, True)]
        brief, full = map(candidate_lines, texts)
        assert len(brief) == len(full) == len(decision.offer.rows)
        assert len(texts[0]) < len(texts[1])
        for row, short, long in zip(decision.offer.rows, brief, full, strict=True):
            spelled = spelling.spell_row(target.cells, row)
            assert long.endswith(f" at {spelled}") and spelled not in texts[0]
            assert re.fullmatch(r"#[A-P]([\d.]+%)+", short)
        names = f"task {target.task}:\n{' '.join(target.space.names)};\n"
        assert texts[1].startswith(names) != bool(number)
        # Whom to trust in one task says little about another size: a small policy is not told it.
        assert not set(re.findall(r"\w+", texts[0])) & {target.task, *target.space.names}
        act(episode, f"{EXEC}{LETTERS[0]}{EXEC_END}", decision.offer.rows)


def test_a_candidates_line_has_the_regret_that_each_adviser_expects(episode):
    decision = decided(episode)
    remaining_AR = decision.advice.remaining_AR
    for number, line in enumerate(candidate_lines(prompts.describe(decision, full=False))):
        row = decision.offer.rows[number]
        above = [percent(own_R[row] - own_R.min()) for own_R in remaining_AR]
        assert line == LETTERS[number] + "".join(above)


def test_a_turn_ends_with_the_first_pick_of_each_panel(episode):
    picks = decided(episode).offer.picks
    text = prompts.describe(decided(episode), full=False)
    said = re.fullmatch(r"(?s).*;\nfirst:\n(.*);\n", text)[1]
    pairs = re.findall(r"(\([a-z-]+\))(#[A-P])", said)
    assert pairs == [(name, LETTERS[pick]) for name, pick in zip(PANELS, picks, strict=True)]


def test_the_full_first_turn_names_task_target_choices_evidence_and_budget(episode):
    text = prompts.describe(decided(episode), full=True)
    for part in ["task pretraining:\nlearning_rate batch_size;\n4 trials;", "minimize loss",
                 "40.0M parameters 1.6B tokens", "batch_size: 32 64 128", "default: ",
                 "20.0M 600M at learning_rate",
                 "target has 2.0 x parameters 2.7 x tokens of the nearest;\n77 configurations;",
                 "advisers own nearest drift trees process;"]:  # fmt: skip
        assert part in text


def test_a_score_that_should_be_high_is_maximized(scores):
    episode = Episode(scores[-1], scores[:-1], 2)
    assert "maximize score" in prompts.describe(decided(episode), full=True)
    best = scores[-1].configurations[scores[-1].outcomes.best_row]
    assert told(episode, scores[-1].default).startswith("trial 1 is first, 1 left;")
    assert told(episode, best).startswith("trial 2 is better by ")


def test_feedback_says_how_the_trial_compares(episode):
    worse = {"learning_rate": 2.0**-12, "batch_size": 512}
    better = {"learning_rate": 2.0**-9, "batch_size": 192}
    said = [told(episode, config) for config in (worse, better, worse)]
    losses = [trial.outcome for trial in episode.trials]
    gap = percent((losses[0] - losses[1]) / decided(episode).panel.unit)
    assert said[0].startswith("trial 1 is first, 3 left;\nunsure ") and "off by" not in said[0]
    assert said[1].startswith(f"trial 2 is better by {gap}, 2 left;\nunsure ")
    assert said[2].startswith(f"trial 3 is worse by {gap}, 1 left;\n")
    decision = decided(episode)
    off = "".join(map(percent, decision.advice.surprise_A))
    off_A = decision.advice.surprise_A
    closest, farthest = PANELS[int(off_A.argmin())], PANELS[int(off_A.argmax())]
    assert f"\noff by {off}, closest {closest}, farthest {farthest};\n" in said[2]


def test_full_feedback_has_the_outcome_and_what_a_trial_was_matched_to(episode):
    said = told(episode, {"learning_rate": 1.6e-3, "batch_size": 100}, full=True)
    assert episode.trials[0].matched
    assert re.search(
        r"^trial 1 is first; not measured, nearest learning_rate 1.4e-3 batch_size 128 gives "
        r"loss \d\.\d+, 3 left;", said
    )  # fmt: skip


def test_feedback_shows_why_a_trial_is_invalid_and_that_it_diverged(episode):
    said = told(episode, {"learning_rate": 1e-3})
    assert said.startswith("trial 1 is invalid. batch_size is missing")
    said = told(episode, {"learning_rate": 2.0**-7, "batch_size": 64}, full=True)
    assert episode.trials[1].status == "diverged"
    assert "trial 2 is diverged; learning_rate 7.8e-3 batch_size 64 gives no loss, 2 left" in said


def test_messages_cannot_write_symbols(episode):
    text = 'x<exec>{"a": 1}</exec><end>;\n' * 20
    said = told(episode, {text: 1, "batch_size": 64}).partition(prompts.LINE)[0]
    assert not any(symbol in said for symbol in CONTROL)
    assert len(said) < 200


def test_without_evidence_the_default_is_offered(family):
    decision = decided(Episode(family[0], (), 2))
    assert "no cheap experiments;" in prompts.describe(decision, full=False)
    assert family[0].match(family[0].default).row in decision.offer.rows


def test_candidates_under_a_limit_have_their_size(architectures):
    *cheap, target = architectures
    decision = decided(Episode(target, cheap, 2))
    text = prompts.describe(decision, full=True)
    assert f" limit {spelling.short(target.limit['at_most'])};" in text
    for row, line in zip(decision.offer.rows, candidate_lines(text), strict=True):
        assert f" {spelling.short(target.parameters_R[row])} parameters at width " in line


def test_the_names_of_a_mixtures_parts_are_short(mixtures):
    *cheap, target = mixtures
    text = prompts.describe(decided(Episode(target, cheap, 2)), full=True)
    assert "mixture: percent of genera source math wiki old;" in text


def test_an_end_is_no_trial(family):
    episode = Episode(family[0], (), 3)
    assert act(episode, '<exec>{"done": true}</exec>', ()) is None
    assert episode.done and not episode.trials


def test_a_letter_that_is_not_offered_is_an_invalid_trial(episode):
    rows = decided(episode).offer.rows[:3]
    offered = act(episode, "<exec>#C</exec>", rows)
    assert offered.valid and not offered.matched and offered.row == rows[2]
    beyond = act(episode, "<think>x</think><exec>#D</exec>", rows)
    assert not beyond.valid and beyond.proposed == "<think>x</think><exec>#D</exec>"
    assert episode.rewards[1] == -episode.invalid_penalty
