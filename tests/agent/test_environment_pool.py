"""Episodes that several processes and hosts answer are those that one answers."""

import os
import signal
import threading

import numpy as np
import pytest

from autollm_jax.agent import environment_pool
from autollm_jax.agent.environment_pool import EnvironmentPool, Workers
from tests.agent.test_rollout import CONFIG, play, starts_of

GROUP = 2


@pytest.fixture(scope="module")
def workers(tokenizer):
    with Workers(2, tokenizer) as made:
        yield made


def outcome(starts, played):
    """Everything that may not depend on who answered."""
    episodes = [start.episode for start in starts]
    return {
        "tokens": played.state.tokens_BS.tolist(),
        "transcripts": played.transcripts,
        "rewards": played.rewards,
        "hindsight": [[x.tolist() for x in row] for row in played.hindsight],
        "offers": [[offer.rows for offer in row] for row in played.offers],
        "trials": [episode.trials for episode in episodes],
        "regret": [episode.best_regret() for episode in episodes],
        "done": [episode.done for episode in episodes],
    }


def played(model, params, tokenizer, pairs, **layout):
    starts = starts_of(pairs[:3], copies=GROUP)
    return outcome(starts, play(model, params, tokenizer, starts, group_size=GROUP, **layout))


@pytest.fixture(scope="module")
def alone(model, params, tokenizer, pairs):
    return played(model, params, tokenizer, pairs)


def test_processes_answer_as_one_does_one_play_after_the_other(
    model, params, tokenizer, pairs, workers, alone
):
    assert all(alone["done"]) and any(alone["trials"])
    for rows in (None, GROUP):  # with few rows, groups are opened in the course of play
        assert played(model, params, tokenizer, pairs, workers=workers, rows=rows) == alone
    assert not workers._lost


def test_the_course_goes_on_in_this_process_when_workers_are_stopped(
    model, params, tokenizer, pairs, alone, monkeypatch, capsys
):
    """One ends amid the play, one before it; both are there again for the next."""
    with Workers(2, tokenizer) as workers:
        pids = [pool.submit(os.getpid).result() for pool in workers._pools]
        genuine, calls = EnvironmentPool.answers, []

        def answers(self, said):
            if not calls:
                os.kill(pids[0], signal.SIGKILL)
            calls.append(said)
            return genuine(self, said)

        os.kill(pids[1], signal.SIGKILL)
        monkeypatch.setattr(EnvironmentPool, "answers", answers)
        assert played(model, params, tokenizer, pairs, workers=workers) == alone
        assert len(calls) > 1 and workers._lost == {0, 1}
        assert "worker 1 was stopped" in capsys.readouterr().out
        assert played(model, params, tokenizer, pairs, workers=workers) == alone
        assert not workers._lost


def test_workers_heed_no_signal_to_the_whole_job(tokenizer):
    with Workers(1, tokenizer) as workers:
        (pool,) = workers._pools
        pid = pool.submit(os.getpid).result()
        os.kill(pid, signal.SIGTERM)
        assert pool.submit(os.getpid).result() == pid


def test_hosts_answer_a_share_of_the_groups_each_and_know_all_replies(
    tokenizer, pairs, monkeypatch
):
    """Two hosts, as two threads that hand each other what `gather` would."""
    meeting, handed, here = threading.Barrier(2), {}, threading.local()
    monkeypatch.setattr(environment_pool.distributed, "index", lambda: here.host)

    def gather(value):
        assert len(value) < 20_000  # no table travels
        handed[here.host] = value
        meeting.wait(60)
        both = [handed[0], handed[1]]
        meeting.wait(60)
        return both

    monkeypatch.setattr(environment_pool.distributed, "gather", gather)
    said, found, held = tokenizer.encode_agent("<exec>A</exec>"), {}, {}

    def course(host, players):
        here.host = host
        starts = starts_of(pairs[:3], copies=GROUP)
        pool = EnvironmentPool(tokenizer, starts, CONFIG, False, GROUP, players=players)
        opened = pool.openings([[0, 1], [2, 3], [4, 5]])
        replies = pool.answers(dict.fromkeys(range(6), said))
        pool.finish()
        trials = [start.episode.trials for start in starts]
        hindsight = [[x.tolist() for x in row] for row in pool.hindsight]
        found[host, len(players)] = (
            opened, replies, trials, pool.rewards, pool.transcripts, hindsight, pool.choices
        )  # fmt: skip
        held[host, len(players)] = len(pool._part_of)

    threads = [threading.Thread(target=course, args=(host, (0, 1))) for host in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    course(0, (0,))
    assert found[0, 2] == found[1, 2] == found[0, 1]
    assert held == {(0, 2): 4, (1, 2): 2, (0, 1): 6}
    assert all(len(made) == 1 for made in found[0, 1][2]) and np.isfinite(found[0, 1][3]).all()
