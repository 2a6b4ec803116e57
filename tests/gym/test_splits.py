import pytest

from autollm_jax.errors import UserError
from autollm_jax.gym.splits import evidence_for, split


@pytest.fixture
def experiments(make):
    return [
        make("low-1", "low", 1e15),
        make("low-2", "low", 2e15),
        make("mid", "mid", 1.5e15),
        make("high", "high", 9e15),
        make("other-source", "low", 1e14, source="other"),
        make("other-task", "low", 1e14, task="grpo"),
    ]


def names(experiments):
    return [e.name for e in experiments]


@pytest.mark.parametrize(
    ("protocol", "training", "held_out"),
    [
        ("dev", ["low-1", "low-2", "other-source", "other-task"], ["mid"]),
        ("final", ["low-1", "low-2", "mid", "other-source", "other-task"], ["high"]),
    ],
)
def test_levels_of_each_protocol(experiments, protocol, training, held_out):
    made = split(experiments, protocol)
    assert (names(made.training), names(made.held_out)) == (training, held_out)


def test_an_unknown_protocol_is_named(experiments):
    with pytest.raises(UserError, match="config.protocol is 'test'; accepted are dev, final"):
        split(experiments, "test")


def test_evidence_of_a_held_out_target_is_all_training_of_its_task_and_source(experiments):
    made = split(experiments, "dev")
    assert names(evidence_for(made.held_out[0], made.training)) == ["low-1", "low-2"]


def test_evidence_of_a_training_target_is_strictly_cheaper(experiments):
    made = split(experiments, "final")
    by_name = {e.name: e for e in made.training}
    assert names(evidence_for(by_name["mid"], made.training)) == ["low-1"]
    assert names(evidence_for(by_name["low-1"], made.training)) == []
