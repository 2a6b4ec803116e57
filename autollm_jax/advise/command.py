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

from absl import flags, logging

from autollm_jax import command_line
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

# Flags of the question: kept by a session.
_QUESTION = {
    "runs": flags.DEFINE_list(
        "runs", [], f"Files of runs, comma-separated: {reading.ACCEPTED}."
    ),
    "target": flags.DEFINE_string(
        "target", "", "Size of the expensive run: parameters=7e9,tokens=2e11 (also flops, steps, "
        "epochs, hours); 7B is 7e9."),
    "objective": flags.DEFINE_string("objective", "", "Column of outcomes; guessed where empty."),
    "goal": flags.DEFINE_enum("goal", "", ["", "minimize", "maximize"], "Of the objective."),
    "space": command_line.define_path("space", None, "JSON file with the columns' meaning."),
    "candidates": command_line.define_path(
        "candidates", None, "File of configurations to choose from; any of the space where empty."),
    "default": flags.DEFINE_string("default", "", "Configuration you would take untuned, as JSON."),
    "hyperparameters": flags.DEFINE_list("hyperparameters", [], "Columns that are chosen."),
    "ignore": flags.DEFINE_list("ignore", [], "Columns to leave out."),
    "fidelity": flags.DEFINE_list(
        "fidelity", [], "Columns that say how dear a run is: parameters:COLUMN,tokens:COLUMN."),
    "status": flags.DEFINE_string("status", "", "Column that says how a run ended."),
    "seed": flags.DEFINE_string("seed", "", "Column with the seed of a run."),
    "task": flags.DEFINE_enum(
        "task", "pretraining", ["architecture", "pretraining", "grpo", "data_mixture"],
        "What the runs are, for the agent's words."),
    "budget": flags.DEFINE_integer("budget", 5, "Expensive runs in all.", lower_bound=1),
    "agent": command_line.define_path(
        "agent", None, "Work directory of a trained agent, or what launch/export_agent.py wrote; "
        "`panel` asks none."),
}  # fmt: skip
_SESSION = command_line.define_path("session", None, "Folder that keeps the question and outcomes.")
_TELL = flags.DEFINE_multi_string("tell", [], "An expensive run: '{CONFIG AS JSON} loss=2.41'.")
_UNDO = flags.DEFINE_bool("undo", False, "Take the latest told run back.")
_PLOT = command_line.define_path("plot", None, "HTML file to draw the question into.")
_JSON = flags.DEFINE_bool("json", False, "Print the advice as JSON, and nothing else.")
_WRITE_SPACE = command_line.define_path(
    "write_space", None, "File to write the columns' meaning to."
)


def main(argv: list[str]) -> None:
    """Answer one question."""
    if len(argv) > 1:
        raise UserError(f"unexpected {argv[1]!r}; a file of runs is given as --runs={argv[1]}")
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
        candidates = [_plain(row) for row in reading.read(arguments["candidates"]).rows]
    if arguments["agent"] == "panel":
        decider = Panels()
    else:
        decider = Agent(Path(arguments["agent"])) if arguments["agent"] else default_decider()
    return Advisor.from_runs(
        rows,
        target=arguments["target"],
        hints=hints,
        candidates=candidates,
        default=json.loads(arguments["default"]) if arguments["default"] else None,
        task=arguments["task"],
        decider=decider,
        budget=arguments["budget"],
    )


def _plain(row: Mapping) -> dict:
    from autollm_jax.advise.values import number

    values = {name: number(cell) for name, cell in row.items()}
    return {name: row[name] if value is None else value for name, value in values.items()}


def _hints(arguments: Mapping) -> Hints:
    said = read_json(Path(arguments["space"])) if arguments["space"] else {}
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
    logging.set_verbosity(logging.WARNING)
    command_line.run(main)
