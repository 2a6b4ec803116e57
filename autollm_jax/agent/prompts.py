"""The text of an episode: what the environment says, and how values are spelled everywhere.

A conversation is a list of `Turn`s, environment and agent alternating, and its text is their texts
joined (`render`). Tokens are made in one place, from one turn at a time (`distillation` for
simulated turns, `rollout` for played ones), so a turn's tokens never depend on its neighbours.
An agent's turn runs from `<think>` to the end-of-turn symbol, both included.

Every number shown derives from the evidence, the space and the trials so far. The spelling keeps
numbers between a space and a space or symbol, so that one value is the same tokens wherever it
stands and can be copied. In lists the key comes before what it stands for. Choices are in the
space's order, experiments nearest first; candidates are lowest forecast last, so that the best one
stands right before the agent's turn: a small policy learns to copy over a short, steady distance.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

from autollm_jax.agent import parsing
from autollm_jax.agent.evidence import value_at
from autollm_jax.agent.forecast import Forecast, forecast, step_costs
from autollm_jax.agent.spelling import choice_names, short, significant, size, spell_config
from autollm_jax.gym.environment import Observation, Trial
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.spaces import Dimension

END_OF_TURN = parsing.END_OF_TURN
LINE = ";\n"
LIST = ":\n"
# User-defined symbols of the tokenizer: one id each, wherever they stand. Without them a number
# would merge with the sign behind it, and no longer be the same tokens everywhere.
CONTROL_SYMBOLS = (
    parsing.THINK,
    parsing.THINK_END,
    parsing.EXEC,
    parsing.EXEC_END,
    END_OF_TURN,
)
SYMBOLS = (
    *CONTROL_SYMBOLS,
    '{"',
    '":',
    ',"',
    "}" + parsing.EXEC_END,
    LINE,
    LIST,
    *(f"e-{power}" for power in range(1, 10)),
    # Every forecast is one token, so that comparing them is comparing embeddings.
    *(f"{number / 5:.1f}%" for number in range(50)),
    *(f"{number}%" for number in range(10, 101)),
    # The words of the tasks, which SentencePiece would cut at the underscore.
    "learning_rate",
    "batch_size",
)

TASK_NOTES = {
    "architecture": "one run evaluates an architecture under a parameter limit",
    "pretraining": "one run trains a language model once",
    "grpo": "one run tunes a language model by reinforcement learning",
    "data_mixture": "one run trains on a mixture of data sets",
}

EVIDENCE_LINES = 5
CANDIDATES = 4
LABELS = "ABCDEFGHIJ"
PROMPT_TOKENS = 300
LONGEST_MESSAGE = 100
# Where training experiments come from is no business of a player.
HIDDEN_CONTEXT = ("provenance", "augmentation")
LOG_FACTOR = 2  # the step whose cost is shown, for log-ordinal dimensions


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
      role: `environment` or `agent`.
      text: what was said, an agent's with its end-of-turn symbol.
      learned: whether a policy should imitate it: an agent's turns, other than those that a
        simulation perturbed on purpose.
    """

    role: str
    text: str
    learned: bool


def environment_turn(text: str) -> Turn:
    return Turn("environment", text, False)


def agent_turn(text: str, learned: bool = True) -> Turn:
    return Turn("agent", text, learned)


def render(turns: Sequence[Turn]) -> str:
    """Join a conversation into one text, for people and for training the vocabulary."""
    return "".join(turn.text for turn in turns)


def view(observation: Observation) -> Forecast:
    """Return the forecast that this observation's texts quote."""
    return forecast(observation.experiment, observation.evidence)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A configuration that the environment lists.

    Attributes:
      label: a letter, by which a policy can point at it.
      expected: its forecast, rounded as it is shown.
      row: of the target's configurations.
      text: the configuration, spelled.
    """

    label: str
    expected: float
    row: int
    text: str


def rounded(expected: float) -> float:
    """Round a forecast as it is shown: to fifths of a percent below a tenth, to percent above."""
    if expected < 0.0990:
        return round(500 * expected) / 500
    return round(100 * expected) / 100


def percent(expected: float) -> str:
    """Spell a rounded forecast: 3.4%, 24%."""
    return f"{100 * expected:.1f}%" if expected < 0.0995 else f"{100 * expected:.0f}%"


def candidates(observation: Observation, most: int = CANDIDATES) -> tuple[Candidate, ...]:
    """List cells worth trying next, the lowest forecast first.

    They are the `most` untried cells of the lowest forecast; before the first trial also the cell
    nearest to the law, and the one nearest to the nearest cheap experiment's best.

    Args:
      observation: what is known.
      most: how many cells the forecast chooses.
    """
    target, seen = observation.experiment, view(observation)
    expected_R = seen.expected_regrets(observation.trials)
    order = expected_R.argsort(kind="stable")[:most]
    rows = [int(row) for row in order if math.isfinite(expected_R[row])]
    if not observation.trials:
        if seen.centre_row is not None:
            rows.append(seen.centre_row)
        if seen.nearest:
            best = seen.nearest[0].configurations[seen.nearest[0].best_row]
            rows.append(target.match(best).row)
        else:
            rows.append(target.match(target.default).row)
    rows = sorted(set(rows), key=lambda row: (expected_R[row], row))
    return tuple(
        Candidate(
            label,
            rounded(float(expected_R[row])),
            row,
            spell_config(target.space, target.configurations[row]),
        )
        for label, row in zip(LABELS, rows, strict=False)
    )


def _forecast_lines(observation: Observation, most: int) -> str:
    listed = candidates(observation, most)
    if not listed:
        return f"every configuration is tried{LINE}"
    lines = "".join(f" {c.label} {percent(c.expected)} at {c.text}{LINE}" for c in reversed(listed))
    rule = "" if observation.trials else ", lowest last"
    return f"expected regret{rule}{LIST}{lines}"


def slope_text(slope: float) -> str:
    """Spell an exponent with one decimal; zero has no sign."""
    return f"{slope + 0.0:.1f}".replace("-0.0", "0.0")


def law_value(dimension: Dimension, value: float) -> str:
    """Spell a value that the law predicts: two significant digits, not one of the choices."""
    return significant(value, 2)


def law_values(seen: Forecast) -> list[str]:
    """Spell the law's prediction for the target, per dimension."""
    dimensions = seen.target.space.dimensions
    return [
        law_value(d, value_at(d, float(c)))
        for d, c in zip(dimensions, seen.law.centre_D, strict=True)
    ]


@functools.lru_cache(maxsize=256)
def step_percent(seen: Forecast) -> tuple[tuple[int, int], ...]:
    """Return what a step below and above the centre costs per dimension, in percent of regret."""
    costs_D2 = step_costs(seen.nearest)
    return tuple((round(100 * low), round(100 * high)) for low, high in costs_D2.tolist())


def _choices_line(dimension: Dimension, shortened: bool) -> str:
    if dimension.kind == "simplex":
        return f"{dimension.name}: weights of {' '.join(map(str, dimension.choices))}{LINE}"
    names = list(choice_names(dimension).values())
    if shortened and len(names) > 6:
        return f"{dimension.name}: {names[0]} to {names[-1]} in {len(names)} steps{LINE}"
    return f"{dimension.name}: {' '.join(names)}{LINE}"


def _context(target: Experiment) -> str:
    """Spell what is fixed and has a name; numbers of the context are left to the fidelity."""
    names = [
        f" {key} {_plain(value)}"
        for key, value in target.context.items()
        if isinstance(value, str) and key not in HIDDEN_CONTEXT and len(value) <= 24
    ]
    return "".join(names[:2])


def _describe(observation: Observation, lines: int, most: int, shortened: bool) -> str:
    target, seen = observation.experiment, view(observation)
    space = target.space
    goal = "minimize" if target.minimize else "maximize"
    note = TASK_NOTES.get(target.task, "one run tries a configuration")
    parts = [
        f"task {target.task}: {note}. {goal} {target.objective_metric} "
        f"in {observation.budget_left} trials{LINE}",
        f"target: {short(target.fidelity.parameters)} parameters "
        f"{short(target.fidelity.tokens)} tokens{_context(target)}{LINE}",
        *(_choices_line(d, shortened) for d in space.dimensions),
        f"default: {spell_config(space, target.default)}{LINE}",
    ]
    if seen.nearest:
        parts.append(f"best of cheap experiments, nearest first{LIST}")
        for other in seen.nearest[:lines]:
            best = other.configurations[other.best_row]
            parts.append(f" {size(other.fidelity)} at {spell_config(other.space, best)}{LINE}")
    else:
        parts.append(f"no cheap experiments{LINE}")
    if seen.law is not None:
        for d, value, (size_slope, token_slope) in zip(
            space.dimensions, law_values(seen), seen.law.slopes_D2.tolist(), strict=True
        ):
            parts.append(
                f"law for {d.name} {value} as parameters ^ {slope_text(size_slope)} "
                f"tokens ^ {slope_text(token_slope)}{LINE}"
            )
        parts.append(f"cost in percent of a factor {LOG_FACTOR} off{LIST}")
        for d, (low, high) in zip(space.dimensions, step_percent(seen), strict=True):
            parts.append(f" {d.name} lower {low} higher {high}{LINE}")
    parts.append(_forecast_lines(observation, most))
    return "".join(parts)


def describe(
    observation: Observation,
    count: Callable[[str], int] | None = None,
    limit: int = PROMPT_TOKENS,
) -> str:
    """Write the environment's first turn.

    Args:
      observation: the state before the first trial.
      count: counts a text's tokens; None leaves the length alone.
      limit: the most tokens. Over it, cheap experiments are dropped from the list, the farthest in
        log fidelity first; then long lists of choices are written as their ends; then fewer
        candidates are listed.
    """
    text = ""
    plans = [(lines, CANDIDATES, False) for lines in range(EVIDENCE_LINES, 0, -1)]
    plans += [(1, CANDIDATES, True), (1, 2, True), (1, 1, True)]
    for lines, most, shortened in plans:
        text = _describe(observation, lines, most, shortened)
        if count is None or count(text) <= limit:
            break
    return text


@functools.lru_cache(maxsize=4096)
def _decimals(seen: Forecast) -> int:
    """Choose a precision for outcomes: about a hundredth of one unit of regret."""
    unit = seen.law.scale if seen.law is not None else 0.01
    return min(max(math.ceil(-math.log10(max(unit, 1e-9) / 100)), 0), 8)


def _plain(text: str) -> str:
    """Make a message fit to be shown: one line, short, and unable to end a turn or begin one."""
    text = " ".join(text.split())
    for symbol in CONTROL_SYMBOLS:
        text = text.replace(symbol, " ")
    return " ".join(text.split())[:LONGEST_MESSAGE].encode("utf-8", "replace").decode()


def best_trial(experiment: Experiment, trials: Sequence[Trial]) -> Trial | None:
    """Return the best ok trial, the earliest of equals; None if there is none."""
    sign = 1.0 if experiment.minimize else -1.0
    good = [t for t in trials if t.valid and t.status == "ok" and math.isfinite(t.outcome)]
    return min(good, key=lambda t: (sign * t.outcome, t.number), default=None)


def verdict(trial: Trial, observation: Observation) -> str:
    """Say how a trial compares with those before it."""
    if not trial.valid:
        return "invalid"
    if trial.status != "ok" or not math.isfinite(trial.outcome):
        return trial.status
    before = best_trial(observation.experiment, observation.trials[: trial.number - 1])
    if before is None:
        return "first"
    sign = 1.0 if observation.experiment.minimize else -1.0
    return "worse" if sign * (trial.outcome - before.outcome) >= 0 else "better"


def feedback(trial: Trial, observation: Observation) -> str:
    """Write a later environment turn: the outcome, how it compares, what is left, the forecast.

    Args:
      trial: the latest trial.
      observation: the state after it.
    """
    target = observation.experiment
    decimals = _decimals(view(observation))
    said = verdict(trial, observation)
    before = best_trial(target, observation.trials[: trial.number - 1])
    if not trial.valid:
        outcome = f"invalid. {_plain(trial.message)}"
    else:
        where = spell_config(target.space, trial.config)
        if trial.matched:
            where = f"not measured, nearest is {where}"
        if trial.status == "ok" and math.isfinite(trial.outcome):
            outcome = f"{where} gives {target.objective_metric} {trial.outcome:.{decimals}f} {said}"
            if before is not None:
                outcome += f" by {abs(trial.outcome - before.outcome):.{decimals}f}"
        else:
            outcome = f"{where} gives no {target.objective_metric} {said}"
    best = best_trial(target, observation.trials)
    where = "none" if best is None else spell_config(target.space, best.config)
    parts = [f"trial {trial.number} {outcome}{LINE}"]
    parts.append(f"best {where} and {observation.budget_left} left{LINE}")
    if observation.budget_left:
        parts.append(_forecast_lines(observation, CANDIDATES))
    return "".join(parts)
