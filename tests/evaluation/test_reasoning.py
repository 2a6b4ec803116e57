from autollm_jax.evaluation.reasoning import summarise_claims


def turn(**counts):
    return {"n": 0, "true": 0, "numbers": 0, "unchecked": 0, "words": 0, "unread": 0} | counts


def test_claims_are_added_up_by_method_and_task():
    transcripts = [
        {"method": "a", "task": "grpo", "claims": [turn(n=4, true=3), turn(n=1, true=1)]},
        {"method": "a", "task": "pretraining", "claims": [turn(n=5, numbers=4, unchecked=1)]},
        {"method": "b", "task": "grpo", "text": "says nothing that was counted"},
    ]
    found = summarise_claims(transcripts)
    assert set(found) == {"a"}
    assert found["a"]["grpo"]["true"] == 0.8 and found["a"]["grpo"]["turns"] == 2
    assert found["a"]["all"] == {"true": 0.4, "n": 10, "unchecked": 0.25, "unread": None,
                                 "turns": 3}  # fmt: skip


def test_of_no_claims_no_share_is_true():
    found = summarise_claims([{"method": "a", "task": "grpo", "claims": [turn(words=2, unread=2)]}])
    assert found["a"]["all"]["true"] is None and found["a"]["all"]["unread"] == 1.0
