"""What the report says of reinforcement learning."""

import re

from autollm_jax.report.learning import intervention_rows, learning_curves


def test_the_curves_are_those_of_grpo_and_of_what_was_logged():
    rows = [
        {"stage": "distill", "step": 3, "reward": 9.0},
        {"stage": "grpo", "step": 0, "reward": 0.1, "kept_out_regret": 0.2},
        {"stage": "grpo", "step": 1, "reward": 0.3},
    ]
    drawn = learning_curves(rows)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    assert "return of an episode" in texts and "regret on kept-out pairs" in texts
    assert not any("entropy" in text for text in texts)
    assert learning_curves(rows[:1]) == ""


def test_shares_are_said_of_kinds_that_were_counted():
    found = {
        "trusted": {"n": 8, "changed": 0.75, "followed": 0.5},
        "reading": {"n": 4, "changed": 0.25, "followed": float("nan")},
        "control": {"n": 0, "changed": float("nan"), "followed": float("nan")},
    }
    trusted, reading, control = intervention_rows(found)
    assert (trusted["changed"], trusted["followed"]) == ("75%", "50%")
    assert (reading["changed"], reading["followed"]) == ("25%", "–")
    assert (control["changed"], control["followed"]) == ("–", "–")
