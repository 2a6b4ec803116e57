"""How numbers, sizes and configurations are spelled: briefly, and the same way everywhere."""

import functools
import json
import math
from collections.abc import Mapping

from autollm_jax.agent import parsing
from autollm_jax.gym.experiments import Fidelity
from autollm_jax.gym.spaces import Dimension, Space


def short(number: float) -> str:
    """Spell a size with three significant digits: 429M, 8.0B, 100B."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * unit:
            scaled = number / unit
            return f"{scaled:.0f}{name}" if scaled >= 99.95 else f"{scaled:.1f}{name}"
    return f"{number:.0f}"


def size(fidelity: Fidelity) -> str:
    """Spell parameters and tokens: 429M 8.0B."""
    return f"{short(fidelity.parameters)} {short(fidelity.tokens)}"


def significant(number: float, digits: int) -> str:
    """Spell a number with so many significant digits: 1.4e-3, 0.10, 140."""
    if number == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{number:.{digits - 1}e}"))))
    if 0 <= exponent < 5 and digits <= exponent + 1:
        return f"{float(f'{number:.{digits - 1}e}'):.0f}"
    if -1 <= exponent < 5:
        return f"{number:.{max(digits - 1 - exponent, 0)}f}"
    mantissa, power = f"{number:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(power)}"


@functools.lru_cache(maxsize=65536)
def spell_number(number: float) -> str:
    """Spell a number briefly: integers below 100,000 in full, else two or three digits, 1.4e-3.

    Two significant digits where that is within 4 %, otherwise as many as that takes: a space takes
    a number for a choice within 5 %.
    """
    if float(number).is_integer() and abs(number) < 100_000:
        return str(int(number))
    for digits in range(2, 8):
        text = significant(float(number), digits)
        if abs(float(text) - number) <= 0.04 * abs(number):
            break
    return text


@functools.lru_cache(maxsize=8192)
def choice_names(dimension: Dimension) -> dict:
    """Map each choice to its spelling, with more digits where two would look alike."""
    if not dimension.is_numeric:
        return {choice: str(choice) for choice in dimension.choices}
    names = [spell_number(choice) for choice in dimension.choices]
    if dimension.kind == "ordinal" or len(set(names)) < len(names):
        for digits in range(2, 18):
            names = [
                str(c) if isinstance(c, int) else significant(c, digits) for c in dimension.choices
            ]
            exact = all(
                abs(float(n) - c) <= 0.005 * abs(c)
                for n, c in zip(names, dimension.choices, strict=True)
            )
            if len(set(names)) == len(names) and exact:
                break
    return dict(zip(dimension.choices, names, strict=True))


def spell(dimension: Dimension, value) -> str:
    """Spell a dimension's choice, the same way everywhere; JSON reads numbers back to it."""
    if dimension.kind == "simplex":
        parts = [
            f"{c} {value.get(c, 0.0):.2f}" for c in dimension.choices if value.get(c, 0) >= 0.005
        ]
        return " ".join(parts)
    return choice_names(dimension)[value]


def spell_config(space: Space, config: Mapping) -> str:
    """Spell a measured configuration as its values in the space's order: 1.4e-3 128."""
    return " ".join(spell(d, config[d.name]) for d in space.dimensions)


def config_json(space: Space, config: Mapping) -> str:
    """Spell a measured configuration as an action's JSON; `,"` is a symbol, so without a space."""
    parts = []
    for d in space.dimensions:
        value = config[d.name]
        if d.is_numeric:
            text = spell(d, value)
        elif d.kind == "simplex":
            text = json.dumps({c: round(w, 4) for c, w in value.items() if w >= 0.00005})
        else:
            text = json.dumps(value)
        parts.append(f'"{d.name}": {text}')
    return "{" + ",".join(parts) + "}"


def exec_part(space: Space, config: Mapping) -> str:
    """Write the exec part of an action."""
    return f"{parsing.EXEC}{config_json(space, config)}{parsing.EXEC_END}"
