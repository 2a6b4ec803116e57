"""Decoding constrained to the offered candidates: no turn is invalid, none is matched.

A turn thinks in free text and then names the letter of one candidate. Free text has no `<`, so that
it cannot spell a symbol letter by letter.
"""

import functools
from collections.abc import Sequence

import numpy as np

from autollm_jax.rl import grammar
from autollm_jax.rl.grammar import Automaton, Grammar
from autollm_jax.text.symbols import END_OF_TURN, EXEC, EXEC_END, LETTERS, THINK, THINK_END

SYMBOL_START = "<"

# The rules of one turn: an automaton, and whether each of its endings is allowed.
Rules = tuple[Automaton, np.ndarray]


def next_turn(tokenizer, candidates: int) -> Rules:
    """Return the rules of a turn between so many candidates."""
    return letters(tokenizer), np.arange(len(LETTERS)) < candidates


def join(tokenizer, rules: Sequence[Rules | None]) -> Grammar:
    """Lay the rules of a batch's rows side by side; None allows any turn."""
    return grammar.join(rules, free_tokens(tokenizer))


@functools.lru_cache(maxsize=16)
def letters(tokenizer) -> Automaton:
    """Make the automaton of turns that end with one of LETTERS."""
    endings = [f"{EXEC}{letter}{EXEC_END}{END_OF_TURN}" for letter in LETTERS]
    symbols = map(tokenizer.encode, (THINK, THINK_END))
    return grammar.build([tokenizer.encode_agent(ending) for ending in endings], *symbols)


@functools.lru_cache(maxsize=16)
def free_tokens(tokenizer) -> np.ndarray:
    """Tell whether each token may stand in free text [V]."""
    texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    free_V = np.array([text != "" and SYMBOL_START not in text for text in texts])
    free_V.setflags(write=False)
    return free_V
