"""Prompts: the environment's turns, as texts.

A conversation is a list of `Turn`s, environment and agent alternating, and its text is their texts
joined (`render`). Tokens are made in one place (`agent.dialogue`), from one turn at a time, so that
a turn's tokens never depend on its neighbours. An agent's turn runs from `<think>` to the
end-of-turn symbol, both included.

Every number shown derives from the evidence, the space and the trials so far.

1. Spelling: a number stands between a space and a space or symbol, so that one value is the same
   tokens everywhere and can be copied. A mixture is spelled as in the action's JSON for the same
   reason. The agent's statements end as a line does: SentencePiece would join a full stop to a
   number. In lists the key comes before its value.
2. Order: choices are in the space's order, experiments nearest first, candidates lowest forecast
   last. The standing of the trials follows them, right before the agent's turn: a small policy
   learns to copy over a short, steady distance. Each statement that the agent may make of evidence
   and trials is a line of the prompt, word for word.
3. Omissions follow rules: the lightest components of a mixture (`spelling.mixture`), the smallest
   effects (and components), the flattest dimensions of the law, the least relevant experiments
   (`describe`). Where configurations are long (`is_long`), fewer are listed.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

from autollm_jax.forecasts.base import Forecast
from autollm_jax.gym.environment import Observation, Trial
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting
from autollm_jax.gym.spaces import Dimension
from autollm_jax.text import candidates, parsing, statements
from autollm_jax.text.spelling import bounds_text, choice_names, short, size, spell_row

END_OF_TURN = parsing.END_OF_TURN
LINE = ";\n"
LIST = ":\n"
OPENING_QUOTE, NEXT_QUOTE = '{"', ',"'
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
    OPENING_QUOTE,
    NEXT_QUOTE,
    '":',
    "}" + parsing.EXEC_END,
    "}}" + parsing.EXEC_END,
    "}" + LINE,
    LINE,
    LIST,
    *(f"e-{power}" for power in range(1, 10)),
    # Every forecast is one token, so that comparing them is comparing embeddings.
    *(f"{number / 5:.1f}%" for number in range(50)),
    *(f"{number}%" for number in range(10, 101)),
    # The words of the tasks, which SentencePiece would cut at the underscore.
    "learning_rate",
    "batch_size",
    "kl_coefficient",
    "group_size",
    "clip_range",
    "mlp_ratio",
    "kv_heads",
    "temperature",
)

TASK_NOTES = {
    "architecture": "one run evaluates an architecture",
    "pretraining": "one run trains a language model once",
    "grpo": "one run tunes a language model by reinforcement learning",
    "data_mixture": "one run trains on a mixture of data sets",
}

EVIDENCE_LINES = 5
LONG_EVIDENCE_LINES = 2  # where configurations are long
PROMPT_TOKENS = 360
LONGEST_MESSAGE = 80
LONGEST_NAME = 24
# Facts about the origin of training experiments: not shown to a player.
HIDDEN_CONTEXT = ("provenance", "augmentation")
LOG_FACTOR = 2  # the step whose cost is shown, on a log scale


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
      role: `environment` or `agent`.
      text: the turn's text; an agent's includes the end-of-turn symbol.
      learned: whether a policy should imitate the turn: an agent's, unless a simulation perturbed
        it on purpose.
    """

    role: str
    text: str
    learned: bool


def environment_turn(text: str) -> Turn:
    return Turn("environment", text, False)


def agent_turn(text: str, learned: bool = True) -> Turn:
    return Turn("agent", text, learned)


def render(turns: Sequence[Turn]) -> str:
    """Join a conversation into one text, to be read and to train the vocabulary on."""
    return "".join(turn.text for turn in turns)


def _forecast_lines(observation: Observation, most: int) -> str:
    listed = candidates.list_candidates(observation, most)
    if not listed:
        return f"every configuration is tried{LINE}"
    target = observation.setting
    lines = "".join(
        f" {c.label} {candidates.percent(c.expected)}{_size(target, c.row)} at {c.text}{LINE}"
        for c in reversed(listed)
    )
    rule = "" if observation.trials else ", lowest last"
    return f"expected regret{rule}{LIST}{lines}"


def _size(setting: Setting, row: int) -> str:
    """Spell a configuration's parameters where they are limited."""
    return "" if setting.limit is None else f" {short(setting.sizes_R[row])}"


def _choices_line(seen: Forecast, dimension: Dimension, shortened: bool) -> str:
    if dimension.kind == "simplex":
        parts = statements.moving_parts(seen, dimension)
        more = len(dimension.choices) - len(parts)
        rest = f" and {more} more" if more else ""
        return f"{dimension.name}: percent of {' '.join(parts)}{rest}{LINE}"
    if dimension.is_continuous:
        return f"{dimension.name}: {bounds_text(dimension)}{LINE}"
    names = list(choice_names(dimension).values())
    if shortened and len(names) > 6:
        return f"{dimension.name}: {names[0]} to {names[-1]} in {len(names)} steps{LINE}"
    return f"{dimension.name}: {' '.join(names)}{LINE}"


def _fidelity(setting: Setting) -> str:
    """Spell parameters and tokens, where they are known (not 0)."""
    numbers = {"parameters": setting.fidelity.parameters, "tokens": setting.fidelity.tokens}
    return "".join(f" {short(number)} {what}" for what, number in numbers.items() if number)


def _context(observation: Observation) -> str:
    """Spell two of the named facts, first those in which the cheap experiments differ.

    Facts that are numbers are left out: the fidelity says them.
    """
    target = observation.setting
    names = [
        (all(e.facts.get(key) == value for e in observation.evidence), f" {key} {_plain(value)}")
        for key, value in target.facts.items()
        if isinstance(value, str)
        and key not in HIDDEN_CONTEXT
        and len(value) <= LONGEST_NAME
        and value not in target.objective.metric
    ]
    names.sort(key=lambda named: named[0])
    limit = "" if target.limit is None else f" limit {short(target.limit['at_most'])}"
    return "".join(text for _, text in names[:2]) + limit


def nearest_text(observation: Observation) -> str:
    """State the best configuration of the most relevant cheap experiment."""
    nearest = candidates.forecast_of(observation).nearest[0]
    return f"best of the nearest cheap experiment: {_evidence(nearest, observation.setting)}"


def _evidence(other: Experiment, target: Setting) -> str:
    objective = "" if other.objective.metric == target.objective.metric else f" {_metric(other)}"
    limit = "" if other.limit is None else f" limit {short(other.limit['at_most'])}"
    where = spell_row(other.cells, other.outcomes.best_row)
    return f"{size(other.fidelity)}{objective}{limit} at {where}"


def _metric(setting: Setting) -> str:
    return _plain(setting.objective.metric)[:LONGEST_NAME]


def _describe(observation: Observation, lines: int, most: int, shortened: bool) -> str:
    target, seen = observation.setting, candidates.forecast_of(observation)
    space = target.space
    goal = "minimize" if target.objective.minimize else "maximize"
    note = TASK_NOTES.get(target.task, "one run tries a configuration")
    note += "" if target.limit is None else " under a parameter limit"
    parts = [
        f"task {target.task}: {note}. {goal} {_metric(target)} "
        f"in {observation.budget_left} trials{LINE}",
        f"target:{_fidelity(target)}{_context(observation)}{LINE}",
        *(_choices_line(seen, dimension, shortened) for dimension in space.dimensions),
        f"default: {spell_row(target.cells, target.match(target.default).row)}{LINE}",
    ]
    if seen.nearest:
        parts.append(f"{nearest_text(observation)}{LINE}")
        others = [f" {_evidence(other, target)}{LINE}" for other in seen.nearest[1:lines]]
        parts += [f"of others{LIST}", *others] if others else []
        sizes = statements.sizes_text(seen)
        parts += [f"{sizes}{LINE}"] * bool(sizes)
    else:
        parts.append(f"no cheap experiments{LINE}")
    if seen.law is not None:
        dimensions = statements.law_dimensions(seen)
        parts += [f"{statements.law_text(seen, d)}{LINE}" for d in dimensions]
        parts.append(f"cost in percent of a factor {LOG_FACTOR} off{LIST}")
        for d in dimensions:
            low, high = statements.step_percent(seen)[d]
            parts.append(f" {space.names[d]} lower {low} higher {high}{LINE}")
    if statements.shown_effects(seen):
        parts.append(f"{statements.effects_text(seen)}{LINE}")
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
      count: counts a text's tokens; an upper estimate by default.
      limit: the most tokens. A longer text loses cheap experiments, the least relevant first; then
        long lists of choices are written as their ends; then fewer candidates are listed.
    """
    text = ""
    count = estimate if count is None else count
    evidence = (
        LONG_EVIDENCE_LINES if candidates.is_long(observation.setting.space) else EVIDENCE_LINES
    )
    most = candidates.offered(observation)
    lengths = [(lines, most, False) for lines in range(evidence, 0, -1)]
    lengths += [(1, most, True), (1, 2, True), (1, 1, True)]
    for lines, most, shortened in lengths:
        text = _describe(observation, lines, most, shortened)
        if count(text) <= limit:
            break
    return text


def estimate(text: str) -> int:
    """Estimate the number of tokens of a text before there is a vocabulary, rather too many.

    A symbol counts one, a number one for every two digits, a word one for every four letters.
    """
    return len(_TOKENS.findall(text))


_TOKENS = re.compile(
    "|".join(map(re.escape, sorted(SYMBOLS, key=len, reverse=True)))
    + r"|[0-9]{1,2}|[A-Za-z]{1,4}|[^\sA-Za-z0-9]"
)


def _decimals(seen: Forecast) -> int:
    """Choose the decimals of outcomes: about a hundredth of a unit of regret."""
    unit = seen.unit if seen.nearest else 0.01
    return min(max(math.ceil(-math.log10(max(unit, 1e-9) / 100)), 0), 8)


def _plain(text: str) -> str:
    """Make a message fit for a turn: one short line without control symbols."""
    text = " ".join(text.split())
    for symbol in CONTROL_SYMBOLS:
        text = text.replace(symbol, " ")
    return " ".join(text.split())[:LONGEST_MESSAGE].encode("utf-8", "replace").decode()


def best_trial(setting: Setting, trials: Sequence[Trial]) -> Trial | None:
    """Return the best ok trial, the earliest of equals; None if there is none."""
    good = [trial for trial in trials if trial.ok]
    return min(good, key=lambda trial: (trial.loss(setting), trial.number), default=None)


def best_text(observation: Observation) -> str:
    """Name the best trial so far by its number; or none."""
    best = best_trial(observation.setting, observation.trials)
    return "none" if best is None else f"trial {best.number}"


def verdict(trial: Trial, observation: Observation) -> str:
    """Return one word for how a trial compares with the earlier ones."""
    if not trial.valid:
        return "invalid"
    if not trial.ok:
        return trial.status
    setting = observation.setting
    before = best_trial(setting, observation.trials[: trial.number - 1])
    if before is None:
        return "first"
    return "better" if trial.loss(setting) < before.loss(setting) else "worse"


def standing(observation: Observation) -> str:
    """State the standing of the trials: latest is better and best is trial 2."""
    latest = verdict(observation.trials[-1], observation)
    return f"latest is {latest} and best is {best_text(observation)}"


def feedback(trial: Trial, observation: Observation) -> str:
    """Write a later environment turn: outcome, budget left, candidates, standing of the trials.

    Args:
      trial: the latest trial.
      observation: the state after it.
    """
    target, seen = observation.setting, candidates.forecast_of(observation)
    decimals, metric = _decimals(seen), _plain(target.objective.metric.partition(".")[0])
    said = verdict(trial, observation)
    before = best_trial(target, observation.trials[: trial.number - 1])
    long = candidates.is_long(target.space)
    if not trial.valid:
        outcome = f"invalid. {_plain(trial.message)}"
    else:
        # A long configuration is not repeated right after the agent's own turn.
        where = "" if long and not trial.matched else f"{spell_row(target.cells, trial.row)} "
        if trial.matched:
            where = f"not measured, nearest is {where}"
        if trial.ok:
            outcome = f"{where}gives {metric} {trial.outcome:.{decimals}f} {said}"
            if before is not None:
                outcome += f" by {abs(trial.outcome - before.outcome):.{decimals}f}"
        else:
            outcome = f"{where}gives no {metric} {said}"
    parts = [f"trial {trial.number} {outcome}{LINE}"]
    parts.append(f"{observation.budget_left} left{LINE}")
    if observation.budget_left:
        parts.append(_forecast_lines(observation, candidates.offered(observation)))
    return "".join([*parts, f"{standing(observation)}{LINE}"])
