"""Verifiable problems for small language models: characters in, a checked answer out.

A problem is a prompt that ends with "=", and whether an answer is right is computed, not judged.
One character is one token, so that these models need no vocabulary of their own.
"""

import ast
import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Sequence

import numpy as np

PAD, STOP = " ", "$"
CHARACTERS = PAD + STOP + "0123456789+-*,:="
VOCAB_SIZE = len(CHARACTERS)
HELD_OUT = 256  # problems of each set that are kept for evaluation
STOP_ID = CHARACTERS.index(STOP)
_ID_OF = {character: number for number, character in enumerate(CHARACTERS)}
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
# Which problems are held out: a shuffle with a seed of its own, the same for every run.
_SPLIT_SEED = 2402_03300


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem: the prompt, and an answer that is right (others may be, too)."""

    prompt: str
    answer: str


@dataclasses.dataclass(frozen=True)
class ProblemSet:
    """All problems of a kind, in a fixed order, the held-out ones apart.

    Attributes:
      is_right: (prompt, answer) -> whether the answer, without its stop token, solves the prompt.
    """

    name: str
    training: tuple[Problem, ...]
    held_out: tuple[Problem, ...]
    is_right: Callable[[str, str], bool]

    @property
    def longest_prompt(self) -> int:
        return max(len(problem.prompt) for problem in self.training + self.held_out)

    @property
    def longest_answer(self) -> int:
        """Characters of the longest answer, its stop token among them."""
        return 1 + max(len(problem.answer) for problem in self.training + self.held_out)


def encode(text: str) -> list[int]:
    """Turn characters into token ids."""
    return [_ID_OF[character] for character in text]


def decode(ids: Sequence[int]) -> str:
    """Turn token ids into characters."""
    return "".join(CHARACTERS[number] for number in ids)


@functools.cache
def problem_set(name: str) -> ProblemSet:
    """Make a set of problems by name; always the same one.

    Args:
      name: `arithmetic`: sums of two two-digit numbers with at least one carry; `countdown`: three
        numbers and a target, to be reached with +, - and * and each number once.

    Raises:
      ValueError: there is no such set.
    """
    if name not in _MAKERS:
        raise ValueError(f"problems {name!r}: accepted are {', '.join(_MAKERS)}")
    make, is_right = _MAKERS[name]
    problems = make()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(problems))
    shuffled = [problems[number] for number in order]
    return ProblemSet(name, tuple(shuffled[HELD_OUT:]), tuple(shuffled[:HELD_OUT]), is_right)


def _arithmetic() -> list[Problem]:
    return [
        Problem(f"{a}+{b}=", str(a + b))
        for a, b in itertools.product(range(10, 100), repeat=2)
        if a % 10 + b % 10 > 9 or a // 10 + b // 10 > 9
    ]


def _sums_up(prompt: str, answer: str) -> bool:
    a, b = prompt.rstrip("=").split("+")
    return answer == str(int(a) + int(b))


def _countdown() -> list[Problem]:
    """Three different numbers from 2 to 15, and each target from 1 to 60 that they reach."""
    problems = []
    for numbers in itertools.combinations(range(2, 16), 3):
        answers: dict[int, str] = {}
        for a, b, c in itertools.permutations(numbers):
            for first, second in itertools.product("+-*", repeat=2):
                text = f"{a}{first}{b}{second}{c}"
                value = _value(text, numbers)
                if value is not None and 1 <= value <= 60:
                    answers.setdefault(value, text)
        problems += [
            Problem(f"{','.join(map(str, numbers))}:{target}=", text)
            for target, text in sorted(answers.items())
        ]
    return problems


def _reaches_target(prompt: str, answer: str) -> bool:
    numbers, target = prompt.rstrip("=").split(":")
    value = _value(answer, [int(number) for number in numbers.split(",")])
    return value == int(target)


def _value(text: str, numbers: Sequence[int]) -> int | None:
    """Evaluate a formula that uses each of the numbers once; None for any other text."""
    if not set(text) <= set("0123456789+-*"):
        return None
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        return None
    used: list[int] = []

    def walk(node) -> int:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            used.append(node.value)
            return node.value
        raise ValueError("no formula of +, - and *")

    try:
        value = walk(tree)
    except ValueError:
        return None
    return value if sorted(used) == sorted(numbers) else None


_MAKERS = {
    "arithmetic": (_arithmetic, _sums_up),
    "countdown": (_countdown, _reaches_target),
}
NAMES = tuple(_MAKERS)
