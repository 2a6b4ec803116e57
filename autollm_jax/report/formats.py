"""Writes numbers and configurations for the report."""

import math
from collections.abc import Mapping

from autollm_jax.evaluation.statistics import Interval
from autollm_jax.gym.spaces import Space

# The number of a mixture's components that are written: the heaviest ones.
COMPONENTS = 4


def show_name(name: str) -> str:
    """Write a name with spaces."""
    return name.replace("_", " ")


def show_task(name: str) -> str:
    """Write the name of a task, or of all of them together."""
    return "all tasks" if name == "all" else show_name(name)


def show_value(value) -> str:
    """Write a choice as a short plain value: 3.5e-4, 256, 1.5."""
    if isinstance(value, bool | str) or value is None:
        return str(value)
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value)}" if abs(value) < 1e6 else _scientific(value)
    return f"{value:.3g}" if 0.1 <= abs(value) < 1e6 else _scientific(value)


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def show_magnitude(value: float) -> str:
    """Write a count of parameters or tokens: 429M."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def show_outcome(value: float | None) -> str:
    """Write an outcome in the objective's own units."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.4f}" if 0.001 <= abs(value) < 100 or value == 0 else f"{value:.4g}"


def show_regret(value: float, signed: bool = False) -> str:
    """Write a regret or a difference between two; there is no "-0.000"."""
    if not math.isfinite(value):
        return "–"
    return f"{round(value, 3) + 0.0:{'+' if signed else ''}.3f}"


def show_interval(interval: Interval, signed: bool = False) -> dict[str, str]:
    """Write a mean and its interval's ends."""
    low, high = (show_regret(end, signed) for end in (interval.low, interval.high))
    return {"mean": show_regret(interval.mean, signed), "ends": f"{low} … {high}"}


def show_config(space: Space, config: Mapping) -> str:
    """Write a configuration in a line, in the space's order."""
    parts = []
    for name in space.names:
        value = config[name]
        if isinstance(value, Mapping):
            heaviest = sorted(value.items(), key=lambda item: -item[1])
            shown = [
                f"{show_name(part)} {weight:.0%}" for part, weight in heaviest if weight >= 0.005
            ]
            rest = " …" if len(shown) > COMPONENTS else ""
            parts.append(", ".join(shown[:COMPONENTS]) + rest)
        else:
            parts.append(f"{show_name(name)} {show_value(value)}")
    return ", ".join(parts)
