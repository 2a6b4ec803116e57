"""Parsing: reads an agent's turn, any text or bytes, as an `Action`.

An action is a candidate's letter, `<think>...</think><exec>#C</exec>`, or a configuration,
`<exec>{"learning_rate": 1.4e-3, "batch_size": 128}</exec>`, or `<exec>{"done": true}</exec>` to end
the episode early. The think part may be missing; there is exactly one exec part.
"""

import dataclasses
import json
import math
import re

from autollm_jax.text.symbols import END_OF_TURN, EXEC, EXEC_END, THINK, THINK_END

DONE_KEY = "done"

LONGEST_JSON = 8192
DEEPEST_JSON = 2
_LETTER = re.compile(r"\s*#?([A-P])\s*")


@dataclasses.dataclass(frozen=True)
class Action:
    """One agent's turn, read.

    Attributes:
      think: the reasoning, stripped; empty if missing.
      letter: the position of the named candidate; None if there is none.
      config: the proposed configuration, not yet checked against any space; None if missing.
      finished: whether the agent ends the episode.
      error: the reason for none of these three, in one line; None if there is one.
    """

    think: str
    config: dict | None
    finished: bool
    error: str | None
    letter: int | None = None


class _Malformed(ValueError):
    """The JSON is not a configuration; the message says why, in one line."""


def parse_action(text: str | bytes) -> Action:
    """Read an agent's turn; never raises on any text or bytes.

    Args:
      text: the turn, with or without its end-of-turn symbol; bytes are read as UTF-8.
    """
    if isinstance(text, bytes | bytearray | memoryview):
        text = bytes(text).decode("utf-8", "replace")
    text = text.split(END_OF_TURN, 1)[0]
    # Reasoning may mention <exec>; only the text after the reasoning counts.
    before, closed, after = text.partition(THINK_END)
    if not closed:
        cut = text.find(EXEC)
        before, after = (text, "") if cut < 0 else (text[:cut], text[cut:])
    think = before.partition(THINK)[2] if THINK in before else before
    think = think.strip()
    opened = after.split(EXEC)
    if len(opened) != 2:
        reason = f"no {EXEC} part" if len(opened) < 2 else f"more than one {EXEC} part"
        return Action(think, None, False, reason)
    inside, closed, _ = opened[1].partition(EXEC_END)
    if not closed:
        return Action(think, None, False, f"{EXEC} is not closed by {EXEC_END}")
    if letter := _LETTER.fullmatch(inside):
        return Action(think, None, False, None, ord(letter[1]) - ord("A"))
    try:
        value = _read_json(inside)
    except _Malformed as error:
        return Action(think, None, False, str(error))
    if value == {DONE_KEY: True} and value[DONE_KEY] is True:
        return Action(think, None, True, None)
    return Action(think, value, False, None)


def _read_json(text: str) -> dict:
    """Read one JSON object of numbers, strings, booleans and mappings to numbers."""
    if len(text) > LONGEST_JSON:
        raise _Malformed(f"the JSON has {len(text)} characters; accepted are {LONGEST_JSON}")
    # Counting brackets before parsing keeps deep nesting from exhausting the stack.
    depth = deepest = 0
    for character in text:
        depth += (character in "{[") - (character in "}]")
        deepest = max(deepest, depth)
    if deepest > DEEPEST_JSON:
        raise _Malformed("the JSON is nested too deeply; a value is a number, text or mapping")
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates
        )
    except _Malformed:
        raise
    except ValueError as error:
        # Numbers of thousands of digits are refused by int() with a long text.
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "a number is too long"
        raise _Malformed(f"not JSON: {reason}") from None
    if not isinstance(value, dict):
        raise _Malformed("the JSON is not an object with a value per dimension")
    for key, entry in value.items():
        if isinstance(entry, dict):
            for weight in entry.values():
                _check_scalar(key, weight, numbers_only=True)
        else:
            _check_scalar(key, entry, numbers_only=False)
    return value


def _refuse_constant(name: str):
    raise _Malformed(f"{name} is not a finite number")


def _without_duplicates(pairs: list) -> dict:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _Malformed("a name comes twice in the JSON")
    for key in value:
        _check_text(key)
    return value


def _check_text(text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _Malformed("a text in the JSON is not valid Unicode")


def _check_scalar(key: str, value, numbers_only: bool) -> None:
    name = ascii(key[:40])
    if isinstance(value, str) and not numbers_only:
        _check_text(value)
    elif isinstance(value, bool):
        if numbers_only:
            raise _Malformed(f"{name} holds a boolean, not a number")
    elif isinstance(value, int | float):
        try:
            finite = math.isfinite(value)
        except OverflowError:
            finite = False
        if not finite:
            raise _Malformed(f"{name} is not a finite number")
    else:
        raise _Malformed(f"{name} is no number or text")
