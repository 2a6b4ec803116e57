"""What devices say to each other, in the text of a compiled program."""

import re

COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|(ragged-)?all-to-all|collective-(broadcast|permute)|reduce-scatter)"
    r"(-start)?\("
)
