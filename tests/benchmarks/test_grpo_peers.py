"""Both sides of a comparison of GRPO steps do the same work; the ratios are of what they took."""

import sys

import jax
import numpy as np
import pytest

from autollm_jax.benchmarks import grpo, grpo_peers, smollm2
from autollm_jax.benchmarks.timing import Seconds
from autollm_jax.benchmarks.turns import StepTime
from autollm_jax.errors import UserError
from tests.benchmarks.tiny import TINY

SIZES = grpo.Sizes(groups=8, members=2, prompt=6, answer=5)
WHY = "missing; run pip install -r requirements-benchmarks.txt"


@pytest.fixture
def broadcasting():
    """Other libraries add axes silently."""
    before = jax.config.jax_numpy_rank_promotion  # pyright: ignore
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_rank_promotion", before)


@pytest.mark.parametrize("peer", grpo_peers.PEERS)
def test_both_sides_read_the_same_prompts_and_answer_each_as_often_at_full_length(
    peer, broadcasting
):
    pytest.importorskip(peer, reason="needs requirements-benchmarks.txt")
    found = grpo_peers.compare(TINY, SIZES, peer, repeats=1)
    assert found.largest_gap < grpo_peers.ATOL
    assert [len(times) for times in found.times.values()] == [2, 2]
    prompts = np.array(smollm2.random_prompts(TINY, SIZES.groups, SIZES.prompt))
    ours, theirs = found.played
    assert ours == "ours"
    for name in (ours, theirs):
        played_BT = found.played[name]
        assert played_BT.shape == (SIZES.rows, SIZES.length) and played_BT.max() < TINY.vocab_size
        rows = played_BT[np.lexsort(played_BT.T[::-1])]
        given = np.repeat(prompts, SIZES.members, axis=0)
        given = given[np.lexsort(given.T[::-1])]
        np.testing.assert_array_equal(rows[:, : SIZES.prompt], given)
        assert len({tuple(row) for row in played_BT}) == SIZES.rows  # sampled, not greedy
        answers_BT = played_BT[:, SIZES.prompt :]
        assert found.rewards[name][-1] == pytest.approx((answers_BT % 2 == 0).mean())
    assert not np.array_equal(found.played[ours], found.played[theirs])


@pytest.mark.parametrize("peer", grpo_peers.PEERS)
def test_a_missing_peer_is_one_line_that_names_its_requirements(monkeypatch, peer):
    for module in [m for m in sys.modules if m.split(".")[0] == peer]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, peer, None)
    with pytest.raises(UserError, match=WHY) as caught:
        grpo_peers.compare(TINY, SIZES, peer, repeats=1)
    assert len(str(caught.value).splitlines()) == 1


def step(rollout, update):
    return StepTime(Seconds(rollout, rollout / 2), Seconds(update, update / 4))


def test_ratios_are_of_medians_without_the_first_step():
    found = grpo_peers.Comparison(
        {
            "ours": [step(90, 90), step(1, 4), step(2, 4), step(3, 4)],
            "theirs": [step(90, 90), step(8, 8), step(8, 4), step(8, 20)],
        },
        {}, {}, 0.0,
    )  # fmt: skip

    def of(part, kind):
        return grpo_peers.ratio(found, "theirs", "ours", part, kind)

    assert of("rollout", "wall") == 4 and of("update", "wall") == 2
    assert of("step", "wall") == 16 / 6
    assert of("step", "cpu") == (8 / 2 + 8 / 4) / (2 / 2 + 4 / 4)


def test_a_peer_with_other_weights_is_refused(monkeypatch):
    class Other:
        def __init__(self, *_):
            self.version = "Other 1"

        def logits(self, tokens_BT):
            return np.zeros((*np.shape(tokens_BT), TINY.vocab_size))

    monkeypatch.setitem(grpo_peers.PEERS, "other", Other)
    with pytest.raises(UserError, match="logits of Other 1 differ"):
        grpo_peers.compare(TINY, SIZES, "other", repeats=1)
