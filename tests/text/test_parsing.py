import json
import math

import numpy as np
import pytest

from autollm_jax.text.parsing import Action, parse_action

GOOD = '<think>law says so</think><exec>{"learning_rate": 1.4e-3,"batch_size": 128}</exec><end>'


def test_a_well_formed_turn_is_read():
    config = {"learning_rate": 1.4e-3, "batch_size": 128}
    assert parse_action(GOOD) == Action("law says so", config, False, None)


def test_the_think_part_may_be_missing():
    assert parse_action('<exec>{"a": 1}</exec>').config == {"a": 1}


def test_an_exec_part_that_the_reasoning_mentions_does_not_count():
    text = '<think>not <exec>{"a": 2}</exec></think><exec>{"a": 1}</exec>'
    assert parse_action(text).config == {"a": 1}


def test_done_ends_the_episode():
    assert parse_action('<exec>{"done": true}</exec>') == Action("", None, True, None)


@pytest.mark.parametrize("inside", ["#C", " #C ", "C"])
def test_a_letter_is_the_position_of_a_candidate(inside):
    text = f"<think>not #A</think><exec>{inside}</exec><end>"
    assert parse_action(text) == Action("not #A", None, False, None, 2)


@pytest.mark.parametrize("inside", ["#Q", "#c", "#A#B", "#", "(drift)"])
def test_what_is_no_letter_is_an_error(inside):
    action = parse_action(f"<exec>{inside}</exec>")
    assert action.letter is None and "not JSON" in action.error


@pytest.mark.parametrize("done", ["1", "false", '"true"', '{"done": 1}'])
def test_only_true_is_done(done):
    assert not parse_action(f'<exec>{{"done": {done}}}</exec>').finished


def test_texts_booleans_and_nested_weights_are_values():
    value = {"kind": "a", "bias": True, "mixture": {"web": 0.7, "code": 0.3}}
    assert parse_action(f"<exec>{json.dumps(value)}</exec>").config == value


@pytest.mark.parametrize(
    "inside, reason",
    [
        ('{"a": NaN}', "finite"),
        ('{"a": -Infinity}', "finite"),
        ('{"a": 1e999}', "finite"),
        ('{"a": ' + "9" * 5000 + "}", "too long"),
        ('{"a": ' + "9" * 400 + "}", "finite"),
        ('{"a": ' * 3 + "1" + "}" * 3, "nested"),
        ("[" * 6000 + "]" * 6000, "characters"),
        ("[" * 3000, "nested"),
        ('{"a": 1, "a": 2}', "twice"),
        ('{"m": {"x": 0.5, "x": 0.5}}', "twice"),
        ('{"a": [1]}', "no number"),
        ('{"a": null}', "no number"),
        ('{"m": {"x": "half"}}', "no number"),
        ('{"m": {"x": true}}', "boolean"),
        ('{"\\ud800": 1}', "Unicode"),
        ('{"a": "\\udfff"}', "Unicode"),
        ("[1]", "not an object"),
        ('{"a": 1', "not JSON"),
        ("{'a': 1}", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_malformed_json_is_an_error_in_one_line(inside, reason):
    action = parse_action(f"<think>x</think><exec>{inside}</exec>")
    assert action.config is None and not action.finished
    assert reason in action.error and "\n" not in action.error


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "no <exec>"),
        ("<think>x</think>", "no <exec>"),
        ('<exec>{"a": 1}', "not closed"),
        ('<exec>{"a": 1}</exec><exec>{"a": 2}</exec>', "more than one"),
        ('<end><exec>{"a": 1}</exec>', "no <exec>"),
    ],
)
def test_a_turn_without_one_exec_part_is_an_error(text, reason):
    assert reason in parse_action(text).error


def _is_sound(action: Action) -> bool:
    """One of configuration, letter, end and error; a configuration holds finite numbers only."""
    ways = sum(x is not None for x in (action.config, action.letter, action.error))
    ways += action.finished
    values = list((action.config or {}).values())
    values += [w for v in values if isinstance(v, dict) for w in v.values()]
    finite = all(math.isfinite(v) for v in values if isinstance(v, int | float))
    return ways == 1 and finite


def test_random_bytes_never_raise():
    random = np.random.default_rng(0)
    for length in random.integers(0, 300, 2000):
        assert _is_sound(parse_action(random.bytes(int(length))))


def test_broken_turns_never_raise():
    """Cut, spliced and garbled turns reach deeper into the parser than random bytes do."""
    random = np.random.default_rng(1)
    pieces = [b"<think>", b"</think>", b"<exec>", b"</exec>", b"<end>", b'{"a": ', b"}", b"1e999",
              b"NaN", b"#B", b'"', b"\xff", b"{", b"[", b",", b"\\ud800", b"true",
              b"9" * 400]  # fmt: skip
    read = 0
    for _ in range(5000):
        text = bytearray(GOOD.encode())
        for _ in range(int(random.integers(1, 4))):
            place = int(random.integers(len(text) + 1))
            change = random.integers(3)
            if change == 0:
                text[place:place] = pieces[int(random.integers(len(pieces)))]
            elif change == 1:
                del text[place:]
            else:
                del text[place : place + int(random.integers(1, 9))]
        action = parse_action(bytes(text))
        assert _is_sound(action)
        read += action.config is not None
    assert read > 100  # some survive, so the successful path was exercised too


def test_random_unicode_text_never_raises():
    random = np.random.default_rng(2)
    for _ in range(500):
        points = random.integers(0, 0x110000, 40)
        text = "".join(map(chr, points))  # lone surrogates among them
        assert _is_sound(parse_action(text))
        assert _is_sound(parse_action(f'<exec>{{"{text}": 1}}</exec>'))
