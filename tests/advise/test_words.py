"""What a person reads: the same facts of every configuration, each labelled, on one scale."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest

from autollm_jax.advise.advisor import Advisor
from autollm_jax.advise.decider import Choice, Panels, default_decider
from autollm_jax.advise.explaining import why_not_best
from autollm_jax.advise.plot import page
from autollm_jax.advise.words import advice_text, in_words
from autollm_jax.forecasts.advice import decision_of
from autollm_jax.gym.environment import Observation

from .conftest import TARGET

DOCS = [Path("README.md"), *(Path("docs") / f"{name}.md" for name in ("concepts", "optuna"))]


@pytest.fixture(scope="module")
def told(rows):
    advisor = Advisor.from_runs(rows, target=TARGET, decider=Panels())
    return advisor.tell(advisor.ask().config, 2.6)


def test_each_configuration_of_the_handful_has_the_same_labelled_facts(told):
    advice = told.ask()
    text = advice_text(told, advice)
    count = len(advice.ranked)
    assert count > 2
    for fact in (r"80 %: \S+ to \S+; 95 %: \S+ to \S+", r"\d+ % to beat the best so far by more",
                 r"advisers +own \d\.\d\d, nearest \d\.\d\d", r"chosen +\d+ %"):  # fmt: skip
        assert len(re.findall(fact, text)) == count, fact
    assert text.count("  advisers: the regret that each expects to remain") == 1
    assert text.count("  chosen: its share of the first picks of") == 1


def test_the_chances_are_said_to_be_the_agents_where_the_agent_decides(rows):
    advisor = Advisor.from_runs(rows, target=TARGET, decider=default_decider())
    assert "chosen: how likely the agent was to choose it" in advice_text(advisor, advisor.ask())


def test_regret_has_one_scale_and_one_wording_wherever_a_person_reads_of_it(told):
    advice = told.ask()
    text = advice_text(told, advice)
    said = [float(n) for n in re.findall(r"(?:own|trees|process) (\d+\.\d\d)", text)]
    assert said and 0.1 < max(said) <= 1
    template = Path("autollm_jax/report/template.html").read_text()
    for place in (text, page(told, advice), template, *map(Path.read_text, DOCS)):
        assert "1 no better than the median one" in " ".join(place.split())


class Named:
    """Chooses the candidate of a given rank in the predicted outcome."""

    def __init__(self, rank):
        self.rank = rank

    def decide(self, panel, seen, decision):
        mean_R = panel.predict(seen.trials).mean_R
        order = np.argsort([mean_R[row] for row in decision.offer.rows])
        return Choice(int(order[self.rank]), np.ones(len(order)) / len(order))


def test_a_proposal_far_from_the_best_predicted_one_is_explained_by_what_was_computed(told):
    worst = dataclasses.replace(told, decider=Named(-1)).ask()
    question, panel = told.question, told.panel
    seen = Observation(question.setting, question.evidence, 4, question.trials)
    decision = decision_of(panel, seen, 0)
    found = told._expected(question.trials)
    open_R, mean_R = decision.advice.open_R, panel.predict(question.trials).mean_R
    best = int(np.where(open_R, mean_R, math.inf).argmin())
    row = question.setting.match(worst.config).row
    left_AR = np.minimum(decision.advice.remaining_AR, 1.0)
    text = worst.explanation
    assert "\n" not in text and text in advice_text(told, worst).replace("\n", " ")
    for name, value in question.setting.configurations[best].items():
        assert f"{name}={value:g}" in text
    assert f"loss {found.mean_R[best]:.4g} against {found.mean_R[row]:.4g}" in text
    here, there = left_AR[:, row].mean(), left_AR[:, best].mean()
    assert f"({here:.2f} against {there:.2f})" in text
    word = "less" if here < there else "more"
    assert f"all advisers together expect {word} regret to remain after the proposal" in text
    # The words follow the advisers that are trusted.
    one = int(np.argmax(np.abs(left_AR[:, row] - left_AR[:, best])))
    name, gap = decision.advice.names[one], left_AR[one, row] - left_AR[one, best]
    trusted = why_not_best(decision, found, row, (one,))
    assert f"{name} expects {'less' if gap < 0 else 'more'} regret" in trusted


def test_the_best_predicted_proposal_needs_no_explanation(told):
    question, panel = told.question, told.panel
    seen = Observation(question.setting, question.evidence, 4, question.trials)
    decision = decision_of(panel, seen, 0)
    found = told._expected(question.trials)
    regrets_R = np.where(decision.advice.open_R, panel.predict(question.trials).mean_R, math.inf)
    assert why_not_best(decision, found, int(regrets_R.argmin()), ()) == ""


@pytest.mark.parametrize(
    ("thinking", "words"),
    [
        ("latest is (all)#D", "it trusts all advisers together"),  # a slip of the policy's
        ("latest is diverged, best is none; trust (all-but-own)#B",
         "the latest run was diverged, none has an outcome yet; it trusts all but own "
         "(a law that moves the landscape with size)"),
    ],
)  # fmt: skip
def test_thinking_is_said_in_words(thinking, words):
    assert in_words(thinking) == words
