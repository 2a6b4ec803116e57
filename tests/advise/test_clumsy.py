"""Files as people have them: an answer, or one line that says what to do."""

import csv
import io
import json

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autollm_jax.advise.advisor import Advisor
from autollm_jax.advise.decider import Panels
from autollm_jax.advise.question import MOST_ROWS, MOST_TRIALS
from autollm_jax.advise.reading import join, read
from autollm_jax.errors import UserError

from .conftest import TARGET, loss


def text_of(rows, delimiter=",", change=lambda name, value: value, header=None):
    """Write rows as delimited text; `change` spells a cell."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    names = list(rows[0])
    writer.writerow(header or names)
    for row in rows:
        writer.writerow([change(name, row[name]) for name in names])
    return out.getvalue()


def comma(name, value):
    return f"{value:.8f}".replace(".", ",") if isinstance(value, float) and value < 1e3 else value


def suffixed(name, value):
    if name == "parameters":
        return f"{value / 1e6:g}M params"
    return f"{value / 1e6:g}M tokens" if name == "tokens" else value


def percent(name, value):
    return f"{100 * value:.4f}%" if name == "learning_rate" else value


def with_column(rows, name, value):
    return [{**row, name: value(number, row)} for number, row in enumerate(rows)]


def renamed(rows, names):
    return [{names.get(name, name): value for name, value in row.items()} for row in rows]


# What the file is -> its text. Each has an answer.
ANSWERED = {
    "semicolons": lambda rows: text_of(rows, ";"),
    "tabs": lambda rows: text_of(rows, "\t"),
    "bars": lambda rows: text_of(rows, "|"),
    "decimal commas": lambda rows: text_of(rows, ";", comma),
    "byte order mark": lambda rows: "\ufeff" + text_of(rows),
    "blank lines at the top": lambda rows: "\n\n" + text_of(rows) + "\n\n",
    "percent signs": lambda rows: text_of(rows, change=percent),
    "unit suffixes": lambda rows: text_of(rows, change=suffixed),
    "thousands separators": lambda rows: text_of(
        rows, change=lambda n, v: f"{v:,.0f}" if n in ("parameters", "tokens") else v
    ),
    "NaN and inf for runs that diverged": lambda rows: text_of(
        with_column(
            rows, "loss", lambda n, row: ("NaN", "inf")[n % 2] if n % 9 == 0 else row["loss"]
        )
    ),
    "missing losses": lambda rows: text_of(
        with_column(rows, "loss", lambda n, row: "" if n % 9 == 0 else row["loss"])
    ),
    "duplicate columns": lambda rows: text_of(
        with_column(rows, "again", lambda n, row: row["loss"]),
        header=["run", "learning_rate", "batch_size", "parameters", "tokens", "loss", "loss"],
    ),
    "a constant column": lambda rows: text_of(
        with_column(rows, "weight_decay", lambda n, row: 0.1)
    ),
    "dates": lambda rows: text_of(
        with_column(rows, "created_at", lambda n, row: f"2026-11-{1 + n % 28:02d} 10:00")
    ),
    "a negative objective": lambda rows: text_of(
        with_column(rows, "loss", lambda n, row: -1 / row["loss"])
    ),
    "mixed types": lambda rows: text_of(
        with_column(rows, "batch_size", lambda n, row: "auto" if n == 4 else row["batch_size"])
    ),
    "one run": lambda rows: text_of(rows[:1] + rows[1:2]),
    "a tracker's prefixes": lambda rows: text_of(
        renamed(
            with_column(rows, "_runtime", lambda n, row: n),
            {"learning_rate": "config/learning_rate", "batch_size": "config/batch_size"},
        )
    ),
    "a tracker's other prefixes": lambda rows: text_of(
        renamed(
            rows, {"learning_rate": "params.lr", "batch_size": "params.bs", "loss": "metrics.loss"}
        )
    ),
    "statuses": lambda rows: text_of(
        with_column(rows, "state", lambda n, row: ("finished", "crashed", "OOM", "running")[n % 4])
    ),
    "seeds": lambda rows: text_of(
        [{**row, "seed": s, "loss": row["loss"] + 0.01 * s} for row in rows for s in range(2)]
    ),
    "cells too many": lambda rows: text_of(rows).replace("r3,", "r3,", 1).replace("\r\n", ",\r\n"),
    "latin letters": lambda rows: text_of(renamed(rows, {"run": "Lauf für Größe"})),
}


@pytest.mark.parametrize("kind", ANSWERED)
def test_a_clumsy_file_is_answered(rows, tmp_path, kind):
    path = tmp_path / "runs.csv"
    path.write_bytes(ANSWERED[kind](rows).encode("cp1252" if kind == "latin letters" else "utf-8"))
    objective = "metrics.loss" if kind == "a tracker's other prefixes" else ""
    advisor = Advisor.from_runs(
        read(str(path)), target=TARGET, objective=objective, decider=Panels()
    )
    rates = {e.fidelity.parameters for e in advisor.question.evidence}
    assert rates <= {1e6, 2e6, 4e6}
    config = advisor.ask().config
    names = {"lr", "bs"} if "other" in kind else {"learning_rate", "batch_size"}
    assert set(config) == names or kind == "one run"


def test_every_spelling_of_numbers_is_the_same_question(rows, tmp_path):
    found = {}
    for kind in ("semicolons", "decimal commas", "percent signs", "unit suffixes",
                 "thousands separators"):  # fmt: skip
        path = tmp_path / "runs.csv"
        path.write_text(ANSWERED[kind](rows))
        advisor = Advisor.from_runs(read(str(path)), target=TARGET, decider=Panels())
        experiments = sorted(advisor.question.evidence, key=lambda e: e.fidelity.parameters)
        found[kind] = [
            (e.fidelity.parameters, e.fidelity.tokens, len(e.cells), round(e.outcomes.optimum, 6))
            for e in experiments
        ]
    assert all(each == found["semicolons"] for each in found.values())


# What the file is -> (its content, what the one line has to say).
REFUSED = {
    "nothing": (b"", "is empty"),
    "a header alone": (b"learning_rate,loss\n", "has no rows"),
    "one column": (b"loss\n1\n2\n", "one column only"),
    "no objective": (b"lr,bs\n1e-3,32\n2e-3,64\n", "--objective=NAME"),
    "two objectives": (b"lr,reward,accuracy\n1,1,1\n2,2,2\n", "--objective=NAME"),
    "nothing varies": (b"lr,loss\n1e-3,2.0\n1e-3,2.1\n", "--hyperparameters=NAME"),
    "no number": (b"lr,tokens,loss\n1e-3,1e9,good\n2e-3,1e9,bad\n", "--objective=NAME"),
    "a spreadsheet": (b"PK\x03\x04rest", "CSV, TSV"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_used_is_one_line_that_says_what_to_do(tmp_path, kind):
    content, words = REFUSED[kind]
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        Advisor.from_runs(read(str(path)), target=TARGET, decider=Panels())
    assert "\n" not in str(error.value)


def test_rows_that_cannot_be_used_are_named_with_their_lines(rows, tmp_path):
    path = tmp_path / "runs.csv"
    lines = text_of(rows).splitlines()
    lines[3] = lines[3].rsplit(",", 1)[0] + ",lost"
    lines[5] = lines[5].replace("1000000.0", "-5")
    path.write_text("\n".join(lines))
    advisor = Advisor.from_runs(read(str(path)), target=TARGET, decider=Panels())
    left_out = {each.place: each.reason for each in advisor.question.usage.left_out}
    assert left_out == {
        "runs.csv, line 4": "loss is lost, not a number",
        "runs.csv, line 6": "parameters is -5, not a positive number",
    }
    assert all(place in advisor.describe() for place in left_out)


def test_a_hundred_thousand_rows_are_answered(rows, tmp_path):
    path = tmp_path / "runs.csv"
    header, *lines = text_of(rows).splitlines()
    seeds = range(100_000 // len(rows))
    many = [f"{header},seed", *(f"{line},{seed}" for seed in seeds for line in lines)]
    path.write_text("\n".join(many))
    advisor = Advisor.from_runs(read(str(path)), target=TARGET, decider=Panels())
    assert sum(e.outcomes.runs_R.sum() for e in advisor.question.evidence) > 99_000
    assert advisor.ask().config["batch_size"] == 64


def test_every_kind_of_file_holds_the_same_runs(rows, tmp_path):
    (tmp_path / "runs.csv").write_text(text_of(rows))
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "runs.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "runs.parquet")
    nested = [{"config": {"learning_rate": r["learning_rate"]}, "loss": r["loss"]} for r in rows]
    (tmp_path / "nested.jsonl").write_text("\n".join(map(json.dumps, nested)))
    counts = []
    for name in ("runs.csv", "runs.jsonl", "runs.json", "runs.parquet"):
        advisor = Advisor.from_runs(read(str(tmp_path / name)), target=TARGET, decider=Panels())
        counts.append([(e.id, len(e.cells), e.outcomes.optimum) for e in advisor.question.evidence])
    assert all(each == counts[0] for each in counts)
    assert set(read(str(tmp_path / "nested.jsonl")).rows[0]) == {"config.learning_rate", "loss"}


def test_a_maximised_study_says_so_itself_also_beside_another_file(rows, tmp_path):
    storage, name = f"sqlite:///{tmp_path / 'study.db'}", "mine"
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
    for row in rows:
        study.add_trial(
            optuna.create_trial(
                params={"learning_rate": row["learning_rate"]},
                distributions={
                    "learning_rate": optuna.distributions.FloatDistribution(1e-5, 1, log=True)
                },
                user_attrs={"parameters": row["parameters"], "tokens": row["tokens"]},
                value=-row["loss"],
            )
        )
    for source in (f"optuna:{storage}#{name}", f"optuna:{tmp_path / 'study.db'}"):
        found = join([read(source), read(source)])
        advisor = Advisor.from_runs(found, target=TARGET, decider=Panels())
        assert not advisor.question.setting.objective.minimize
        assert len(advisor.question.evidence) == 3


def test_outcome_tables_are_read_one_task_at_a_time():
    with pytest.raises(UserError, match="several tasks; name one of .*pretraining.parquet"):
        read("gym_data")
    found = read("gym_data/stdlib_cpu/pretraining.parquet")
    advisor = Advisor.from_runs(found, target={"parameters": 1e6, "tokens": 4e6}, decider=Panels())
    assert advisor.known.objective.name == "loss"
    assert set(advisor.question.setting.space.names) == {"learning_rate", "batch_size"}
    assert len({e.fidelity.parameters for e in advisor.question.evidence}) > 3


def test_a_journal_of_a_study_is_read(rows, tmp_path):
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))
    study = optuna.create_study(storage=optuna.storages.JournalStorage(backend))
    study.optimize(lambda trial: trial.suggest_float("lr", 1e-4, 1e-1, log=True), n_trials=3)
    found = read(f"optuna:{tmp_path / 'study.log'}")
    assert len(found.rows) == 3 and {"params.lr", "value", "state"} <= set(found.rows[0])
    assert found.minimize


def many(rows, count):
    """Write runs of distinct configurations, and a crashed one in every hundred."""
    random, made = np.random.default_rng(0), []
    for number in range(count):
        size = rows[15 * (number % 3)]["parameters"]
        rate, batch = 10 ** random.uniform(-4, -2), int(random.choice((32, 64, 128)))
        made.append(
            {
                "learning_rate": rate, "batch_size": batch, "parameters": size,
                "tokens": 20 * size, "state": "crashed" if number % 100 == 99 else "finished",
                "loss": loss(rate, batch, size),
            }
        )  # fmt: skip
    return made


def test_of_very_many_configurations_an_even_part_is_used_with_the_best(rows):
    made = many(rows, 6000)
    advisor = Advisor.from_runs(made, target=TARGET, decider=Panels())
    for experiment in advisor.question.evidence:
        size = experiment.fidelity.parameters
        losses = [r["loss"] for r in made if r["parameters"] == size and r["state"] == "finished"]
        assert len(experiment.cells) <= MOST_ROWS < len(losses)
        assert experiment.outcomes.optimum == min(losses)
        assert experiment.outcomes.median == pytest.approx(np.median(losses), abs=0.02)
    notes = advisor.question.notes
    assert any("every second (third, ...) in order of outcome" in note for note in notes)


def test_many_rows_with_one_fault_are_counted_not_listed(rows):
    made = many(rows, 3000)
    advisor = Advisor.from_runs(made, target=TARGET, decider=Panels())
    (failed,) = [line for line in advisor.describe().splitlines() if "failed" in line]
    assert "left out, 30: failed" in failed and "(row 100; row 200; row 300 and 27 more)" in failed


def test_of_very_many_trials_the_best_and_the_latest_are_told_and_none_is_repeated(rows):
    here = [
        {**row, **TARGET, "batch_size": 2 ** (n % 30)} for n, row in enumerate(many(rows, 3000))
    ]
    kept = [row for row in here if row["state"] == "finished"]
    advisor = Advisor.from_runs([*rows, *here], target=TARGET, decider=Panels())
    question = advisor.question
    assert len(question.trials) <= MOST_TRIALS < len(kept)
    outcomes = [trial.outcome for trial in question.trials]
    assert min(outcomes) == min(row["loss"] for row in kept) and outcomes[-1] == kept[-1]["loss"]
    told = {tuple(trial.config.values()) for trial in question.trials}
    tried = {(row["learning_rate"], row["batch_size"]) for row in kept}
    offered = {tuple(config.values()) for config in question.setting.configurations}
    assert not (offered - told) & tried
