"""The statements of a think part: true ones are read whole, and changed ones are false."""

import pytest

from autollm_jax.curriculum.teacher import turn_text
from autollm_jax.gym.environment import Episode
from autollm_jax.text import prompts
from autollm_jax.text.claims import audit, think
from autollm_jax.text.parsing import parse_action
from autollm_jax.text.playing import act
from autollm_jax.text.symbols import LETTERS, PANELS
from tests.families import decided


def after(trials, family):
    """Return the decision after so many trials, each the pick of all advisers."""
    episode = Episode(family[3], family[:3], 5)
    for _ in range(trials):
        decision = decided(episode)
        act(episode, turn_text(decision, len(PANELS) - 1), decision.offer.rows)
    return decided(episode)


@pytest.mark.parametrize(("trials", "claims"), [(0, 1), (1, 3), (2, 5), (4, 5)])
def test_the_teachers_thinking_is_true_and_understood_whole(family, trials, claims):
    decision = after(trials, family)
    for trusted in range(len(PANELS)):
        said = parse_action(turn_text(decision, trusted)).think
        found = audit(said, decision)
        assert found.n == found.true == claims and found.words > 1
        assert found.unchecked == found.unread == 0


def test_another_panel_letter_verdict_best_trial_or_adviser_is_a_false_claim(family):
    decision = after(2, family)
    picks, off_A = decision.offer.picks, decision.advice.surprise_A
    said, letter = think(decision, 0), LETTERS[picks[0]]
    assert audit(said, decision).true == 5
    other = next(p for p in range(len(PANELS)) if picks[p] != picks[0])
    worst, right = (int(place) for place in (off_A.argmax(), off_A.argmin()))
    verdict, best = (said.split(word)[1].split(",")[0] for word in ("latest is ", "best is "))
    changes = [(f"trust {PANELS[0]}", f"trust {PANELS[other]}")]
    changes += [(f"{PANELS[0]}{letter}", f"{PANELS[0]}{x}") for x in LETTERS if x != letter]
    changes += [(f"latest is {verdict}", "latest is diverged"), (f"best is {best}", "best is none")]
    changes += [(f"closest {PANELS[right]}", f"closest {PANELS[p]}") for p in (worst, -1)]
    changes += [(f"farthest {PANELS[worst]}", f"farthest {PANELS[p]}") for p in (right, -1)]
    for old, new in changes:
        found = audit(said.replace(old, new), decision)
        assert (found.n, found.true) == (5, 4), new
    assert audit(said.replace(PANELS[0], "(nobody)"), decision).true < 5


def test_what_is_said_of_trials_before_there_are_any_is_false(family):
    before, said = after(0, family), think(after(2, family), 0)
    found = audit(said.partition("trust")[0].replace("trial 1", "trial 2"), before)
    assert (found.n, found.true) == (4, 0)


def test_the_audit_asks_the_advisers_and_not_the_prompt(family, monkeypatch):
    decision = after(2, family)
    closest, farthest = prompts.closest, prompts.farthest
    monkeypatch.setattr(prompts, "closest", farthest)
    monkeypatch.setattr(prompts, "farthest", closest)
    found = audit(think(decision, 0), decision)
    assert (found.n, found.true) == (5, 3)


def test_a_number_in_no_claim_is_unchecked(family):
    decision = after(2, family)
    said = think(decision, 0)
    before, found = (audit(text, decision) for text in (said, f"so 3.5 or 12 or 7k. {said}"))
    assert found.numbers == before.numbers + 3 and found.unchecked == 3
    assert found.n == before.n


@pytest.mark.parametrize("text", ["", "a guess", "trust #C", "<<>> 12 %%"])
def test_text_that_says_nothing_is_unread(text, family):
    found = audit(text, after(0, family))
    assert found.n == found.true == 0 and found.unread == found.words
