"""Decoding constrained to an experiment's own space: no turn is invalid, none is matched.

A turn thinks in free text and then runs one configuration of the target: a measured one, within the
limit and, while there are such, untried. It ends in the same tokens that training spells
(`spelling.exec_part`, `agent.dialogue`). An ending is in the automaton only if its text is read
back as its own row.

Free text has no `<`, so that it cannot spell a symbol letter by letter.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from autollm_jax.gym.cells import Cells, Match
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.spaces import InvalidConfiguration
from autollm_jax.rl import grammar
from autollm_jax.rl.grammar import Automaton, Grammar
from autollm_jax.text import parsing, spelling

SYMBOL_START = "<"


@dataclasses.dataclass(frozen=True, eq=False)
class Endings:
    """The possible endings of turns on some cells.

    rows_R: the row of the cells that each ending names.
    automaton: of turns that end so.
    """

    rows_R: np.ndarray
    automaton: Automaton


# The rules of one turn: an automaton, and whether each of its endings is allowed.
Rules = tuple[Automaton, np.ndarray]


def next_turn(tokenizer, episode: Episode) -> Rules | None:
    """Return the rules of an episode's next turn.

    None allows any turn: no configuration of the experiment has a spelling that is read as itself.
    """
    endings = endings_of(tokenizer, episode.setting.cells)
    return endings and (endings.automaton, allowed_endings(episode, endings.rows_R))


def join(tokenizer, rules: Sequence[Rules | None]) -> Grammar:
    """Lay the rules of a batch's rows side by side."""
    return grammar.join(rules, free_tokens(tokenizer))


def allowed_endings(episode: Episode, rows_R: np.ndarray) -> np.ndarray:
    """Tell whether each of these rows of the target may be tried next [R].

    They are those within the limit that are untried; with none of them left, all within the limit;
    with none such, all.
    """
    tried = [trial.row for trial in episode.trials if trial.valid]
    feasible_R = episode.setting.feasible_R[rows_R]
    untried_R = feasible_R & ~np.isin(rows_R, tried)
    for may_R in (untried_R, feasible_R):
        if may_R.any():
            return may_R
    return np.ones(len(rows_R), bool)


@functools.lru_cache(maxsize=256)
def endings_of(tokenizer, cells: Cells) -> Endings | None:
    """Make the endings of turns on these cells; None if there are none."""
    rows, tokens = [], []
    for row in range(len(cells)):
        text = spelling.exec_part(cells, row) + parsing.END_OF_TURN
        if _read(cells, text) == Match(row, matched=False):
            rows.append(row)
            tokens.append(tokenizer.encode_agent(text))
    if not rows:
        return None
    symbols = map(tokenizer.encode, (parsing.THINK, parsing.THINK_END))
    return Endings(np.array(rows), grammar.build(tokens, *symbols))


def _read(cells: Cells, text: str) -> Match | None:
    """Read an ending as `playing.act` would; None if it is invalid."""
    try:
        return cells.match(spelling.read_config(cells, parsing.parse_action(text).config))
    except InvalidConfiguration:
        return None


@functools.lru_cache(maxsize=16)
def free_tokens(tokenizer) -> np.ndarray:
    """Tell whether each token may stand in free text [V]."""
    texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    free_V = np.array([text != "" and SYMBOL_START not in text for text in texts])
    free_V.setflags(write=False)
    return free_V
