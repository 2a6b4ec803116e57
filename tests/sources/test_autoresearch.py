import dataclasses
import json
import math
from collections import Counter

import pytest

from autollm_jax.errors import UserError
from autollm_jax.gym import tables
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.sources import autoresearch
from autollm_jax.sources.download import sha256_of

from .autoresearch_files import CONFIG, failed, trial, write

RUN = "results/random/seed_0"


def load(path, root):
    [(meta, rows)] = autoresearch.read(path)
    tables.write_table(root, meta, rows)
    return {e.name: e for e in load_experiments([root])}


def test_an_experiment_is_a_depth_and_configures_the_other_thirteen(tmp_path):
    write(tmp_path, RUN, [trial(1.0), trial(0.9, MATRIX_LR=0.1), trial(1.1, DEPTH=4)])
    experiments = load(tmp_path, tmp_path / "root")
    assert sorted(experiments) == ["depth-4", "depth-8"]
    deep = experiments["depth-8"]
    assert sorted(deep.space.names) == sorted(name.lower() for name in CONFIG if name != "DEPTH")
    assert (deep.outcomes.best_row, deep.objective.minimize, deep.limit) == (1, True, None)
    kinds = Counter(dimension.kind for dimension in deep.space.dimensions)
    assert kinds == {
        "log-continuous": 4,
        "continuous": 4,
        "log-ordinal": 3,
        "ordinal": 1,
        "categorical": 1,
    }
    assert deep.facts["depth"] == 8 and deep.facts["device"] == "one H200"


@pytest.mark.parametrize(
    ("depth", "level"), [(4, "low"), (7, "low"), (8, "mid"), (9, "mid"), (10, "high"), (14, "high")]
)
def test_the_level_follows_from_the_depth(tmp_path, depth, level):
    write(tmp_path, RUN, [trial(DEPTH=depth)])
    assert load(tmp_path, tmp_path / "root")[f"depth-{depth}"].fidelity.level == level


def test_deeper_models_are_left_out_and_counted(tmp_path):
    write(tmp_path, RUN, [trial(), trial(DEPTH=15), trial(DEPTH=24)])
    [(meta, rows)] = autoresearch.read(tmp_path)
    assert len(rows) == 1 and meta["left_out"] == ["2 runs: deeper than 14"]


def test_a_run_out_of_memory_is_infeasible_without_a_limit_or_an_outcome(tmp_path):
    other = failed("CUDA out of memory", 2.4, ASPECT_RATIO=120)
    write(tmp_path, RUN, [trial(), failed(ASPECT_RATIO=128), other])
    [(meta, rows)] = autoresearch.read(tmp_path)
    assert [row["status"] for row in rows] == ["ok", "infeasible", "infeasible"]
    assert rows[1]["val_bpb"] is rows[1]["flops"] is None and rows[1]["seconds"] == 20.0
    assert "limit" not in meta["experiments"]["depth-8"]
    experiment = load(tmp_path, tmp_path / "root")["depth-8"]
    assert experiment.feasible_R.all() and experiment.outcomes.regrets_R[1] == 1.0


def test_other_failures_say_nothing_about_the_configuration_and_are_left_out(tmp_path):
    lines = [trial(), failed("Timeout after 300.0s", None), failed("train.py exited with code 1")]
    write(tmp_path, RUN, lines)
    [(meta, rows)] = autoresearch.read(tmp_path)
    assert len(rows) == 1
    assert meta["left_out"] == ["2 runs: failed otherwise than by memory (time out, crash)"]


def test_a_run_that_ends_without_a_finite_outcome_diverged(tmp_path):
    write(tmp_path, RUN, [trial(), trial(math.nan, MATRIX_LR=0.2)])
    [(_, rows)] = autoresearch.read(tmp_path)
    assert (rows[1]["status"], rows[1]["val_bpb"]) == ("diverged", None)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("results/karpathy_agent_Qwen3_5_27B/seed_0", {}), (RUN, {"backend": "karpathy_agent"})],
)
def test_runs_of_edited_code_are_left_out_and_named(tmp_path, name, changes):
    write(tmp_path, "results/random/seed_1", [trial()])
    write(tmp_path, name, [trial(changes={"config": {}} | changes)] * 2)
    [(meta, rows)] = autoresearch.read(tmp_path)
    assert [row["run"] for row in rows] == ["random/seed_1/1"]
    assert meta["left_out"] == [f"{name.partition('/')[2]} (2 runs of edited code)"]


def test_an_agent_that_sets_hyperparameters_alone_is_read(tmp_path):
    write(tmp_path, "results/karpathy_agent_hps_Qwen3_5_27B/seed_0", [trial()])
    assert len(autoresearch.read(tmp_path)[0][1]) == 1


def test_whole_numbers_and_floats_spell_one_configuration(tmp_path):
    floats = {name: float(value) for name, value in CONFIG.items() if isinstance(value, int)}
    write(tmp_path, RUN, [trial(1.0), trial(0.9, WARMUP_RATIO=0, **floats)])
    experiment = load(tmp_path, tmp_path / "root")["depth-8"]
    assert len(experiment.configurations) == 1
    assert experiment.outcomes.optimum == pytest.approx(0.95)


def test_repeats_are_pooled_by_a_plain_mean_whatever_their_order(tmp_path):
    """Upstream gives no seed of a run; numbered repeats would be corrected by seeds' effects."""
    lines = [trial(1.0 + 0.01 * n, MATRIX_LR=0.01 * (n + 1)) for n in range(10)]
    again = [trial(1.2 + 0.01 * n, MATRIX_LR=0.01 * (n + 1)) for n in range(10)]
    write(tmp_path, RUN, [*lines, *again, trial(1.0, MATRIX_LR=0.15)])
    assert load(tmp_path, tmp_path / "root")["depth-8"].outcomes.values_R[-1] == 1.0
    [(_, rows)] = autoresearch.read(tmp_path)
    assert {row["seed"] for row in rows} == {None}
    assert len({row["run"] for row in rows}) == 21


def test_the_default_is_upstreams_whatever_was_measured(tmp_path):
    write(tmp_path, RUN, [trial(DEPTH=5, MATRIX_LR=0.1)])
    default = load(tmp_path, tmp_path / "root")["depth-5"].default
    assert {name.upper(): value for name, value in default.items()} | {"DEPTH": 8} == CONFIG


def test_fidelity_is_that_of_the_defaults_shape(tmp_path):
    lines = [trial(parameters=40.0, tokens=600.0), trial(parameters=40.0, tokens=400.0),
             trial(parameters=90.0, ASPECT_RATIO=100),
             trial(parameters=70.0, DEPTH=9, HEAD_DIM=64)]  # fmt: skip
    write(tmp_path, RUN, lines)
    experiments = load(tmp_path, tmp_path / "root")
    fidelity = experiments["depth-8"].fidelity
    assert (fidelity.parameters, fidelity.tokens, fidelity.flops) == (4e7, 5e8, 1.2e17)
    assert experiments["depth-9"].fidelity.parameters == 7e7
    [(_, rows)] = autoresearch.read(tmp_path)
    assert [row["flops"] for row in rows[:2]] == [6 * 4e7 * 6e8, 6 * 4e7 * 4e8]


def test_a_whole_number_within_the_bounds_that_is_no_choice_becomes_one(tmp_path):
    write(tmp_path, RUN, [trial(), trial(HEAD_DIM=96)])
    space = load(tmp_path, tmp_path / "root")["depth-8"].space
    assert space["head_dim"].choices == (64, 96, 128, 256)


def test_files_are_found_under_results_beside_each_other_and_alone(tmp_path):
    path = write(tmp_path, RUN, [trial()])
    expected = autoresearch.read(tmp_path)
    assert autoresearch.read(tmp_path / "results") == autoresearch.read(path) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (trial(HEAD_DIM=32), "line 2: `HEAD_DIM` is 32; accepted is a whole number from 64 to 256"),
        (trial(ASPECT_RATIO=64.5), "line 2: `ASPECT_RATIO` is 64.5; accepted is a whole number"),
        (trial(DEPTH=25), "line 2: `DEPTH` is 25; accepted is a whole number from 4 to 24"),
        (trial(MATRIX_LR=0.3), "line 2: `config`: matrix_lr is 0.3; accepted are numbers from"),
        (
            trial(MATRIX_LR=10**400),
            "line 2: `MATRIX_LR` is an integer of 1329 bits",
        ),
        (trial(MATRIX_LR=math.nan), "line 2: `MATRIX_LR` is NaN"),
        (trial(MATRIX_LR=True), "line 2: `MATRIX_LR` is true; accepted is a finite number"),
        (trial(MATRIX_LR="0.1"), "line 2: `MATRIX_LR` is .0.1."),
        (trial(WINDOW_PATTERN="SSXL"), "line 2: `WINDOW_PATTERN` is 'SSXL'; accepted are SSSL,"),
        (trial(WINDOW_PATTERN="\ud800"), "line 2: `WINDOW_PATTERN` is "),
        (trial(WINDOW_PATTERN=["S"]), "line 2: `WINDOW_PATTERN` is "),
        (trial(ADAM_BETAS=1), "line 2: 'ADAM_BETAS' is no hyperparameter of `config`"),
        (trial(changes={"config": {}}), "line 2: 'DEPTH' is missing from `config`"),
        (trial(changes={"config": [1]}), "line 2: `config` is no JSON object"),
        (trial(changes={"success": 1}), "line 2: `success` is 1; accepted is true or false"),
        (trial(changes={"budget": 600}), "line 2: `budget` is 600; accepted is 300 seconds"),
        (trial(changes={"wall_time_seconds": -1}), "line 2: `wall_time_seconds` is -1"),
        (trial(changes={"extra_metrics": [1]}), "line 2: `extra_metrics` is no JSON object"),
        (trial(tokens="many"), "line 2: `total_tokens_M` is .many."),
        (trial(None), "line 2: `val_bpb` is null"),
        (failed(None), "line 2: `error` is None; accepted of a failed run is a text"),
        ({"config": CONFIG}, "line 2: field `success` is missing; autoresearch lines have config"),
        (b"[" * 100_000, "line 2: not valid JSON"),
        (b'{"a": ' * 30_000, "line 2: not valid JSON"),
        (b"1" * 5_000, "line 2: not valid JSON"),
        (b"{" + b" " * (1 << 20), "line 2: has over 1 MiB"),
        (b'{"config": "\xff"}', "line 2: not a readable JSON Lines file: not UTF-8"),
        (b'{"config": 1, "config": 2}', "line 2: field `config` comes twice"),
        (b"[]", "line 2: is a list; accepted is a JSON object"),
        (json.dumps(trial()).encode()[:-9], "line 2: not valid JSON"),
    ],
)
def test_what_is_not_as_published_is_one_clear_line(tmp_path, line, message):
    path = write(tmp_path, RUN, [trial(), line, trial()])
    with pytest.raises(UserError, match=message) as error:
        autoresearch.read(tmp_path)
    text = str(error.value)
    assert text.startswith(f"{path}: line 2") and "\n" not in text and len(text) < 600
    text.encode()


def test_half_a_last_line_is_left_out_and_a_whole_one_is_not(tmp_path, caplog):
    path = write(tmp_path, RUN, [trial(), trial(MATRIX_LR=0.1)])
    path.write_bytes(path.read_bytes()[:-1])
    assert len(autoresearch.read(tmp_path)[0][1]) == 2 and not caplog.messages
    path.write_bytes(path.read_bytes()[:-5])
    assert len(autoresearch.read(tmp_path)[0][1]) == 1
    assert f"{path}: line 2" in caplog.messages[0]


def test_a_pattern_of_other_length_is_left_out(tmp_path):
    write(tmp_path, RUN, [trial(), trial(WINDOW_PATTERN="SSLSL")])
    [(meta, rows)] = autoresearch.read(tmp_path)
    assert len(rows) == 1
    assert meta["left_out"] == ["1 runs: a WINDOW_PATTERN that is none of the six"]


def test_a_pinned_file_is_as_published_whatever_its_runs_proposed(tmp_path, monkeypatch):
    path = write(tmp_path, RUN, [trial(), trial(MATRIX_LR=0.3)])
    pinned = {f"{RUN}/trials.jsonl": sha256_of(path)}
    source = dataclasses.replace(autoresearch.SOURCE, files=pinned)
    monkeypatch.setattr(autoresearch, "SOURCE", source)
    [(meta, rows)] = autoresearch.read(tmp_path)
    assert len(rows) == 1 and meta["left_out"] == ["1 runs: outside the space"]


def test_no_file_and_no_finished_run_are_named(tmp_path):
    with pytest.raises(UserError, match="no autoresearch file; accepted is a folder with results/"):
        autoresearch.read(tmp_path)
    write(tmp_path, RUN, [failed()])
    with pytest.raises(UserError, match="no run in it has finished"):
        autoresearch.read(tmp_path)
    # A configuration that failed once is not finished, so nothing at this depth is.
    write(tmp_path, RUN, [failed(), trial(), trial(DEPTH=5)])
    assert autoresearch.read(tmp_path)[0][0]["left_out"] == ["depth-8 (no finished run)"]


def test_the_published_files_import_as_described(published, tmp_path):
    folder = published("autoresearch")
    [(meta, rows)] = autoresearch.read(folder)
    assert len(meta["upstream"]["files"]) == 38
    assert set(meta["upstream"]["files"]) < {f.partition("/")[2] for f in autoresearch.FILES}
    assert meta["left_out"] == [
        "karpathy_agent_Qwen3_5_0_8B/seed_0 (350 runs of edited code)",
        "2 runs: a WINDOW_PATTERN that is none of the six",
        "4 runs: failed otherwise than by memory (time out, crash)",
    ]
    assert Counter(row["status"] for row in rows) == {"ok": 6638, "infeasible": 520}
    tables.write_table(tmp_path, meta, rows)
    experiments = {e.name: e for e in load_experiments([tmp_path])}
    levels = Counter(e.fidelity.level for e in experiments.values())
    assert levels == {"low": 4, "mid": 2}
    deep = experiments["depth-8"]
    row, matched = deep.match(deep.default)
    assert not matched and deep.outcomes.values_R[row] == pytest.approx(0.99138, abs=1e-5)
    assert 0.01 < deep.outcomes.noise_regret < 0.04
    first = next(row for row in rows if row["run"] == "llambo/seed_0/1")
    assert (first["val_bpb"], first["experiment"]) == (0.99326, "depth-8")


def test_every_published_file_begins_with_the_default(published):
    [(meta, rows)] = autoresearch.read(published("autoresearch"))
    first = [row for row in rows if row["run"].endswith("/1")]
    assert len(first) == 37
    for row in first:
        assert row["experiment"] == "depth-8"
        assert {name: row[f"config.{name}"] for name in autoresearch.DEFAULT} == (
            autoresearch.DEFAULT
        )
