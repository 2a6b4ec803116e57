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
STOP_ID = CHARACTERS.index(STOP)
_ID_OF = {character: number for number, character in enumerate(CHARACTERS)}
_SYMBOLS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_OPERATORS = dict(zip((ast.Add, ast.Sub, ast.Mult), _SYMBOLS.values(), strict=True))
# Which problems are held out: a shuffle with a seed of its own, the same for every run.
_SPLIT_SEED = 2402_03300
HELD_OUT, MOST_TRAINING = 4096, 16_384  # problems of a set


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
      temperature: of the answers to held-out problems; 0 is greedy decoding. Success at
        temperature 1 rises further, since GRPO first makes a policy surer of its best answers.
      wrong_share: share of the examples for pre-training that have another problem's answer.
    """

    name: str
    training: tuple[Problem, ...]
    held_out: tuple[Problem, ...]
    is_right: Callable[[str, str], bool]
    temperature: float = 1.0
    wrong_share: float = 0.25

    def examples(self) -> list[Problem]:
        """Return the training problems with the answers for pre-training, some of them wrong.

        A backbone that has learnt from wrong answers gives wrong ones, too. GRPO unlearns them
        soon, so that few rollouts show which hyperparameters are good.
        """
        wrong = round(self.wrong_share * len(self.training))
        swapped = [
            Problem(mine.prompt, other.answer)
            for mine, other in zip(self.training[:wrong], self.training[1 : wrong + 1], strict=True)
        ]
        return [*swapped, *self.training[wrong:]]

    @functools.cached_property
    def longest_prompt(self) -> int:
        return max(len(problem.prompt) for problem in self.training + self.held_out)

    @functools.cached_property
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
      name: `addition`: sums of two three-digit numbers with at least one carry; `numbers`: three
        numbers and a target, to be reached with +, - and * and each number once; `sorting`: four
        numbers, to be put in ascending order.

    Raises:
      ValueError: there is no such set.
    """
    if name not in _MAKERS:
        raise ValueError(f"problems {name!r}: accepted are {', '.join(_MAKERS)}")
    make, is_right = _MAKERS[name]
    problems = make()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(problems))
    shuffled = [problems[number] for number in order[: HELD_OUT + MOST_TRAINING]]
    return ProblemSet(name, tuple(shuffled[HELD_OUT:]), tuple(shuffled[:HELD_OUT]), is_right)


def _addition() -> list[Problem]:
    chosen = np.random.default_rng(_SPLIT_SEED).choice(900 * 900, 40_000, replace=False)
    pairs = [(100 + number // 900, 100 + number % 900) for number in map(int, chosen)]
    return [Problem(f"{a}+{b}=", str(a + b)) for a, b in pairs if _carries(a, b)]


def _carries(a: int, b: int) -> bool:
    """Tell whether a digit's sum is over 9."""
    return any(a // place % 10 + b // place % 10 > 9 for place in (1, 10, 100))


def _sums_up(prompt: str, answer: str) -> bool:
    a, b = prompt.rstrip("=").split("+")
    return answer == str(int(a) + int(b))


def _numbers() -> list[Problem]:
    """Three different numbers from 2 to 25, and each target from 1 to 99 that they reach."""
    problems = []
    for numbers in itertools.combinations(range(2, 26), 3):
        answers: dict[int, str] = {}
        for a, b, c in itertools.permutations(numbers):
            for first, second in itertools.product(_SYMBOLS, repeat=2):
                value = _reached(a, first, b, second, c)
                if 1 <= value <= 99:
                    answers.setdefault(value, f"{a}{first}{b}{second}{c}")
        problems += [
            Problem(f"{','.join(map(str, numbers))}:{target}=", text)
            for target, text in sorted(answers.items())
        ]
    return problems


def _reached(a: int, first: str, b: int, second: str, c: int) -> int:
    """Evaluate a formula of three numbers, a product before a sum; there are 109,296 of them."""
    if second == "*" and first != "*":
        return _SYMBOLS[first](a, b * c)
    return _SYMBOLS[second](_SYMBOLS[first](a, b), c)


def _sorting() -> list[Problem]:
    """Four different numbers from 1 to 99, in an order of chance."""
    random = np.random.default_rng(_SPLIT_SEED)
    chosen = {tuple(random.choice(np.arange(1, 100), 4, replace=False)) for _ in range(24_000)}
    texts = [
        (",".join(map(str, four)), ",".join(map(str, sorted(four)))) for four in sorted(chosen)
    ]
    return [Problem(f"{given}=", answer) for given, answer in texts]


def _is_sorted(prompt: str, answer: str) -> bool:
    return answer == ",".join(sorted(prompt.rstrip("=").split(","), key=int))


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


# By name: all problems, and the check of an answer.
_MAKERS = {
    "addition": (_addition, _sums_up),
    "numbers": (_numbers, _reaches_target),
    "sorting": (_sorting, _is_sorted),
}
NAMES = tuple(_MAKERS)
