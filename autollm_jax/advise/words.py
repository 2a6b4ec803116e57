"""Advice as text for a terminal."""

import math
from collections.abc import Mapping

from autollm_jax.advise.advisor import Advice, Advisor, Ranked
from autollm_jax.advise.values import spell


def advice_text(advisor: Advisor, advice: Advice) -> str:
    """Write an advice: the proposal first, then its reasons, then what to know."""
    setting = advisor.question.setting
    metric = setting.objective.metric
    lines = []
    if advice.ranked:
        first = advice.ranked[0]
        lines += ["try next", *_config(first.config), *_outcome(first, metric)]
        if advice.thinking:
            lines.append(f"  because       {advice.thinking}")
            false = [claim.text for claim in advice.claims if not claim.true]
            checked = f"{len(advice.claims)} statements checked against the runs, " + (
                f"false: {'; '.join(false)}" if false else "all true"
            )
            lines += [f"                ({checked})"] if advice.claims else []
        said = ", ".join(f"{name} {100 * v:.1f}" for name, v in first.advisers.items())
        lines.append(f"  advisers      expect so many hundredths of the range to remain: {said}")
        if len(advice.ranked) > 1:
            lines.append("others, the likeliest first")
            lines += [_other(ranked, metric) for ranked in advice.ranked[1:]]
    lines += _worth(advice, metric)
    if advice.cheap_run is not None:
        run = advice.cheap_run
        config = " ".join(f"{k}={_short(v)}" for k, v in run.config.items())
        lines.append(
            f"a cheap run that would tell most: {config} at {run.fidelity} ({run.cost:.1e} of an "
            f"expensive one; it takes {run.lowers:.0%} off the proposal's variance)"
        )
    lines += [f"note: {note}" for note in advice.notes]
    return "\n".join(lines)


def _config(config: Mapping) -> list[str]:
    return [f"  {name:13} {_short(value)}" for name, value in config.items()]


def _short(value) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{part}:{100 * weight:.3g}%" for part, weight in value.items())
    return spell(value)


def _outcome(ranked: Ranked, metric: str) -> list[str]:
    if math.isnan(ranked.outcome):
        return [f"  {metric:13} not known: no run tells its level"]
    low, high = ranked.interval_80
    least, most = ranked.interval_95
    lines = [
        f"  {metric:13} {ranked.outcome:.4g}; 80 %: {low:.4g} to {high:.4g}; "
        f"95 %: {least:.4g} to {most:.4g}"
    ]
    if not math.isnan(ranked.beats_best):
        lines.append(
            f"  chance        {ranked.beats_best:.0%} to beat the best so far by the noise"
        )
    return lines


def _other(ranked: Ranked, metric: str) -> str:
    config = " ".join(f"{name}={_short(value)}" for name, value in ranked.config.items())
    outcome = "" if math.isnan(ranked.outcome) else f"  {metric} {ranked.outcome:.4g}"
    return f"  {ranked.chance:4.0%}  {config}{outcome}"


def _worth(advice: Advice, metric: str) -> list[str]:
    noise = "" if math.isnan(advice.noise) else f"; seeds differ by {advice.noise:.2g}"
    if math.isnan(advice.expected_gain):
        return (
            [f"no expensive run yet, so the first one is worth it{noise}"] if advice.ranked else []
        )
    gain = f"expected gain of another run: {advice.expected_gain:.2g} of {metric}{noise}"
    if advice.stop:
        return [f"stop: {gain}, so another expensive run is not worth it"]
    return [f"go on: {gain}"]
