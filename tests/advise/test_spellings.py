"""Files as programs and spreadsheets spell them: read alike, or refused with what to do."""

import gzip
import json

import pytest

from autollm_jax.advise.advisor import Advisor
from autollm_jax.advise.columns import Hints
from autollm_jax.advise.decider import Panels
from autollm_jax.advise.reading import of_mappings, read
from autollm_jax.advise.runs import clean
from autollm_jax.advise.target import Target
from autollm_jax.advise.understanding import understand
from autollm_jax.advise.words import advice_text
from autollm_jax.errors import UserError

from .conftest import TARGET
from .test_clumsy import renamed, text_of, with_column


def spread(rows, spell):
    return text_of(with_column(rows, "loss", lambda n, row: spell(f"{row['loss']:.6f}")))


def four_digits(name, value):
    """Commas that stand before decimals, three of them: 2,379 beside 0,0001."""
    return f"{value:.4g}".replace(".", ",") if isinstance(value, float) else value


def in_millions(rows, names):
    millions = [
        {**row, "parameters": row["parameters"] / 1e6, "tokens": row["tokens"] / 1e6}
        for row in rows
    ]
    return text_of(renamed(millions, names))


def nested(rows, write, config):
    """A row as a tracker's programming interface gives it: its settings in one cell."""
    return text_of(
        [
            {
                "name": row["run"],
                "config": write({k: config(v) for k, v in row.items() if k not in ("run", "loss")}),
                "summary": write({"loss": row["loss"], "_runtime": float("nan")}),
            }
            for row in rows
        ]
    )


def repeated(rows):
    lines = text_of(rows).splitlines()
    return "\n".join([*lines[:20], lines[0], *lines[20:], lines[0]])


def printed(rows):
    table = [list(rows[0]), *[list(row.values()) for row in rows]]
    return "\n".join("".join(f"{cell!s:>22}" for cell in row) for row in table)


SUMS = "mean,0.0028,74.6,2333333.3,46666666,2.9\r\nmax,0.01,128,4000000,80000000,4.1\r\n"

# What the file is -> its bytes. All hold the same runs.
ALIKE = {
    "UTF-16 with a mark": lambda rows: text_of(rows, ";", four_digits).encode("utf-16"),
    "UTF-16 without a mark": lambda rows: text_of(rows, ";").encode("utf-16-le"),
    "decimal commas that look like thousands": lambda rows: text_of(rows, ";", four_digits),
    "a line sep=;": lambda rows: "sep=;\n" + text_of(rows, ";"),
    "a title above": lambda rows: "My sweep,,,,,\n\n" + text_of(rows),
    "comments above": lambda rows: "# exported\n# by me\n" + text_of(rows),
    "a printed table": printed,
    "the header again": repeated,
    "lines that sum up": lambda rows: text_of(rows) + SUMS,
    "a mean and its deviation": lambda rows: spread(rows, lambda loss: f"{loss} ± 0.01"),
    "a deviation in brackets": lambda rows: spread(rows, lambda loss: f"{loss} (0.01)"),
    "units in words": lambda rows: text_of(
        rows,
        change=lambda n, v: f"{v / 1e6:g} million" if n in ("parameters", "tokens") else v,
    ),
    "units in the header": lambda rows: in_millions(
        rows, {"parameters": "Parameters (M)", "tokens": "Tokens [millions]"}
    ),
    "units in names": lambda rows: in_millions(
        rows, {"parameters": "params_M", "tokens": "tokens_m"}
    ),
    "settings as JSON in a cell": lambda rows: nested(rows, json.dumps, lambda v: {"value": v}),
    "settings as Python in a cell": lambda rows: nested(rows, str, lambda v: v),
    "gzip": lambda rows: gzip.compress(text_of(rows).encode()),
}  # fmt: skip
ALIKE_JSON = {
    "runs in an object": lambda rows: {"runs": rows},
    "columns": lambda rows: {name: [row[name] for row in rows] for name in rows[0]},
    "columns by row": lambda rows: {
        name: {str(n): row[name] for n, row in enumerate(rows)} for name in rows[0]
    },
}


def experiments_of(path):
    advisor = Advisor.from_runs(read(str(path)), target=TARGET, decider=Panels())
    found = sorted(advisor.question.evidence, key=lambda e: e.fidelity.parameters)
    return [
        (round(e.fidelity.parameters), round(e.fidelity.tokens), len(e.cells),
         round(e.outcomes.optimum, 2))
        for e in found
    ]  # fmt: skip


@pytest.fixture(scope="module")
def plain(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "runs.csv"
    path.write_text(text_of(rows))
    return experiments_of(path)


@pytest.mark.parametrize("kind", ALIKE)
def test_a_file_is_read_as_its_plain_twin(rows, plain, tmp_path, kind):
    content = ALIKE[kind](rows)
    path = tmp_path / "runs.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert experiments_of(path) == plain


@pytest.mark.parametrize("kind", ALIKE_JSON)
def test_a_json_file_of_any_shape_is_read_as_its_plain_twin(rows, plain, tmp_path, kind):
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(ALIKE_JSON[kind](rows)))
    assert experiments_of(path) == plain


def with_state(rows, state):
    return text_of(with_column(rows, "state", lambda n, row: state))


# What the file is -> (its content, what the one line has to say).
REFUSED = {
    "no header": (lambda rows: text_of(rows).split("\r\n", 1)[1], "no names of columns"),
    "a web page": (lambda rows: "<!doctype html><html></html>", "web page"),
    "a spreadsheet": (lambda rows: "PK\x03\x04", "save it as CSV"),
    "all failed": (lambda rows: with_state(rows, "failed"), "no run has an outcome .*failed"),
    "all running": (lambda rows: with_state(rows, "running"), "no run has an outcome .*45 running"),
    "all diverged": (
        lambda rows: text_of(with_column(rows, "acc", lambda n, row: "nan")),
        "no run has an outcome .*45 diverged",
    ),
    "a date as objective": (
        lambda rows: text_of(with_column(rows, "acc", lambda n, row: f"2026-11-{1 + n % 28:02d}")),
        "objective acc: holds '2026-11-01', no numbers; columns of numbers are",
    ),
    "more columns than a cell may hold": (
        lambda rows: ",".join(["loss", *map(str, range(50_000))]) + "\n" + "1," * 50_000 + "1\n",
        "no names of columns",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(rows, tmp_path, kind):
    content, words = REFUSED[kind]
    path = tmp_path / "runs.csv"
    path.write_text(content(rows))
    objective = "acc" if "acc" in content(rows)[:100] else ""
    with pytest.raises(UserError, match=words) as error:
        Advisor.from_runs(read(str(path)), target=TARGET, objective=objective, decider=Panels())
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_target_may_use_the_names_of_columns():
    assert Target.of("Params=7B,train_tokens=200B") == Target({"parameters": 7e9, "tokens": 2e11})
    limited = Target.of("parameters<=1e8,tokens=20B")
    assert limited == Target({"tokens": 2e10}, quantity="parameters", at_most=1e8)


def test_a_target_that_shares_no_size_with_the_runs_is_refused(rows):
    with pytest.raises(
        UserError, match="says its steps, and the runs say their parameters, tokens"
    ):
        Advisor.from_runs(rows, target={"steps": 1000}, decider=Panels())


def test_a_target_smaller_than_every_run_is_said(rows):
    target = {"parameters": 16, "tokens": 320}  # millions were meant
    notes = Advisor.from_runs(rows, target=target, decider=Panels()).ask().notes
    assert any("smaller than every run" in note and "unit" in note for note in notes)
    assert any("the nearest runs are 62500 times the size of the target" in note for note in notes)


def test_outcomes_that_are_all_alike_are_said(rows):
    alike = [{**row, "loss": 2.0} for row in rows]
    advice = Advisor.from_runs(alike, target=TARGET, objective="loss", decider=Panels()).ask()
    assert any("loss is the same" in note for note in advice.notes)
    assert not any("space.json" in note for note in advice.notes)


def test_a_column_without_a_name_is_said(rows, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(text_of(rows).replace("batch_size", "", 1))
    assert any("no name above column 3" in note for note in read(str(path)).notes)


def test_a_hyperparameter_that_few_rows_have_can_be_ignored_says_the_note(rows):
    some = [
        {**row, "warmup": "" if row["parameters"] < 4e6 else n % 2} for n, row in enumerate(rows)
    ]
    advisor = Advisor.from_runs(some, target=TARGET, decider=Panels())
    assert "--ignore=warmup keeps such rows" in advisor.describe()


def test_many_columns_are_not_all_listed(rows):
    wide = [{**row, **{f"c{n}": 1 for n in range(5000)}} for row in rows]
    advisor = Advisor.from_runs(wide, target=TARGET, decider=Panels())
    assert len(advisor.known.describe().splitlines()) < 20
    assert "batch_size" in advice_text(advisor, advisor.ask())


def exported(rows):
    """Rows as a tracker exports them: prefixes, and several measured columns."""
    names = {"learning_rate": "config.lr", "batch_size": "config.batch_size", "loss": "val/loss"}
    more = [{**row, "train/loss": row["loss"] - 0.1, "val/ppl": 9 * row["loss"]} for row in rows]
    return renamed(more, names)


def test_of_several_measures_the_validation_loss_is_the_objective(rows):
    advisor = Advisor.from_runs(exported(rows), target=TARGET, decider=Panels())
    assert advisor.known.objective.name == "val/loss"


def test_a_column_may_be_named_without_its_prefix_and_its_signs(rows):
    advisor = Advisor.from_runs(
        exported(rows), target=TARGET, decider=Panels(), objective="train_loss",
        hints=Hints(roles={"batch_size": "ignored"}),
    )  # fmt: skip
    assert advisor.known.objective.name == "train/loss"
    assert advisor.question.setting.space.names == ("lr",)


def test_what_follows_from_a_runs_size_is_no_hyperparameter(rows):
    ladder = [
        {
            **row,
            "model": f"llama-{row['parameters'] / 1e6:g}M",
            "n_layers": row["parameters"] // 5e5,
        }
        for row in rows
    ]
    advisor = Advisor.from_runs(ladder, target=TARGET, decider=Panels())
    assert advisor.question.setting.space.names == ("learning_rate", "batch_size")
    assert advisor.known.columns["n_layers"].why == "one value for each size of a run"
    said = Hints(roles={"n_layers": "hyperparameter"})
    advisor = Advisor.from_runs(ladder, target=TARGET, hints=said, decider=Panels())
    assert advisor.question.setting.space.names == ("learning_rate", "batch_size", "n_layers")


def test_a_size_within_a_group_of_settings_is_found_where_the_target_says_it(rows):
    names = {"parameters": "config.model.n_params", "loss": "val/loss", "batch_size": "config.bs"}
    nested = renamed(rows, names | {"learning_rate": "config.lr", "tokens": "config.tokens"})
    advisor = Advisor.from_runs(nested, target=TARGET, decider=Panels())
    assert {e.fidelity.parameters for e in advisor.question.evidence} == {1e6, 2e6, 4e6}


def test_a_cheap_run_is_named_by_the_sizes_that_the_runs_say(rows):
    steps = [{**{k: v for k, v in row.items() if k != "tokens"}, "steps": 1000} for row in rows]
    target = {"parameters": 1.6e7, "steps": 4000}
    run = Advisor.from_runs(steps, target=target, decider=Panels()).ask().cheap_run
    assert run is not None and "steps=" in run.fidelity and "tokens" not in run.fidelity


def columns_of(rows, **hints):
    hints = Hints(objective="loss", wanted=("parameters", "tokens"), **hints)
    return understand(of_mappings(rows), hints).columns


@pytest.mark.parametrize(
    "parameters, tokens",
    [("Model (M)", "Tok (B)"), ("N_nonemb", "D_tokens"), ("model_size", "token_budget")],
)
def test_a_size_goes_by_many_names(rows, parameters, tokens):
    found = columns_of(renamed(rows, {"parameters": parameters, "tokens": tokens}))
    assert (found[parameters].role, found[parameters].meaning) == ("fidelity", "parameters")
    assert (found[tokens].role, found[tokens].meaning) == ("fidelity", "tokens")


def test_neither_a_benchmark_nor_hours_nor_a_name_is_chosen(rows):
    found = columns_of(
        [
            row | {"hellaswag": 0.2 + 0.01 * n, "arc_easy": 0.3 + 0.01 * n, "time/h": n % 3 + 1.0,
                   "exp_name": f"e{n}", "n_embd": (256, 512)[n % 2], "search": (1, 2, 4)[n % 3]}
            for n, row in enumerate(rows)
        ]
    )  # fmt: skip
    for name in ("hellaswag", "arc_easy", "time/h", "exp_name"):
        assert found[name].role == "ignored", name
    for name in ("n_embd", "search", "learning_rate"):
        assert found[name].role == "hyperparameter", name


def test_a_benchmark_that_is_the_objective_is_maximised(rows):
    scored = [row | {"hellaswag": -row["loss"]} for row in rows]
    assert not understand(of_mappings(scored), Hints(objective="hellaswag")).minimize


@pytest.mark.parametrize(
    ("name", "yes", "no", "status"),
    [
        ("diverged", "True", "False", "diverged"),
        ("is_oom", "yes", "no", "infeasible"),
        ("nan", 1, 0, "diverged"),
        ("finished", "no", "yes", ""),  # what did not finish cannot be used
    ],
)
def test_a_column_of_yes_and_no_that_tells_how_runs_ended_is_a_status(rows, name, yes, no, status):
    flagged = [{**row, name: yes if number % 9 == 0 else no} for number, row in enumerate(rows)]
    advisor = Advisor.from_runs(flagged, target=TARGET, decider=Panels())
    assert [column.name for column in advisor.known.of("status")] == [name]
    assert name not in advisor.ask().config
    made, _ = clean(of_mappings(flagged), advisor.known)
    unlike = len(range(0, len(rows), 9))
    assert sum(run.status == "ok" for run in made) == len(rows) - unlike
    assert sum(run.status == status for run in made) == (unlike if status else 0)
