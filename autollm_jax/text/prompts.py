"""Prompts: the environment's turns, as texts.

A conversation is a list of `Turn`s, environment and agent alternating, and its text is their texts
joined (`render`). Tokens are made in one place (`agent.dialogue`), from one turn at a time, so that
a turn's tokens never depend on its neighbours.

Each turn of the environment ends with the candidates and with the first pick of each panel that
may be trusted. A candidate's line has a letter and the regret that each adviser expects of it above
that of its own first pick. A `full` text, for people and for published policies, also has
deviations, configurations and outcomes; a small policy reads the brief one, a third as long.

Every number shown derives from the evidence, the space and the trials so far.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from autollm_jax.forecasts.advice import Decision
from autollm_jax.forecasts.advisers import COUNSEL
from autollm_jax.gym.environment import Trial
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting
from autollm_jax.gym.spaces import Dimension
from autollm_jax.text.spelling import (
    bounds_text,
    choice_names,
    short,
    short_names,
    significant,
    size,
    spell_row,
)
from autollm_jax.text.symbols import CONTROL, LETTERS, LINE, LIST, PANELS, percent

TASK_NOTES = {
    "architecture": "one run evaluates an architecture",
    "pretraining": "one run trains a language model once",
    "grpo": "one run tunes a language model by reinforcement learning",
    "data_mixture": "one run trains on a mixture of data sets",
}
EVIDENCE_LINES = 4
LONGEST_MESSAGE = 80
LONGEST_NAME = 24
MOST_CHOICES, MOST_PARTS, MOST_NAMES = 8, 8, 6
# Facts about the origin of training experiments: not shown to a player.
HIDDEN_CONTEXT = ("provenance", "augmentation")


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
      role: `environment` or `agent`.
      text: the turn's text; an agent's includes the end-of-turn symbol.
      chances: of an agent's turn, how likely each panel was to be trusted; empty where unknown.
    """

    role: str
    text: str
    chances: tuple[float, ...] = ()

    @property
    def learned(self) -> bool:
        """Whether a policy imitates the turn."""
        return self.role == "agent"


def environment_turn(text: str) -> Turn:
    return Turn("environment", text)


def agent_turn(text: str, chances: Sequence[float] = ()) -> Turn:
    return Turn("agent", text, tuple(chances))


def render(turns: Sequence[Turn]) -> str:
    """Join a conversation into one text, to be read and to train the vocabulary on."""
    return "".join(turn.text for turn in turns)


def describe(decision: Decision, full: bool) -> str:
    """Write the environment's first turn: the question, the evidence, the candidates."""
    seen = decision.observation
    target, nearest = seen.setting, decision.panel.nearest
    names = " ".join(target.space.names[:MOST_NAMES])
    parts = [f"task {target.task}{LIST}{names}{LINE}"] if full else []
    parts.append(f"{seen.budget_left} trials{LINE}")
    ratio = _ratio(target, nearest[0]) if nearest else "no cheap experiments"
    if full:
        goal = "minimize" if target.objective.minimize else "maximize"
        note = TASK_NOTES.get(target.task, "one run tries a configuration")
        note += "" if target.limit is None else " under a parameter limit"
        parts += [f"{note}. {goal} {_metric(target)}{LINE}"]
        parts += [f"target:{_sizes(target)}{_context(decision)}{LINE}"]
        parts += [_choices(dimension) for dimension in target.space.dimensions]
        parts.append(f"default: {spell_row(target.cells, target.match(target.default).row)}{LINE}")
        best = [f" {_evidence(other, target)}{LINE}" for other in nearest[:EVIDENCE_LINES]]
        parts += [f"best of cheap experiments, nearest first{LIST}", *best] if best else []
    parts += [f"{ratio}{LINE}"] if ratio else []
    parts += [f"{len(target.cells)} configurations{LINE}", *_candidates(decision, full)]
    return "".join(parts)


def feedback(trial: Trial, decision: Decision | None, seen, full: bool) -> str:
    """Write a later environment turn: the latest trial, the standing, the candidates.

    Args:
      trial: the latest trial.
      decision: what is decided next; None where nothing is.
      seen: the observation after the trial.
      full: whether the outcome and the configuration are written.
    """
    target, said = seen.setting, verdict(trial, seen)
    parts = [f"trial {trial.number} is {said}{_gain(trial, seen, decision)}"]
    if full and trial.valid:
        where = "not measured, nearest " if trial.matched else ""
        outcome = f"{_metric(target)} {trial.outcome:.4g}" if trial.ok else f"no {_metric(target)}"
        parts.append(f"; {where}{spell_row(target.cells, trial.row)} gives {outcome}")
    elif not trial.valid:
        parts.append(f". {plain(trial.message)}")
    parts.append(f", {seen.budget_left} left{LINE}")
    if decision is not None:
        parts += _candidates(decision, full)
    return "".join(parts)


def _candidates(decision: Decision, full: bool) -> list[str]:
    """Write how sure and how right the advisers are, the candidates, the panels' first picks."""
    advice, offer, setting = decision.advice, decision.offer, decision.observation.setting
    gap = " " if full else ""  # a space is a token of its own
    unsure = gap.join(map(percent, np.median(advice.deviation_AR[:, advice.open_R], axis=1)))
    lines = [f"advisers {' '.join(COUNSEL)}{LINE}"] if full else []
    lines.append(f"unsure {unsure}{LINE}")
    if len(decision.observation.trials) > 1:
        off = gap.join(map(percent, advice.surprise_A))
        said = f"closest {closest(decision)}, farthest {farthest(decision)}"
        lines.append(f"off by {off}, {said}{LINE}")
    remaining_AR = advice.remaining_AR - advice.remaining_AR.min(1, keepdims=True)
    for letter, row in zip(LETTERS, offer.rows, strict=False):
        expected = list(map(percent, remaining_AR[:, row]))
        if full:
            deviations = map(percent, advice.deviation_AR[:, row])
            expected = [f"{e} +- {d}" for e, d in zip(expected, deviations, strict=True)]
        where = f"{_size(setting, row)} at {spell_row(setting.cells, row)}" if full else ""
        lines.append(f"{gap.join([letter, *expected])}{where}{LINE}")
    firsts = [PANELS[p] + gap + LETTERS[c] for p, c in enumerate(offer.picks)]
    return [*lines, f"first{LIST}", gap.join(firsts), LINE]


def closest(decision: Decision) -> str:
    """Name the adviser whose expectations were least off at the trials."""
    return PANELS[int(decision.advice.surprise_A.argmin())]


def farthest(decision: Decision) -> str:
    """Name the adviser whose expectations were most off at the trials."""
    return PANELS[int(decision.advice.surprise_A.argmax())]


def _size(setting: Setting, row: int) -> str:
    """Spell a configuration's parameters where they are limited."""
    return "" if setting.limit is None else f" {short(setting.sizes_R[row])} parameters"


def _choices(dimension: Dimension) -> str:
    if dimension.kind == "simplex":
        parts = list(short_names(dimension).values())
        more = f" and {len(parts) - MOST_PARTS} more" if len(parts) > MOST_PARTS else ""
        return f"{dimension.name}: percent of {' '.join(parts[:MOST_PARTS])}{more}{LINE}"
    if dimension.is_continuous:
        return f"{dimension.name}: {bounds_text(dimension)}{LINE}"
    names = list(choice_names(dimension).values())
    if len(names) > MOST_CHOICES:
        return f"{dimension.name}: {names[0]} to {names[-1]} in {len(names)} steps{LINE}"
    return f"{dimension.name}: {' '.join(names)}{LINE}"


def _sizes(setting: Setting) -> str:
    """Spell parameters and tokens, where they are known (not 0)."""
    numbers = {"parameters": setting.fidelity.parameters, "tokens": setting.fidelity.tokens}
    return "".join(f" {short(number)} {what}" for what, number in numbers.items() if number)


def _context(decision: Decision) -> str:
    """Spell two of the named facts, first those in which the cheap experiments differ.

    Facts that are numbers are left out: the fidelity says them.
    """
    target = decision.observation.setting
    names = [
        (
            all(e.facts.get(key) == value for e in decision.observation.evidence),
            f" {key} {plain(value)}",
        )
        for key, value in target.facts.items()
        if isinstance(value, str)
        and key not in HIDDEN_CONTEXT
        and len(value) <= LONGEST_NAME
        and value not in target.objective.metric
    ]
    names.sort(key=lambda named: named[0])
    limit = "" if target.limit is None else f" limit {short(target.limit['at_most'])}"
    return "".join(text for _, text in names[:2]) + limit


def _evidence(other: Experiment, target: Setting) -> str:
    objective = "" if other.objective.metric == target.objective.metric else f" {_metric(other)}"
    limit = "" if other.limit is None else f" limit {short(other.limit['at_most'])}"
    where = spell_row(other.cells, other.outcomes.best_row)
    return f"{size(other.fidelity)}{objective}{limit} at {where}"


def _ratio(target: Setting, nearest: Experiment) -> str:
    """State the ratio of the target's size to the most relevant cheap experiment's.

    target has 2.4 x parameters 1.0 x tokens of the nearest; empty where neither number is known.
    """
    here, there = target.fidelity, nearest.fidelity
    pairs = {
        "parameters": (here.parameters, there.parameters),
        "tokens": (here.tokens, there.tokens),
    }
    ratios = " ".join(
        f"{significant(ours / theirs, 2)} x {what}"
        for what, (ours, theirs) in pairs.items()
        if ours > 0 and theirs > 0
    )
    return f"target has {ratios} of the nearest" if ratios else ""


def _metric(setting: Setting) -> str:
    return plain(setting.objective.metric)[:LONGEST_NAME]


def plain(text: str) -> str:
    """Make a message fit for a turn: one short line without control symbols."""
    text = " ".join(text.split())
    for symbol in CONTROL:
        text = text.replace(symbol, " ")
    return " ".join(text.split())[:LONGEST_MESSAGE].encode("utf-8", "replace").decode()


def best_trial(setting: Setting, trials: Sequence[Trial]) -> Trial | None:
    """Return the best ok trial, the earliest of equals; None if there is none."""
    good = [trial for trial in trials if trial.ok]
    return min(good, key=lambda trial: (trial.loss(setting), trial.number), default=None)


def best_text(seen) -> str:
    """Name the best trial so far by its number; or none."""
    best = best_trial(seen.setting, seen.trials)
    return "none" if best is None else f"trial {best.number}"


def verdict(trial: Trial, seen) -> str:
    """Return one word for how a trial compares with the earlier ones."""
    if not trial.valid:
        return "invalid"
    if not trial.ok:
        return trial.status
    before = best_trial(seen.setting, seen.trials[: trial.number - 1])
    if before is None:
        return "first"
    return "better" if trial.loss(seen.setting) < before.loss(seen.setting) else "worse"


def _gain(trial: Trial, seen, decision: Decision | None) -> str:
    """State by how many units of regret a trial differs from the best before: by 12%."""
    before = best_trial(seen.setting, seen.trials[: trial.number - 1])
    if before is None or not trial.ok or decision is None:
        return ""
    gap = abs(trial.outcome - before.outcome) / decision.panel.unit
    return f" by {percent(gap)}" if math.isfinite(gap) else ""
