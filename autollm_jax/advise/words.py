"""Advice as text for a terminal."""

import math
import re

from autollm_jax.advise.advisor import Advice, Advisor, Ranked
from autollm_jax.advise.values import spell_config, spell_value


def advice_text(advisor: Advisor, advice: Advice) -> str:
    """Write an advice: the proposal first, then its reasons, then what to know."""
    setting = advisor.question.setting
    metric = setting.objective.metric
    lines = _handful(advice, metric)
    lines += _worth(advice, metric)
    if advice.cheap_run is not None:
        run = advice.cheap_run
        lines.append(
            f"a cheap run that would tell most: {spell_config(run.config)} at {run.fidelity} "
            f"({100 * run.cost:.2g} % of the cost of an expensive run; it takes "
            f"{100 * run.lowers:.0f} % off the proposal's variance)"
        )
    lines += [f"note: {note}" for note in advice.notes]
    return "\n".join(lines)


def _handful(advice: Advice, metric: str) -> list[str]:
    """Write the proposal and the others, each with the same facts, and what the facts are."""
    if not advice.ranked:
        return ["nothing is left to try: every configuration was run"]
    first, *others = advice.ranked
    width = max(map(len, (*first.config, metric, "advisers"))) + 1

    def line(name: str, text: str) -> str:
        return f"  {name:{width}} {text}"

    lines = ["try next", *(line(name, spell_value(value)) for name, value in first.config.items())]
    outcome, *chance = _outcome(first)
    lines += [line(metric, outcome), *(line("chance", each) for each in chance)]
    if advice.thinking:
        lines.append(line("because", in_words(advice.thinking)))
        false = [claim.text for claim in advice.claims if not claim.true]
        verdict = f"false: {'; '.join(false)}" if false else "all true"
        if advice.claims:
            lines.append(line("", f"(statements checked against the runs: {verdict})"))
    if advice.explanation:
        lines.append(line("although", advice.explanation))
    lines += [line("advisers", _advisers(first)), line("chosen", _percent(first.chance))]
    if others:
        lines.append("others")
    for number, ranked in enumerate(others, 2):
        lines.append(f"  {number}. {spell_config(ranked.config)}")
        lines.append(f"     {metric} {'; '.join(_outcome(ranked))}")
        lines.append(f"     advisers {_advisers(ranked)}; chosen {_percent(ranked.chance)}")
    return [*lines, f"  advisers: {REGRET}", f"  chosen: {advice.chances_are}"]


REGRET = (
    "the regret that each expects to remain after that run, over what remains after its own "
    "favourite: 0 is as good as that, 1 no better than the median one"
)
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


def _advisers(ranked: Ranked) -> str:
    return ", ".join(f"{name} {regret:.2f}" for name, regret in ranked.advisers.items())


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _outcome(ranked: Ranked) -> list[str]:
    """Write the prediction with its intervals, and the chance to beat the best run."""
    if math.isnan(ranked.outcome):
        return ["not known: no run tells its level"]
    low, high = ranked.interval_80
    least, most = ranked.interval_95
    lines = [
        f"{ranked.outcome:.4g}; 80 %: {low:.4g} to {high:.4g}; 95 %: {least:.4g} to {most:.4g}"
    ]
    if not math.isnan(ranked.beats_best):
        lines.append(
            f"{_percent(ranked.beats_best)} to beat the best so far by more than the noise"
        )
    return lines


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
