"""Symbols: what is one token of an own policy's vocabulary, wherever it stands.

They are the marks of a turn, the letters of candidates, the panels that may be trusted, and the
expected regrets. Comparing two regrets is then comparing two embeddings, and a decision is one
token.
"""

import bisect

from autollm_jax.forecasts.advice import MOST, trusts_of
from autollm_jax.forecasts.advisers import COUNSEL

THINK, THINK_END = "<think>", "</think>"
EXEC, EXEC_END = "<exec>", "</exec>"
END_OF_TURN = "<end>"
# A message of the environment must not hold one of them.
CONTROL = (THINK, THINK_END, EXEC, EXEC_END, END_OF_TURN)
LINE, LIST = ";\n", ":\n"

LETTERS = tuple(f"#{letter}" for letter in "ABCDEFGHIJKLMNOP"[:MOST])

# Expected regrets are rounded to one of these percents: finer where they are small.
PERCENTS = (0, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100)
_BETWEEN = [(low + high) / 200 for low, high in zip(PERCENTS, PERCENTS[1:], strict=False)]


def percent(share: float) -> str:
    """Spell a share as the nearest of PERCENTS: 0.034 is 3%, anything above 0.9 is 100%."""
    return f"{PERCENTS[bisect.bisect(_BETWEEN, share)]:g}%"


def panel_name(group: tuple[int, ...]) -> str:
    """Name some of the advisers in COUNSEL: (drift), (all-but-drift), (all)."""
    if len(group) == 1:
        return f"({tuple(COUNSEL)[group[0]]})"
    left_out = [name for place, name in enumerate(COUNSEL) if place not in group]
    return f"(all-but-{'-'.join(left_out)})" if left_out else "(all)"


PANELS = tuple(panel_name(group) for group in trusts_of(len(COUNSEL)))

SYMBOLS = (
    *CONTROL,
    LINE,
    LIST,
    *LETTERS,
    *PANELS,
    *(f"{number:g}%" for number in PERCENTS),
)
