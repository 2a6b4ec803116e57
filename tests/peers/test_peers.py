"""Peers play by the rules of the baselines; those whose package is missing are skipped."""

import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from autollm_jax.baselines import Problem
from autollm_jax.errors import UserError
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.stress import Stress
from autollm_jax.job import scoring_stages
from autollm_jax.job.fields import METHODS
from autollm_jax.peers import PEERS, REQUIREMENTS, Peer, load
from autollm_jax.peers.ranks_rows import RanksRows
from tests.baselines.conftest import bowl, limited, mixed

HEAVY = {package for peer in PEERS.values() for package in peer.packages} - {"optuna"}
BUDGET = 5


def installed(name):
    missing = [p for p in PEERS[name].packages if importlib.util.find_spec(p) is None]
    why = f"no {', '.join(missing)}: pip install -r {REQUIREMENTS}"
    return pytest.param(name, marks=pytest.mark.skipif(bool(missing), reason=why))


every_peer = pytest.mark.parametrize("name", [installed(name) for name in PEERS])
process = pytest.mark.parametrize(
    "name", [installed("botorch_multi_task"), installed("botorch_multi_fidelity")]
)


def play(name, target, evidence, seed=3, budget=BUDGET):
    """Play an episode; return its trials."""
    episode = Episode(target, evidence, budget)
    player = load(name)(Problem(target.setting, evidence, budget), seed)
    while not episode.done:
        player.tell(episode.exec_config(player.ask()))
    return episode.trials


def rows(trials):
    return [trial.row for trial in trials]


@pytest.fixture(scope="module")
def target():
    return bowl(4e8, 16e9, level="mid")


@pytest.fixture(scope="module")
def evidence():
    """Two experiments, whose highest rates diverged."""
    return bowl(1e8, 1e9, shift=2), bowl(2e8, 4e9, shift=2)


def one_row(parameters):
    """Return an experiment with one configuration."""
    cell = {"learning_rate": 2.0**-8, "batch_size": 128}
    return bowl(parameters, 1e9, configurations=[cell], outcomes=[2.0], status=["ok"], default=cell)


@every_peer
def test_tries_measured_rows_each_once_and_the_same_with_the_same_seed(name, target, evidence):
    first, second = (play(name, target, evidence) for _ in range(2))
    assert not any(trial.matched or not trial.valid for trial in first)
    assert len(set(rows(first))) == BUDGET
    assert rows(first) == rows(second)


@every_peer
def test_the_first_trial_without_evidence_is_the_default(name, target):
    trials = play(name, target, (), budget=3)
    assert trials[0].config == target.default and len(set(rows(trials))) == 3


@every_peer
@pytest.mark.parametrize("experiments", [1, 2])
def test_one_row_of_evidence_is_enough_to_play(name, experiments, target):
    known = tuple(one_row(1e8 * (n + 1)) for n in range(experiments))
    assert len(set(rows(play(name, target, known, budget=3)))) == 3


@every_peer
def test_plays_mixtures_and_categories(name):
    target = mixed("mid", 1e7, layers=(12, 16, 24))
    trials = play(name, target, (mixed("low", 1e6), mixed("low", 2e6, layers=(4, 6, 8))), budget=3)
    assert len(set(rows(trials))) == 3


@every_peer
def test_evidence_over_other_dimensions_does_no_harm(name, target):
    assert len(set(rows(play(name, target, (mixed(),), budget=3)))) == 3


@every_peer
def test_only_feasible_rows_are_tried_and_then_again(name):
    target = limited("mid", 1e7)
    feasible = int(target.feasible_R.sum())
    trials = play(name, target, (limited(),), budget=feasible + 1)
    assert {trial.status for trial in trials} == {"ok"}
    assert len(set(rows(trials[:feasible]))) == feasible


@every_peer
def test_evidence_helps(name, target, evidence):
    """Of 60 rows, the best of 5 is not among the worse half, as a random one often is."""
    best = min(t.outcome for t in play(name, target, evidence) if t.ok)
    assert best < sorted(target.outcomes.values_R[target.outcomes.ok_R])[15]


@process
def test_a_process_gets_a_part_of_a_large_evidence_the_best_rows_included(name, target):
    from autollm_jax.peers.botorch_processes import EVIDENCE_ROWS, EXPERIMENTS

    known = tuple(bowl(1e7 * n, 1e9) for n in range(1, 31))
    assert sum(len(e.configurations) for e in known) > EVIDENCE_ROWS
    gathered = load(name)(Problem(target.setting, known, BUDGET), 0)._evidence
    assert 0 < len(gathered) <= EVIDENCE_ROWS
    assert set(gathered.experiments_N) == set(range(EXPERIMENTS))
    assert (gathered.scores_N == 0).sum() == EXPERIMENTS


def test_a_model_sees_the_sizes_of_rows_where_all_are_known():
    class Listed(RanksRows):
        def _ranking(self, tried_T, scores_T):
            return np.arange(len(self._rows_RX))

    target = limited("mid", 1e7)
    widths = [
        Listed(Problem(target.setting, known, BUDGET), 100)._points_NX.shape[1]
        for known in ((limited(),), (mixed(),))
    ]
    assert widths == [target.space.width + 1, target.space.width]


def test_importing_the_names_of_methods_loads_no_peer():
    # Not the whole job: a logger that it imports loads torch wherever torch is installed.
    code = "import sys, autollm_jax.peers; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & {*done.stdout.split()}
    assert set(PEERS) < set(METHODS)


def test_a_missing_package_is_a_users_error_in_one_line(monkeypatch):
    monkeypatch.setitem(PEERS, "ours", Peer("nowhere", "Nobody", ("no_such_package",)))
    with pytest.raises(UserError, match=f"ours needs.*no_such_package.*{REQUIREMENTS}"):
        load("ours")


def test_the_evaluation_plays_the_peers_that_it_names(monkeypatch):
    monkeypatch.setitem(PEERS, "ours", Peer("ranks_rows", "RanksRows", ("numpy",)))
    settings = SimpleNamespace(methods="random,ours", seeds=(0,), processes=1)
    job = SimpleNamespace(
        config=SimpleNamespace(evaluation=settings, grpo=SimpleNamespace(steps=0)),
        split=SimpleNamespace(held_out=()),
        first_parameters=lambda: None,
        stress=Stress(),
        weights="",
    )
    players = scoring_stages._players(job)
    assert list(players) == ["random", "ours"]
    assert players["ours"].method.__name__ == "RanksRows"
