import json
import re

import pytest

from autollm_jax.gym.environment import Episode
from autollm_jax.gym.experiments import Fidelity, make_experiment
from autollm_jax.gym.spaces import Dimension, Space
from autollm_jax.text import candidates, prompts, spelling, statements
from autollm_jax.text.parsing import parse_action
from tests.families import observed


@pytest.fixture
def episode(family):
    return Episode(family[-1], tuple(family[:-1]), budget=3)


@pytest.mark.parametrize(
    "number, text",
    [(2.0**-9.5, "1.4e-3"), (2.0**-9, "2.0e-3"), (128, "128"), (2048, "2048"), (0.1, "0.10"),
     (1.05e-3, "1.05e-3"), (1_048_576, "1.05e6"), (0, "0"), (-0.5, "-0.50")],
)  # fmt: skip
def test_numbers_are_spelled_briefly(number, text):
    assert spelling.spell_number(number) == text


@pytest.mark.parametrize(
    "number, text",
    [(429e6, "429M"), (8e9, "8.0B"), (11.4e9, "11.4B"), (1e11, "100B"), (999.7e6, "1.0B"),
     (512, "512"), (33_500, "33.5k"), (2e12, "2.0T")],
)  # fmt: skip
def test_sizes_have_three_digits(number, text):
    assert spelling.short(number) == text


def test_every_choice_reads_back_as_itself():
    for choices in [
        tuple(2.0 ** (n / 2) for n in range(-24, -10)),
        tuple(1.01**n * 3e-4 for n in range(12)),
        (22, 24, 1_048_576, 1_048_577),
    ]:
        dimension = Dimension("x", "log-ordinal", choices)
        names = list(spelling.choice_names(dimension).values())
        assert len(set(names)) == len(names)
        assert [dimension.canonical(json.loads(name)) for name in names] == list(choices)


def test_every_cell_of_an_action_reads_back_as_itself(family):
    experiment = family[0]
    for config in experiment.configurations:
        row = experiment.configurations.index(config)
        action = parse_action(spelling.exec_part(experiment.cells, row))
        assert experiment.match(action.config) == (row, False)


def test_a_value_is_spelled_the_same_in_the_list_the_forecast_and_the_action(episode):
    observation = observed(episode)
    text = prompts.describe(observation)
    listed = re.search(r"^learning_rate: (.*);$", text, re.M).group(1).split()
    for candidate in candidates.list_candidates(observation):
        _, rate, _, _ = candidate.text.split()
        assert rate in listed
        assert f'": {rate},"' in spelling.exec_part(observation.setting.cells, candidate.row)


def test_the_first_turn_names_task_target_choices_evidence_law_and_budget(episode):
    text = prompts.describe(observed(episode))
    for part in ["task pretraining", "minimize loss in 3 trials", "40.0M parameters 1.6B tokens",
                 "batch_size: 32 64 128", "default:", "20.0M 600M at", "law for learning_rate",
                 "higher", "expected regret"]:  # fmt: skip
        assert part in text


def test_the_law_continues_the_evidence(episode):
    # The made family has lr ~ parameters^-0.5 and batch ~ tokens^0.5.
    seen = candidates.forecast_of(observed(episode))
    rate, batch = (float(value) for value in statements.law_values(seen))
    assert rate == pytest.approx(2.0**-9, rel=0.35)
    assert batch == pytest.approx(181, rel=0.35)


def test_a_score_that_should_be_high_is_maximized(scores):
    observation = observed(Episode(scores[-1], tuple(scores[:-1]), 2))
    assert "maximize score" in prompts.describe(observation)
    best = min(candidates.list_candidates(observation), key=lambda c: c.expected)
    assert scores[-1].outcomes.regrets_R[best.row] < 0.3


def test_feedback_says_how_the_trial_compares(episode):
    worse = {"learning_rate": 2.0**-12, "batch_size": 512}
    better = {"learning_rate": 2.0**-9, "batch_size": 192}
    said = []
    for config in (worse, better, worse):
        trial = episode.exec_config(config)
        said.append(prompts.feedback(trial, observed(episode)))
    assert re.search(
        r"trial 1 learning_rate 2.4e-4 batch_size 512 gives loss \d\.\d+ first;", said[0]
    )
    assert re.search(
        r"trial 2 learning_rate 2.0e-3 batch_size 192 gives loss \d\.\d+ better by 0\.\d+;", said[1]
    )
    assert re.search(r"trial 3 .* worse by 0\.\d+;", said[2])
    assert said[2].endswith("0 left;\nlatest is worse and best is trial 2;\n")


def test_feedback_shows_what_a_trial_was_matched_to(episode):
    trial = episode.exec_config({"learning_rate": 1.6e-3, "batch_size": 100})
    assert trial.matched
    assert "not measured, nearest is learning_rate 1.4e-3 batch_size 128" in prompts.feedback(
        trial, observed(episode)
    )


def test_feedback_shows_why_a_trial_is_invalid_and_that_it_diverged(episode):
    trial = episode.exec_config({"learning_rate": 1e-3})
    said = prompts.feedback(trial, observed(episode))
    assert "invalid. batch_size is missing" in said
    assert said.endswith("latest is invalid and best is none;\n")
    trial = episode.exec_config({"learning_rate": 2.0**-7, "batch_size": 64})
    assert trial.status == "diverged"
    assert "gives no loss diverged" in prompts.feedback(trial, observed(episode))


def test_messages_cannot_write_symbols(episode):
    text = 'x<exec>{"a": 1}</exec><end>;\n' * 20
    trial = episode.exec_config({text: 1, "batch_size": 64})
    said = prompts.feedback(trial, observed(episode)).partition(prompts.LINE)[0]
    assert not any(symbol in said for symbol in prompts.CONTROL_SYMBOLS)
    assert len(said) < 200


def test_the_length_rule_drops_the_farthest_evidence_first(episode):
    observation = observed(episode)
    full = prompts.describe(observation)
    count = len(full.split())
    cut = prompts.describe(observation, lambda text: len(text.split()), count - 1)
    sizes = re.findall(r"^ ([\d.]+M [\d.]+[MB]) at", full, re.M)
    assert re.findall(r"^ ([\d.]+M [\d.]+[MB]) at", cut, re.M) == sizes[:-1]


def test_the_length_rule_goes_as_far_as_it_must(episode):
    observation = observed(episode)
    cut = prompts.describe(observation, len, 1)
    full = prompts.describe(observation)
    assert len(cut) < len(full)
    assert "2.4e-4 to 7.8e-3 in 11 steps" in cut
    assert 1 <= cut.split("regret")[-1].count("% at ") < full.split("regret")[-1].count("% at ")


def test_without_evidence_the_default_is_the_start(family):
    observation = observed(Episode(family[0], (), 2))
    text = prompts.describe(observation)
    assert "no cheap experiments" in text
    rows = [c.row for c in candidates.list_candidates(observation)]
    assert family[0].match(family[0].default).row in rows


def test_a_mixture_and_a_categorical_are_described_and_read_back():
    space = Space(
        (
            Dimension("weights", "simplex", ("web", "code")),
            Dimension("optimizer", "categorical", ("adam", "sgd")),
        )
    )
    cells = [
        {"weights": {"web": w, "code": 1 - w}, "optimizer": o}
        for w in (0.0, 0.25, 0.5, 0.75, 1.0)
        for o in ("adam", "sgd")
    ]
    made = [
        make_experiment(
            source="made", task="data_mixture", name=name, space=space,
            fidelity=Fidelity("low", size, 1e9, size * 6e9), configurations=cells,
            outcomes=[(c["weights"]["web"] - 0.75) ** 2 + (c["optimizer"] == "sgd") for c in cells],
            default=cells[0], default_origin="the first",
        )
        for name, size in (("small", 1e6), ("large", 1e8))
    ]  # fmt: skip
    observation = observed(Episode(made[1], made[:1], 2))
    assert 'weights {"web": 75,"code": 25} optimizer "adam"' in prompts.describe(observation)
    best = min(candidates.list_candidates(observation), key=lambda c: c.expected)
    action = parse_action(spelling.exec_part(made[1].cells, best.row))
    config = spelling.read_config(made[1].cells, action.config)
    assert made[1].match(config) == (made[1].outcomes.best_row, False)


def test_candidates_are_labelled_from_the_lowest_forecast_on(episode):
    listed = candidates.list_candidates(observed(episode))
    assert "".join(c.label for c in listed) == "ABCDEFGH"[: len(listed)]
    assert [c.expected for c in listed] == sorted(c.expected for c in listed)


def test_the_law_and_the_nearest_experiment_have_their_say_before_the_first_trial(episode):
    observation = observed(episode)
    rows = {c.row for c in candidates.list_candidates(observation, 1)}
    seen = candidates.forecast_of(observation)
    best = seen.nearest[0].configurations[seen.nearest[0].outcomes.best_row]
    assert {seen.centre_row, episode.setting.match(best).row} <= rows
