"""Ask what to try next, from your own runs.

    python launch/advise.py --runs=runs.csv --target=parameters=7e9,tokens=2e11 --objective=loss

reads the runs, says how it understood their columns, and answers with the next configuration of the
target, its predicted outcome with intervals, the reasons, and whether another run is worth it.
Then run it and tell the outcome (a session keeps the question):

    python launch/advise.py --session=DIR --tell='{"learning_rate": 3e-4, "warmup": 500} loss=2.41'

Every guess about a column can be overruled by a flag, or in the file that --write_space writes and
--space reads.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from absl import flags

from autollm_jax import command_line, host
from autollm_jax.advise import reading
from autollm_jax.advise.advisor import Advisor
from autollm_jax.advise.columns import Hints
from autollm_jax.advise.decider import Agent, Panels, default_decider
from autollm_jax.advise.names import FIDELITIES
from autollm_jax.advise.session import Session, parse_told
from autollm_jax.advise.words import advice_text
from autollm_jax.errors import UserError
from autollm_jax.files import read_json, write_atomic, write_json_atomic
from autollm_jax.gym.spaces import InvalidConfiguration

TASKS = ("architecture", "pretraining", "grpo", "data_mixture")

# Flags of the question: kept by a session.
_QUESTION = {
    "runs": flags.DEFINE_list(
        "runs", [], f"Your cheap runs: a file or several, comma-separated: {reading.ACCEPTED}. "
        "Example: --runs=sweep.csv,older.parquet. Needed, unless --session has them."),
    "target": flags.DEFINE_string(
        "target", "", "How large the expensive run is: NAME=NUMBER, comma-separated; names are "
        f"{', '.join(FIDELITIES)}; 7B is 7e9. COLUMN=VALUE picks among kinds of runs, NAME<=NUMBER "
        "limits what a configuration may have. Examples: --target=parameters=7e9,tokens=2e11 and "
        "--target='parameters<=1e8,tokens=2e10,corpus=c4'. Needed, unless --session has it."),
    "objective": flags.DEFINE_string(
        "objective", "", "Column of what a run is judged by. Example: --objective=val_loss. By "
        "default it is guessed: a validation loss, a loss, another measure."),
    "goal": flags.DEFINE_enum(
        "goal", "", ["", "minimize", "maximize"], "Whether a low or a high objective is good. "
        "Example: --goal=maximize. By default its name tells: accuracy is maximised, loss "
        "minimised."),
    "space": command_line.define_path(
        "space", None, "JSON file that says what columns mean, as --write_space writes it. "
        "Example: --space=space.json. By default the meaning is guessed."),
    "candidates": command_line.define_path(
        "candidates", None, "File of configurations to choose from, with a column for each "
        f"hyperparameter: {reading.FILES}. Example: --candidates=possible.csv. By default any "
        "configuration of the space may be proposed."),
    "default": flags.DEFINE_string(
        "default", "", "Configuration that you would take untuned, as JSON. Example: "
        """--default='{"learning_rate": 3e-4}'. By default the most usual one of the runs."""),
    "hyperparameters": flags.DEFINE_list(
        "hyperparameters", [], "Columns that are chosen, comma-separated, besides those that are "
        "guessed. Example: --hyperparameters=width,depth. By default all are guessed."),
    "ignore": flags.DEFINE_list(
        "ignore", [], "Columns to leave out, comma-separated. Example: --ignore=notes,gpu. By "
        "default those that are labels, measured, or the same in every run."),
    "fidelity": flags.DEFINE_list(
        "fidelity", [], f"Columns that say how dear a run is: NAME:COLUMN, comma-separated; names "
        f"are {', '.join(FIDELITIES)}. Example: --fidelity=parameters:n_params,tokens:D. By "
        "default columns of such names."),
    "status": flags.DEFINE_string(
        "status", "", "Column that says how a run ended: finished, diverged, oom, failed, running "
        "and the like. Example: --status=state. By default a column of such a name."),
    "seed": flags.DEFINE_string(
        "seed", "", "Column with the seed of a run. Example: --seed=rng. By default a column of "
        "such a name."),
    "task": flags.DEFINE_enum(
        "task", "pretraining", list(TASKS), "What the runs are, for the agent's words. Example: "
        "--task=data_mixture."),
    "budget": flags.DEFINE_integer(
        "budget", 5, "Expensive runs that you can make, those made so far among them. Example: "
        "--budget=3.", lower_bound=1),
    "agent": command_line.define_path(
        "agent", None, "Who decides: a work directory of launch/main.py, a folder that "
        "launch/export_agent.py wrote, or `panel` for all advisers together. Example: "
        "--agent=workdir. By default the trained agent of the package."),
}  # fmt: skip
_SESSION = command_line.define_path(
    "session", None, "Folder that keeps the question, and what you tell, from call to call. It is "
    "made where it does not exist. Example: --session=mine. By default nothing is kept."
)  # fmt: skip
_TELL = flags.DEFINE_multi_string(
    "tell", [], "An expensive run that was made: its configuration as JSON, then NAME=NUMBER of "
    "the objective, or status=diverged or status=infeasible. Example: "
    """--tell='{"learning_rate": 3e-4, "batch_size": 256} loss=2.41'."""
)  # fmt: skip
_UNDO = flags.DEFINE_bool(
    "undo", False, "Take the latest run back that --session was told of. Example: --session=mine "
    "--undo."
)  # fmt: skip
_PLOT = command_line.define_path(
    "plot", None, "HTML file to draw runs and advice into. Example: --plot=out.html. By default "
    "nothing is drawn."
)  # fmt: skip
_JSON = flags.DEFINE_bool(
    "json", False, "Print advice, and how the file was understood, as one JSON object and nothing "
    "else. Example: --json > advice.json."
)  # fmt: skip
_WRITE_SPACE = command_line.define_path(
    "write_space", None, "JSON file to write the columns' meaning into; edit it and give it back "
    "by --space. Example: --write_space=space.json. By default nothing is written."
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Answer one question."""
    if len(argv) > 1:
        raise UserError(f"unexpected {argv[1]!r}; a file of runs is given as --runs={argv[1]}")
    host.only_cpu()
    given = {name: flag.value for name, flag in _QUESTION.items() if flag.present}
    folder = Path(_SESSION.value) if _SESSION.value else None
    session = Session.load(folder) if folder else None
    if session is None and not given.get("runs"):
        raise UserError(
            "no runs; give your cheap runs as --runs=FILE and the size of the expensive one as "
            "--target=parameters=7e9,tokens=2e11"
        )
    arguments = {name: flag.default for name, flag in _QUESTION.items()}
    arguments |= dict(session.arguments if session else {}) | given
    session = Session(arguments, session.told if session else (), session.advice if session else ())
    if _UNDO.value:
        session = session.undo()
    advisor = _advisor(arguments)
    metric = advisor.question.setting.objective.metric
    for text in _TELL.value:
        session = session.tell(parse_told(text, metric))
    for told in session.told:
        outcome = float("nan") if told.outcome is None else told.outcome
        try:
            advisor = advisor.tell(told.config, outcome, told.status)
        except InvalidConfiguration as error:
            raise UserError(f"--tell: {error}") from error
    if _WRITE_SPACE.value:
        write_json_atomic(_WRITE_SPACE.value, advisor.known.to_json())
    advice = advisor.ask()
    if folder:
        saved = Session(session.arguments, session.told, (*session.advice, advice.to_json()))
        saved.save(folder)
    if _PLOT.value:
        from autollm_jax.advise.plot import page

        write_atomic(_PLOT.value, page(advisor, advice))
    if _JSON.value:
        print(json.dumps({"understood": advisor.understood()} | advice.to_json(), indent=1))
        return
    print(f"{advisor.describe()}\n\n{advice_text(advisor, advice)}")


def _advisor(arguments: Mapping) -> Advisor:
    if not arguments["target"]:
        raise UserError(
            "no target; give the size of the expensive run as --target=parameters=7e9,tokens=2e11 "
            f"(accepted are {', '.join(FIDELITIES)}, those that the runs say)"
        )
    rows = reading.join([reading.read(source) for source in arguments["runs"]])
    candidates = None
    hints = _hints(arguments)
    if arguments["candidates"]:
        candidates = [_plain(row) for row in reading.read(arguments["candidates"], 1).rows]
    if arguments["agent"] == "panel":
        decider = Panels()
    else:
        decider = Agent(Path(arguments["agent"])) if arguments["agent"] else default_decider()
    return Advisor.from_runs(
        rows,
        target=arguments["target"],
        hints=hints,
        candidates=candidates,
        default=_default(arguments["default"]) if arguments["default"] else None,
        task=arguments["task"],
        decider=decider,
        budget=arguments["budget"],
    )


def _plain(row: Mapping) -> dict:
    from autollm_jax.advise.values import number

    values = {name: number(cell) for name, cell in row.items()}
    return {name: row[name] if value is None else value for name, value in values.items()}


def _default(text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(
            f"--default: {text!r} is no JSON object; accepted is a configuration such as "
            """'{"learning_rate": 3e-4}'"""
        )
    return value


def _space(file: str) -> dict:
    said = read_json(Path(file))
    columns = said.get("columns", {})
    if not isinstance(columns, dict) or not all(isinstance(c, dict) for c in columns.values()):
        raise UserError(
            f"{file}: `columns` has an object for each column, such as "
            """{"lr": {"role": "hyperparameter"}}; --write_space writes such a file"""
        )
    if said.get("goal", "minimize") not in ("minimize", "maximize"):
        raise UserError(f"{file}: goal {said['goal']!r}; accepted are minimize and maximize")
    return said


def _hints(arguments: Mapping) -> Hints:
    said = _space(arguments["space"]) if arguments["space"] else {}
    roles = dict.fromkeys(arguments["hyperparameters"], "hyperparameter")
    roles |= dict.fromkeys(arguments["ignore"], "ignored")
    for role in ("status", "seed"):
        if arguments[role]:
            roles[arguments[role]] = role
    fidelities = {}
    for pair in arguments["fidelity"]:
        name, _, column = pair.partition(":")
        fidelities[name] = column or name
    goal = arguments["goal"] or said.get("goal", "")
    columns = said.get("columns", {})
    objective = arguments["objective"] or next(
        (name for name, each in columns.items() if each.get("role") == "objective"), ""
    )
    return Hints(objective, goal == "minimize" if goal else None, roles, fidelities, columns)


def run() -> None:
    """Run the command: the entry point `autollm-advise`, and `launch/advise.py`."""
    command_line.run(main)
