"""Equal terms, exact rows, and resuming."""

import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from autollm_jax import host
from autollm_jax.baselines import BASELINES
from autollm_jax.baselines.learned import Learned
from autollm_jax.errors import UserError
from autollm_jax.evaluation import runner
from autollm_jax.evaluation.runner import SCHEMA, Terms, evaluate, play_method, table_hashes
from autollm_jax.evaluation.summary import Results, summarise
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.settings import Setting
from autollm_jax.gym.splits import Split
from autollm_jax.gym.stress import Stress

TABLES = {"test/pretraining.parquet": "abc"}


class Scripted:
    """A player that plays fixed proposals and counts how often it was called."""

    def __init__(self, proposals, transcripts=False, identity=""):
        self.proposals = proposals
        self.transcripts = transcripts
        self.identity = identity
        self.calls = 0
        self.games = []

    def __call__(self, games):
        self.calls += 1
        self.games = list(games)
        for game in games:
            for proposal in self.proposals:
                if not game.episode.done:
                    game.episode.exec_config(proposal)
            game.episode.finish()
        return [f"{game.seed}" for game in games] if self.transcripts else None


MEASURED = {"learning_rate": 0.002, "batch_size": 64}
OFF_GRID = {"learning_rate": 0.003, "batch_size": 64}


def run(players, split, path, **changes):
    tables = changes.pop("tables", TABLES)
    terms = Terms(**{"budget": 3, "seeds": (0, 1), **changes})
    return evaluate(players, split, terms, path / "results.parquet", tables=tables, progress=False)


def test_rows_have_exactly_the_columns_of_the_contract(small_split, tmp_path):
    run({"random": play_method(BASELINES["random"])}, small_split, tmp_path)
    table = pq.read_table(tmp_path / "results.parquet")
    assert (
        table.schema.names
        == (
            "task source experiment fidelity method seed trial config outcome status regret "
            "regret_minmax valid matched"
        ).split()
    )
    assert table.schema.types == SCHEMA.types
    assert table.num_rows == 2 * 2 * 3


def test_every_player_gets_the_same_games(small_split, tmp_path):
    players = {"a": Scripted([MEASURED]), "b": Scripted([OFF_GRID])}
    run(players, small_split, tmp_path)

    def terms(player):
        return [
            (g.seed, e.setting.id, type(e.setting), [x.id for x in e.evidence], e.budget)
            for g in player.games
            for e in [g.episode]
        ]

    assert terms(players["a"]) == terms(players["b"])
    assert all(kind is Setting for _, _, kind, _, _ in terms(players["a"]))
    assert terms(players["a"])[0][3] == ["test/pretraining/cheap", "test/pretraining/cheaper"]


def test_matched_and_invalid_trials_are_recorded(small_split, tmp_path):
    rows = run({"a": Scripted([OFF_GRID, None])}, small_split, tmp_path).to_pylist()
    first, second = rows[:2]
    assert (
        first["matched"] and json.loads(first["config"]) in small_split.training[0].configurations
    )
    assert (second["valid"], second["status"], second["regret"]) == (False, "invalid", 1.0)
    assert json.loads(second["config"]) is None


def test_a_second_run_plays_nothing_and_writes_the_same_bytes(small_split, tmp_path):
    player = Scripted([MEASURED], transcripts=True)
    run({"a": player}, small_split, tmp_path)
    before = [(tmp_path / n).read_bytes() for n in ("results.parquet", "transcripts.jsonl")]
    run({"a": player}, small_split, tmp_path)
    after = [(tmp_path / n).read_bytes() for n in ("results.parquet", "transcripts.jsonl")]
    assert player.calls == 1 and before == after


def test_a_killed_evaluation_goes_on_with_the_missing_method(small_split, tmp_path):
    class Killed(Exception):
        pass

    def dies(games):
        raise Killed

    first = Scripted([MEASURED])
    with pytest.raises(Killed):
        run({"a": first, "b": dies}, small_split, tmp_path)
    second = Scripted([OFF_GRID])
    resumed = run({"a": first, "b": second}, small_split, tmp_path)
    assert (first.calls, second.calls) == (1, 1)
    players = {"a": Scripted([MEASURED]), "b": Scripted([OFF_GRID])}
    assert resumed.equals(run(players, small_split, tmp_path / "undisturbed"))


@pytest.mark.parametrize(
    "change",
    [
        {"budget": 2},
        {"seeds": (0,)},
        {"matching": False},
        {"tables": {"x": "y"}},
        {"with_evidence": False},
        {"stress": Stress("thin")},
        {"stress": Stress("noise")},
    ],
)
def test_a_changed_setting_is_played_again(small_split, tmp_path, change):
    player = Scripted([MEASURED])
    run({"a": player}, small_split, tmp_path)
    run({"a": player}, small_split, tmp_path, **change)
    assert player.calls == 2


def test_another_checkpoint_is_played_again(small_split, tmp_path):
    run({"a": Scripted([MEASURED], identity="1")}, small_split, tmp_path)
    player = Scripted([MEASURED], identity="2")
    run({"a": player}, small_split, tmp_path)
    assert player.calls == 1


def test_players_of_one_identity_play_once(small_split, tmp_path):
    players = {
        name: Scripted([proposal], transcripts=True, identity=identity)
        for name, proposal, identity in (
            *(("start", MEASURED, "1"), ("trained", MEASURED, "1")),
            *(("other", OFF_GRID, "2"), ("nameless", OFF_GRID, ""), ("unnamed", OFF_GRID, "")),
        )
    }
    found = run(players, small_split, tmp_path).to_pylist()
    assert {name: player.calls for name, player in players.items()} == {
        "start": 1, "trained": 0, "other": 1, "nameless": 1, "unnamed": 1,
    }  # fmt: skip
    start, trained = ([r for r in found if r["method"] == n] for n in ("start", "trained"))
    assert trained == [row | {"method": "trained"} for row in start] and len(start) == 4
    lines = map(json.loads, (tmp_path / "transcripts.jsonl").read_text().splitlines())
    told = [line | {"method": ""} for line in lines]
    assert told[:4] == told[4:8] and len(told) == 20
    run(players, small_split, tmp_path)  # each part vouches for itself
    assert players["trained"].calls == 0 and players["start"].calls == 1


class Where:
    """A method that learns where it learned."""

    @classmethod
    def learn(cls, training, seed, progress, share=1.0):
        return {"niceness": np.array(os.nice(0)), "progress": np.array(progress)}


def test_what_is_not_known_is_learned_beside_with_a_low_priority(small_split, tmp_path):
    learners = [Learned(Where, small_split.training, n, tmp_path / f"{n}.npz") for n in (0, 1)]
    assert learners[1].arrays["progress"] and not learners[0].known
    (process,) = runner.learn_beside(learners)
    process.join()
    assert learners[0].known and not learners[0].arrays["progress"]
    assert learners[0].arrays["niceness"] == min(os.nice(0) + host.NICENESS, 19)
    assert runner.learn_beside(learners) == []


def test_changed_code_is_played_again(small_split, tmp_path, monkeypatch):
    player = Scripted([MEASURED])
    run({"a": player}, small_split, tmp_path)
    monkeypatch.setattr(runner, "package_digest", lambda: "changed")
    run({"a": player}, small_split, tmp_path)
    assert player.calls == 2


def test_a_damaged_part_is_played_again(small_split, tmp_path):
    player = Scripted([MEASURED])
    run({"a": player}, small_split, tmp_path)
    (tmp_path / "parts" / "a.parquet").write_bytes(b"PAR1 and then nothing")
    run({"a": player}, small_split, tmp_path)
    assert player.calls == 2


def test_transcripts_name_their_episode(small_split, tmp_path):
    run({"a": Scripted([MEASURED], transcripts=True)}, small_split, tmp_path)
    lines = (tmp_path / "transcripts.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert json.loads(lines[1]) == {
        "method": "a",
        "task": "pretraining",
        "source": "test",
        "experiment": "dear",
        "seed": 1,
        "text": "1",
    }


def test_a_player_that_leaves_a_game_unended_is_refused(small_split, tmp_path):
    with pytest.raises(RuntimeError, match="left 4 of 4 games"):
        run({"a": lambda games: None}, small_split, tmp_path)


def test_regret_at_a_budget_is_that_of_the_best_trial_so_far(small_split, tmp_path):
    best = small_split.training[0].configurations[5]
    worst = small_split.training[0].configurations[10]
    results = run({"a": Scripted([worst, worst, best])}, small_split, tmp_path)
    regret = summarise(Results(results))["regret"]["a"]["all"]
    assert (regret["1"]["mean"], regret["3"]["mean"]) == (1.0, 0.0)


def test_summary_leaves_out_budgets_that_episodes_did_not_have(small_split, tmp_path):
    results = run({"a": Scripted([MEASURED] * 3)}, small_split, tmp_path)
    assert list(summarise(Results(results))["regret"]["a"]["pretraining"]) == ["1", "3"]


def test_a_method_that_ends_early_keeps_its_best(small_split, tmp_path):
    results = run({"a": Scripted([MEASURED])}, small_split, tmp_path)
    regret = summarise(Results(results))["regret"]["a"]["all"]
    assert regret["3"]["mean"] == regret["1"]["mean"] < 1


def test_a_method_without_a_trial_scores_one(small_split, tmp_path):
    results = run({"a": Scripted([MEASURED]), "b": Scripted([])}, small_split, tmp_path)
    cell = summarise(Results(results))["regret"]["b"]["all"]["3"]
    assert (cell["mean"], cell["n"]) == (1.0, 4)


def test_summary_counts_invalid_trials(small_split, tmp_path):
    results = run({"a": Scripted([MEASURED, None])}, small_split, tmp_path)
    assert summarise(Results(results))["invalid_rate"] == {"a": 0.5}


def test_table_hashes_follow_the_files(tmp_path):
    folder = tmp_path / "test"
    folder.mkdir()
    for name in ("pretraining.parquet", "pretraining.json"):
        (folder / name).write_text("one")
    before = table_hashes([tmp_path])
    (folder / "pretraining.json").write_text("two")
    after = table_hashes([tmp_path])
    assert {k for k in before if before[k] != after[k]} == {"test/pretraining.json"}


def test_every_player_gets_the_same_stressed_evidence(small_split, tmp_path):
    players = {"a": Scripted([MEASURED]), "b": Scripted([OFF_GRID])}
    run(players, small_split, tmp_path, stress=Stress("thin", keep=0.5))
    seen = [
        [[(x.id, x.configurations) for x in g.episode.evidence] for g in player.games]
        for player in players.values()
    ]
    assert seen[0] == seen[1]
    assert all(len(cells) == 6 for _, cells in seen[0][0])  # of 11


def test_stress_leaves_the_score_of_a_configuration_as_it_is(small_split, tmp_path):
    plain = run({"a": Scripted([MEASURED])}, small_split, tmp_path / "plain")
    for kind in ("thin", "reverse", "noise"):
        stressed = run(
            {"a": Scripted([MEASURED])}, small_split, tmp_path / kind, stress=Stress(kind)
        )
        assert stressed.equals(plain)


def test_without_evidence_nobody_gets_any(small_split, tmp_path):
    player = Scripted([MEASURED])
    run({"a": player}, small_split, tmp_path, with_evidence=False)
    assert all(game.episode.evidence == () for game in player.games)


@pytest.mark.parametrize("change", [{"with_evidence": False}, *(
    {"stress": Stress(kind, keep=0.1)} for kind in ("thin", "reverse", "noise", "rename", "lie")
)], ids=str)  # fmt: skip
def test_every_baseline_plays_under_every_stress(small_split, tmp_path, change):
    failing = change.get("stress", Stress()).failing
    players = {name: play_method(cls, failing) for name, cls in BASELINES.items()}
    rows = run(players, small_split, tmp_path, **change).to_pylist()
    assert {row["method"] for row in rows} == set(BASELINES)
    assert all(row["valid"] and not row["matched"] for row in rows)


@pytest.mark.parametrize("name", ["random", "gaussian_process", "successive_halving"])
def test_processes_that_share_the_games_play_what_one_plays(small_split, tmp_path, name):
    found = []
    for processes in (1, 3):
        player = play_method(BASELINES[name], processes=processes)
        folder = tmp_path / str(processes)
        terms = {"seeds": (0, 1, 2, 3)}
        rows = run({name: player}, small_split, folder, **terms).to_pylist()
        texts = (folder / "transcripts.jsonl").read_text()
        found.append((str(rows), texts))  # a failed run's outcome is nan
        assert len(rows) == 3 * 2 * 4
    assert found[0] == found[1]


def test_what_a_game_carries_besides_its_text_is_written_with_it(small_split, tmp_path):
    def player(games):
        Scripted([MEASURED])(games)
        return [{"text": "said", "claims": [{"n": 1}]} for _ in games]

    run({"a": player}, small_split, tmp_path)
    first = json.loads((tmp_path / "transcripts.jsonl").read_text().splitlines()[0])
    assert (first["text"], first["claims"], first["method"]) == ("said", [{"n": 1}], "a")


def test_a_method_that_makes_cheap_runs_itself_says_what_they_cost(small_split, tmp_path):
    class Halving(BASELINES["random"]):
        evidence_flops = 12.0

    run({"halving": play_method(Halving)}, small_split, tmp_path)
    lines = (tmp_path / "transcripts.jsonl").read_text().splitlines()
    assert [json.loads(line)["evidence_flops"] for line in lines] == [12.0] * 4


def test_a_protocol_that_holds_nothing_out_is_a_users_error(small_split, tmp_path):
    with pytest.raises(UserError, match="nothing to score.*config.protocol"):
        run({"a": Scripted([MEASURED])}, Split(small_split.training, ()), tmp_path)


def test_the_games_of_one_experiment_are_dealt_to_one_process(small_split):
    targets = [*small_split.held_out, *small_split.training]
    games = [
        runner.Game(Episode(target, (), budget=1), seed) for seed in (0, 1) for target in targets
    ]
    shares = runner._shares(games, 2)
    assert sorted(place for share in shares for place in share) == list(range(len(games)))
    names = [{games[place].episode.setting.id for place in share} for share in shares]
    assert len(shares) == 2 and all(names) and not names[0] & names[1]
