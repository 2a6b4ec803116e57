"""Statements about the evidence: the law's values and exponents, costs of a step, effects."""

import functools

import numpy as np

from autollm_jax.forecasts.base import Forecast
from autollm_jax.forecasts.landscapes import Law, value_at
from autollm_jax.forecasts.shifted import step_costs
from autollm_jax.gym.spaces import Dimension
from autollm_jax.text.candidates import percent
from autollm_jax.text.effects import Effect, effects
from autollm_jax.text.spelling import short_names, significant

LAW_LINES = 2
TRENDS = {1: "rises with", -1: "falls with", 0: "flat in"}
EFFECTS = 3
MOST_PARTS = 8


def sizes_text(seen: Forecast) -> str:
    """State the ratio of the target's size to the most relevant cheap experiment's.

    target has 2.4 x parameters 1.0 x tokens of the nearest; empty where neither number is known.
    """
    target, nearest = seen.setting.fidelity, seen.nearest[0].fidelity
    pairs = {
        "parameters": (target.parameters, nearest.parameters),
        "tokens": (target.tokens, nearest.tokens),
    }
    ratios = " ".join(
        f"{significant(here / there, 2)} x {what}"
        for what, (here, there) in pairs.items()
        if here > 0 and there > 0
    )
    return f"target has {ratios} of the nearest" if ratios else ""


def trend(slope: float) -> str:
    """Name an exponent's direction, as it is spelled: falls with."""
    return TRENDS[int(np.sign(float(slope_text(slope))))]


def slope_text(slope: float) -> str:
    """Spell an exponent with one decimal; zero has no sign."""
    return f"{slope + 0.0:.1f}".replace("-0.0", "0.0")


def _law(seen: Forecast) -> Law:
    if seen.law is None:
        raise ValueError(f"{seen.setting.id}: the forecast has no law")
    return seen.law


def law_value(value: float) -> str:
    """Spell a value that the law predicts, with two significant digits; it need not be a choice."""
    return significant(value, 2)


def law_text(seen: Forecast, d: int) -> str:
    """State the law of one dimension: law for rate 1.0e-3 falls with parameters ^ -0.5 and ..."""
    by_size, by_tokens = _law(seen).slopes_D2[d]
    return (
        f"law for {seen.setting.space.names[d]} {law_values(seen)[d]} "
        f"{trend(by_size)} parameters ^ {slope_text(by_size)} and "
        f"{trend(by_tokens)} tokens ^ {slope_text(by_tokens)}"
    )


def law_values(seen: Forecast) -> list[str]:
    """Spell the law's prediction for the target, per dimension."""
    dimensions = seen.setting.space.dimensions
    return [
        law_value(value_at(d, float(c)))
        for d, c in zip(dimensions, _law(seen).centre_D, strict=True)
    ]


@functools.lru_cache(maxsize=64)
def step_percent(seen: Forecast) -> tuple[tuple[int, int], ...]:
    """Return the cost of a step below and above the centre per dimension, in percent of regret."""
    costs_D2 = step_costs(seen.nearest)
    return tuple((round(100 * low), round(100 * high)) for low, high in costs_D2.tolist())


def law_dimensions(seen: Forecast) -> list[int]:
    """Return the dimensions whose law is stated: those in which a step costs most, in order."""
    cost_D = [low + high for low, high in step_percent(seen)]
    return sorted(sorted(range(len(cost_D)), key=lambda d: -cost_D[d])[:LAW_LINES])


def shown_effects(seen: Forecast) -> tuple[Effect, ...]:
    """Return the largest effects in the most relevant table; none where there is a law."""
    if seen.law is not None or not seen.nearest:
        return ()
    return tuple(e for e in effects(seen.nearest[0]) if e.percent)[:EFFECTS]


def moving_parts(seen: Forecast, dimension: Dimension) -> list[str]:
    """Name the components that move the outcome most in the evidence, in the space's order."""
    names = list(short_names(dimension).values())
    if not seen.nearest:
        return names[:MOST_PARTS]
    ranked = [e.name for e in effects(seen.nearest[0]) if e.name in names]
    # The evidence may lack some components: they come last.
    ranked += [name for name in names if name not in ranked]
    return [name for name in names if name in ranked[:MOST_PARTS]]


def effects_heading(seen: Forecast) -> str:
    """Write the heading of effects; they are at equal size where there is a parameter limit."""
    where = "" if seen.nearest[0].limit is None else " at equal size"
    return f"what more does in the nearest{where}"


def effect_text(effect: Effect) -> str:
    """State an effect's direction and size in regret: github helps 31%."""
    size = percent(abs(effect.percent) / 100)
    return f"{effect.name} {'helps' if effect.percent < 0 else 'hurts'} {size}"


def effects_text(seen: Forecast) -> str:
    """State the largest effects on one line, without signs between them (see `prompts`)."""
    effects = " ".join(map(effect_text, shown_effects(seen)))
    return f"{effects_heading(seen)}: {effects}"
