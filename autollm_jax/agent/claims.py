"""Checking reasoning: which statements a think part makes, and whether the tables bear them out.

Statements are read back from the text by patterns, and each is checked against the evidence's
tables, the law, the trials and the forecast: not against the prompt's text, so that a wrong prompt
is caught too.
"""

import dataclasses
import re

import numpy as np

from autollm_jax.agent import prompts, spelling
from autollm_jax.gym.environment import Observation

_NAME = r"([A-Za-z_][\w.-]*)"
_DIRECTIONS = {"rises with": 1, "falls with": -1, "flat in": 0}


@dataclasses.dataclass(frozen=True)
class Claim:
    """One statement of a think part, and whether it is true."""

    text: str
    true: bool


def check_claims(think: str, observation: Observation) -> list[Claim]:
    """Read the numeric and directional statements of a think part and check each.

    Args:
      think: what stands between the think symbols.
      observation: the state in which it was said.
    """
    claims = []
    for pattern, check in _PATTERNS:
        for found in re.finditer(pattern, think):
            claims.append(Claim(found.group(0), bool(check(observation, *found.groups()))))
    return claims


def _nearest(observation, values):
    """The values are the best cell of the usable table nearest in fidelity."""
    seen = prompts.view(observation)
    if not seen.nearest:
        return False
    other = seen.nearest[0]
    sign = 1.0 if other.minimize else -1.0
    loss_R = np.where(other.status_R == "ok", sign * other.outcomes_R, np.inf)
    best = other.configurations[int(np.nanargmin(loss_R))]
    return values.strip() == spelling.spell_config(other.space, best)


def _compare(observation, word, what):
    """The target has more, fewer or as many parameters or tokens as the nearest table."""
    seen = prompts.view(observation)
    if not seen.nearest:
        return False
    return word == comparison(
        getattr(observation.experiment.fidelity, what), getattr(seen.nearest[0].fidelity, what)
    )


def comparison(number: float, other: float) -> str:
    """Compare two sizes as they are spelled."""
    if spelling.short(number) == spelling.short(other):
        return "as many"
    return "more" if number > other else "fewer"


def _law(observation, name, by_parameters, by_tokens, value, side):
    """The law's exponents have these signs, it predicts this value, and this side costs less."""
    seen = prompts.view(observation)
    names = observation.experiment.space.names
    if seen.law is None or name not in names:
        return False
    d = names.index(name)
    low, high = prompts.step_percent(seen)[d]
    signs = [np.sign(float(prompts.slope_text(slope))) for slope in seen.law.slopes_D2[d]]
    return (
        signs == [_DIRECTIONS[by_parameters], _DIRECTIONS[by_tokens]]
        and prompts.law_values(seen)[d] == value
        and {"lower": low < high, "higher": high < low, "either": low == high}[side]
    )


def _lowest(observation, label, share, values):
    """The cell with this label has this forecast, and no untried cell has a lower one."""
    target = observation.experiment
    expected_R = prompts.view(observation).expected_regrets(observation.trials)
    listed = {c.label: c.row for c in prompts.candidates(observation)}
    rows = [
        row
        for row, config in enumerate(target.configurations)
        if spelling.spell_config(target.space, config) == values.strip()
    ]
    lowest = prompts.rounded(float(expected_R.min()))
    return (
        len(rows) == 1
        and listed.get(label) == rows[0]
        and prompts.rounded(float(expected_R[rows[0]])) == lowest
        and prompts.percent(lowest) == share
    )


def _verdict(observation, words):
    """The latest trial compares so with the earlier ones."""
    if not observation.trials:
        return False
    return prompts.verdict(observation.trials[-1], observation) == words


def _beside_best(observation, values, moves):
    """The cell named lies so beside the best one so far."""
    best = prompts.best_trial(observation.experiment, observation.trials)
    if best is None:
        return False
    space = observation.experiment.space
    for config in observation.experiment.configurations:
        if spelling.spell_config(space, config) == values.strip():
            return directions(space, best.config, config) == moves.strip()
    return False


def directions(space, start, end) -> str:
    """Say how a configuration lies beside another: lower learning_rate, higher batch_size."""
    words = []
    for d in space.dimensions:
        a, b = start[d.name], end[d.name]
        if a == b:
            continue
        word = ("higher" if b > a else "lower") if d.is_numeric else "other"
        words.append(f"{word} {d.name}")
    return " and ".join(words)


_TREND = "(rises with|falls with|flat in)"
_CELL = r"([^;<]+?)"
_PATTERNS = (
    (rf"nearest best at {_CELL} (?=and target|\. |$)", _nearest),
    (r"(more|fewer|as many) (parameters|tokens)", _compare),
    (
        rf"{_NAME} {_TREND} parameters, {_TREND} tokens, law (\S+) and safer (lower|higher|either)",
        _law,
    ),
    (rf"lowest ([A-Z]) (\S+%) at {_CELL}(?= with |$)", _lowest),
    (r"^(first|better|worse|diverged|infeasible|invalid)\b", _verdict),
    (rf"lowest [A-Z] \S+% at {_CELL} with ((?:lower|higher|other) .*)$", _beside_best),
)
