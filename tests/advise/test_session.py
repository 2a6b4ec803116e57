"""The command, as a person uses it: ask, tell, ask again, take back."""

import csv
import json
import re

import pytest

from autollm_jax.advise.session import Session, Told, parse_told
from autollm_jax.errors import UserError
from tests.scripts import run

TARGET = "--target=parameters=1.6e7,tokens=3.2e8"


@pytest.fixture
def file(rows, tmp_path):
    path = tmp_path / "runs.csv"
    with path.open("w") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def ask(*flags):
    return run("launch/advise.py", "--agent=panel", *flags)


def test_it_answers_remembers_and_takes_back(file, tmp_path):
    session = f"--session={tmp_path / 'session'}"
    done = ask(f"--runs={file}", TARGET, session)
    assert done.returncode == 0, done.stderr
    assert "learning_rate" in done.stdout and "try next" in done.stdout
    assert "fidelity: parameters" in done.stdout and "objective, lower is better" in done.stdout
    told = ask(session, "--json", '--tell={"learning_rate": 1e-3, "batch_size": 64} loss=2.4')
    value = json.loads(told.stdout)
    assert value["expected_gain"] is not None
    config = {"learning_rate": 1e-3, "batch_size": 64}
    assert all(ranked["config"] != config for ranked in value["ranked"])
    again = json.loads(ask(session, "--json").stdout)
    assert again["ranked"] == value["ranked"]
    undone = json.loads(ask(session, "--json", "--undo").stdout)
    assert undone["expected_gain"] is None
    kept = Session.load(tmp_path / "session")
    assert kept.told == () and len(kept.advice) == 4
    refused = ask(session, '--tell={"lr": 1e-3, "batch_size": 64} loss=2.4')
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "error: --tell: learning_rate is missing; accepted are exactly" in refused.stderr
    nothing = ask(session, "--undo")
    assert nothing.returncode == 1 and "nothing was told" in nothing.stderr


def test_guesses_are_written_and_overruled(file, tmp_path):
    space = tmp_path / "space.json"
    assert ask(f"--runs={file}", TARGET, f"--write_space={space}").returncode == 0
    value = json.loads(space.read_text())
    assert value["columns"]["learning_rate"]["kind"] == "log-ordinal"
    value["columns"]["learning_rate"] = {
        "role": "hyperparameter", "kind": "log-continuous", "bounds": [1e-5, 1e-1]
    }  # fmt: skip
    space.write_text(json.dumps(value))
    done = ask(f"--runs={file}", TARGET, f"--space={space}")
    assert "log-continuous: numbers from 1e-05 to 0.1" in done.stdout
    ignored = ask(f"--runs={file}", TARGET, "--ignore=batch_size", "--json")
    assert set(json.loads(ignored.stdout)["ranked"][0]["config"]) == {"learning_rate"}


def test_the_plot_is_one_page_with_its_figures(file, tmp_path):
    page = tmp_path / "out.html"
    assert ask(f"--runs={file}", TARGET, f"--plot={page}").returncode == 0
    text = page.read_text()
    assert text.count("<svg") == 4 and "src=" not in text and 'href="http' not in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--runs=FILE"),
        (("--runs=nowhere.csv", TARGET), "nowhere.csv: no such file"),
        (("--runs={file}",), "--target=parameters"),
        (("--runs={file}", TARGET, "--objective=los"), "no column 'los'"),
        (("--runs={file}", TARGET, "--tell=2.4"), "--tell: accepted is"),
        (("--runs={file}", TARGET, "--agent=nowhere"), "no agent"),
    ],
)
def test_a_mistake_is_one_line(file, flags, words):
    done = run("launch/advise.py", *[flag.format(file=file) for flag in flags])
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and words in line


CHEAP = ("--runs=examples/runs.csv", "--target=parameters=1.4e9,tokens=28e9", "--agent=panel")
BAD_SPACES = {
    "a list of columns": ({"columns": []}, "`columns` has an object for each"),
    "a word for a column": ({"columns": {"learning_rate": "hyperparameter"}}, "has an object for"),
    "another goal": ({"goal": "lower"}, "goal 'lower'; accepted are minimize and maximize"),
    "bounds in words": (
        {"columns": {"learning_rate": {"role": "hyperparameter", "bounds": "wide"}}},
        "learning_rate needs bounds",
    ),
}


@pytest.mark.parametrize("kind", BAD_SPACES)
def test_a_space_that_is_not_understood_is_one_line(tmp_path, kind):
    value, words = BAD_SPACES[kind]
    (tmp_path / "space.json").write_text(json.dumps(value))
    one_line(run("launch/advise.py", *CHEAP, f"--space={tmp_path / 'space.json'}"), words)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--default=abc", "--default: 'abc' is no JSON object"),
        ("--default=[1]", "--default: '[1]' is no JSON object"),
        ('--default={"lr": 1e-3}', "default: the runs have no 'lr'; hyperparameters are learning"),
        ('--default={"learning_rate": "big"}', "default: learning_rate is 'big', not a number"),
        ('--default={"learning_rate": 5}', "default: learning_rate is 5; accepted are 0.0001"),
        ("--runs=optuna:sqlite:///{folder}/none.db#x", "none.db: no such file"),
    ],
)
def test_a_flag_that_is_not_understood_is_one_line(tmp_path, flag, words):
    one_line(run("launch/advise.py", *CHEAP, flag.replace("{folder}", str(tmp_path))), words)
    assert not list(tmp_path.iterdir())


CANDIDATES = {
    "learning_rate,batch_size\nfast,64\n": "candidates: learning_rate is 'fast', not a number",
    "learning_rate\n0.001\n": "candidates, number 1: batch_size is missing",
    "lr,batch_size\n0.001,64\n": "candidates, number 1: learning_rate is missing",
}


@pytest.mark.parametrize("text", CANDIDATES)
def test_candidates_that_cannot_be_run_are_one_line(tmp_path, text):
    (tmp_path / "candidates.csv").write_text(text)
    flag = f"--candidates={tmp_path / 'candidates.csv'}"
    one_line(run("launch/advise.py", *CHEAP, flag), CANDIDATES[text])


def test_candidates_of_a_single_hyperparameter_are_a_file_of_one_column(tmp_path):
    (tmp_path / "candidates.csv").write_text("learning_rate\n0.001\n0.0003\n")
    flags = (f"--candidates={tmp_path / 'candidates.csv'}", "--ignore=batch_size", "--json")
    found = json.loads(run("launch/advise.py", *CHEAP, *flags).stdout)
    assert {each["config"]["learning_rate"] for each in found["ranked"]} == {1e-3, 3e-4}


def one_line(done, words):
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and words in line


@pytest.fixture(scope="module")
def described():
    done = run("launch/advise.py", "--help")
    texts = re.split(r"\n  --", done.stdout.split("launch/advise.py:")[1])[1:]
    return {re.match(r"(?:\[no\])?(\w+)", t)[1]: " ".join(t.split()) for t in texts}


def test_each_flag_says_what_it_takes_with_an_example_and_its_default(described):
    assert len(described) >= 20
    for name, text in described.items():
        assert re.search(rf"Examples?: .*--{name}\b", text), name
        told = (
            "By default" in text
            or "Needed, unless" in text
            or re.search(r"\(default: '[^']+'\)", text)
        )
        assert told, name


def test_outcomes_are_told_in_one_form():
    assert parse_told('{"lr": 1e-3} loss=2.4', "loss") == Told({"lr": 1e-3}, 2.4, "ok")
    assert parse_told('{"lr": 1} status=diverged', "loss") == Told({"lr": 1}, None, "diverged")
    for text in ('{"lr": 1}', '{"lr": 1} loss=good', "lr=1 loss=2", "{} loss=2"):
        with pytest.raises(UserError, match="--tell: accepted"):
            parse_told(text, "loss")


def test_a_damaged_session_says_so(tmp_path):
    (tmp_path / "session.json").write_text('{"format": 1, "told"')
    with pytest.raises(UserError, match="not a session"):
        Session.load(tmp_path)


def test_json_holds_how_the_file_was_understood(rows, tmp_path):
    path = tmp_path / "runs.csv"
    with path.open("w") as out:
        writer = csv.DictWriter(out, [*rows[0], "seed", "state"])
        writer.writeheader()
        for number, row in enumerate(rows):
            loss = "lost" if number == 2 else row["loss"]
            writer.writerow({**row, "loss": loss, "seed": 0, "state": "finished"})
    found = json.loads(ask(f"--runs={path}", TARGET, "--json").stdout)["understood"]
    assert found["objective"] == {"column": "loss", "goal": "minimize"}
    assert found["fidelity"] == {"parameters": "parameters", "tokens": "tokens"}
    assert (found["status"], found["seed"]) == (["state"], ["seed"])
    rate, run_name = found["columns"]["learning_rate"], found["columns"]["run"]
    assert (rate["role"], rate["kind"], rate["log"]) == ("hyperparameter", "log-ordinal", True)
    assert rate["choices"] == [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
    assert (run_name["role"], run_name["why"]) == ("ignored", "a label")
    assert found["target"] == "parameters=1.6e+07,tokens=3.2e+08"
    told = found["rows"]
    assert (told["read"], told["used"], len(told["sizes"])) == (45, 44, 3)
    assert told["left_out"] == [
        {"place": "runs.csv, line 4", "reason": "loss is lost, not a number"}
    ]
