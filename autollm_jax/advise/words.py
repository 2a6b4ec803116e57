"""Advice as text for a terminal."""

import math
import re
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
            lines.append(f"  because       {in_words(advice.thinking)}")
            false = [claim.text for claim in advice.claims if not claim.true]
            verdict = f"false: {'; '.join(false)}" if false else "all true"
            if advice.claims:
                lines.append(f"                (statements checked against the runs: {verdict})")
        said = ", ".join(f"{name} {100 * v:.1f}" for name, v in first.advisers.items())
        lines.append(
            f"  advisers      expect so much regret (0: the best, 100: a median run): {said}"
        )
        if len(advice.ranked) > 1:
            lines.append("others, the likeliest first")
            lines += [_other(ranked, metric) for ranked in advice.ranked[1:]]
    lines += _worth(advice, metric)
    if advice.cheap_run is not None:
        run = advice.cheap_run
        lines.append(
            f"a cheap run that would tell most: {_in_line(run.config)} at {run.fidelity} "
            f"({run.cost:.1e} of an expensive one; it takes {run.lowers:.0%} off the proposal's "
            "variance)"
        )
    lines += [f"note: {note}" for note in advice.notes]
    return "\n".join(lines)


ADVISERS = {  # what each of them does, in a person's words
    "own": "a law that moves the landscape with size",
    "nearest": "the nearest size as it stands",
    "drift": "how the landscape drifted from size to size",
    "trees": "boosted trees over all runs",
    "process": "a Gaussian process over all runs",
}


def in_words(thinking: str) -> str:
    """Say the agent's thinking in sentences; other texts stay.

    >>> in_words("best is trial 1; trust (drift)#C")
    'run 1 is the best so far; it trusts drift (how the landscape drifted from size to size)'
    """
    standing = {
        r"latest is first": "one run has an outcome so far",
        r"latest is (diverged|infeasible|invalid)": r"the latest run was \1",
        r"latest is (\w+)": r"the latest run is \1 than the best before",
        r"best is trial (\d+)": r"run \1 is the best so far",
        r"best is none": "none has an outcome yet",
        r"closest \(([a-z]+)\)": r"\1 was least off so far",
        r"farthest \(([a-z]+)\)": r"\1 was farthest off",
    }
    for pattern, words in standing.items():
        thinking = re.sub(pattern, words, thinking)

    def trusted(found: re.Match) -> str:
        if found[1] == "all":
            return "it trusts all advisers together"
        name = found[1].removeprefix("all-but-")
        explained = f"{name} ({ADVISERS.get(name, name)})"
        return f"it trusts {'all but ' if name != found[1] else ''}{explained}"

    # Whatever stands before it, a panel with a letter is what decides.
    return re.sub(r"(?:trust|latest is) \(([a-z-]+)\) ?#[A-P]", trusted, thinking)


def _config(config: Mapping) -> list[str]:
    return [f"  {name:13} {_short(value)}" for name, value in config.items()]


def _in_line(config: Mapping) -> str:
    return " ".join(f"{name}={_short(value)}" for name, value in config.items())


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
        chance = f"{ranked.beats_best:.0%}"
        lines.append(f"  chance        {chance} to beat the best so far by more than the noise")
    return lines


def _other(ranked: Ranked, metric: str) -> str:
    outcome = "" if math.isnan(ranked.outcome) else f"  {metric} {ranked.outcome:.4g}"
    return f"  {ranked.chance:4.0%}  {_in_line(ranked.config)}{outcome}"


def _worth(advice: Advice, metric: str) -> list[str]:
    noise = "" if math.isnan(advice.noise) else f"; seeds differ by {advice.noise:.2g}"
    if math.isnan(advice.expected_gain):
        return (
            [f"no expensive run has an outcome yet, so the next is worth it{noise}"]
            if advice.ranked
            else []
        )
    gain = f"expected gain of another run: {advice.expected_gain:.2g} of {metric}{noise}"
    if advice.stop:
        return [f"stop: {gain}, so another expensive run is not worth it"]
    return [f"go on: {gain}"]
