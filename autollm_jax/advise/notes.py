"""Notes: where evidence is thin, the target far beyond it, or the best value at an edge."""

import itertools
import math
from collections.abc import Mapping

import numpy as np

from autollm_jax.advise.question import Question
from autollm_jax.gym.spaces import Dimension

FEW_RUNS = 8
FAR = math.log(30.0)  # in parameters or tokens: beyond it advice says that it is a guess
LEAST_BELOW = math.log(1.05)  # by so much a target is smaller
EDGE = 0.02  # share of a range: so near to its end a value counts as the end
MOST_EDGES = 3  # notes on them
LEAST_VALUES = 3  # of two values one is always at the edge
FURTHER_LOG, FURTHER = 3.0, 0.25  # how far a range is to be widened: a factor, a share of it


def notes_of(question: Question, config: Mapping | None) -> list[str]:
    """Say what the reader of an advice should know.

    Args:
      question: what was asked.
      config: the proposal; None where nothing is left to try.
    """
    return [*_thin(question), *_far(question), *_edges(question, config)]


def _thin(question: Question) -> list[str]:
    evidence, notes = question.evidence, []
    count = sum(len(experiment.cells) for experiment in evidence)
    if count < FEW_RUNS:
        notes.append(
            f"{count} cheap configurations: too few to see a landscape; {FEW_RUNS} or more, "
            "spread over the space, would help most"
        )
    if _tells_nothing(question) and count > 1:
        metric = question.setting.objective.metric
        notes.append(
            f"{metric} is the same for half of the runs or more, of every size: it does not tell "
            "good configurations from others, so the proposal is a guess"
        )
    if len(evidence) == 1:
        notes.append(
            "runs of one fidelity do not tell how the optimum moves with size; a second, "
            "cheaper or dearer, would"
        )
    return notes


def _tells_nothing(question: Question) -> bool:
    """Whether half of the runs or more, of every size, have the same outcome."""
    evidence = question.evidence
    return bool(evidence) and all(e.outcomes.median == e.outcomes.optimum for e in evidence)


def _far(question: Question) -> list[str]:
    gaps = [question.setting.fidelity.log - e.fidelity.log for e in question.evidence]
    gaps = [gap[~np.isnan(gap)] for gap in gaps]
    gaps = [gap for gap in gaps if len(gap)]
    if not gaps:
        return []
    notes = []
    if all((gap <= 0).all() and (gap < -LEAST_BELOW).any() for gap in gaps):
        notes.append(
            "the target is smaller than every run: advice is meant for a dearer one, so look "
            "whether the target lacks a unit (7B, 200B)"
        )
    nearest = min(gaps, key=lambda gap: np.abs(gap).max())
    widest = float(nearest[np.abs(nearest).argmax()])
    if abs(widest) > FAR:
        times = f"{math.exp(abs(widest)):.0f} times"
        notes.append(
            (
                f"the target is {times} the size of the nearest runs"
                if widest > 0
                else f"the nearest runs are {times} the size of the target"
            )
            + ": far beyond what was ever checked, so take the intervals as too narrow"
        )
    return notes


def _edges(question: Question, config: Mapping | None) -> list[str]:
    """Name the hyperparameters whose best value is the last that was tried and may be proposed."""
    if question.closed or _tells_nothing(question):
        return []
    named: list[tuple[str, Mapping]] = [] if config is None else [("proposed", config)]
    ran = [(trial.config, trial.outcome) for trial in question.trials if trial.ok and trial.config]
    sign = question.setting.objective.sign
    if ran:
        named.append(("best", min(ran, key=lambda pair: sign * pair[1])[0]))
    elif question.evidence:
        nearest = question.evidence[0]
        named.append(("best", nearest.configurations[nearest.outcomes.best_row]))
    tried = [c for experiment in question.evidence for c in experiment.configurations]
    tried += [trial.config for trial in question.trials if trial.config]
    notes = []
    for dimension in question.setting.space.dimensions:
        if not dimension.is_numeric:
            continue
        values = {each[dimension.name] for each in tried}
        if len(values) < LEAST_VALUES:
            continue
        for (which, each), end in itertools.product(named, (0, 1)):
            if _at_end(dimension, each, values, end):
                name, value = dimension.name, (min, max)[end](values)
                notes.append(
                    f"the {which} {name}, {value:.4g}, is the {('smallest', 'largest')[end]} that "
                    f"was tried: widen {name} to {_further(dimension, end):.2g} in space.json to "
                    "let advice go further (--write_space=space.json, edit, --space=space.json)"
                )
                break
    if len(notes) > MOST_EDGES:
        notes[MOST_EDGES:] = [f"so it is for {len(notes) - MOST_EDGES} more hyperparameters"]
    return notes


def _at_end(dimension: Dimension, config: Mapping, values: set, end: int) -> bool:
    """Whether a value is at an end of the tried ones that is the end of the space, too."""
    low, high = dimension.extent
    if low >= 0 and (low, high)[end] == end:
        return False  # zero or a share of one: there is nothing beyond
    last = (min, max)[end](values)
    places = [float(dimension.to_unit(each)[0]) for each in (config[dimension.name], last)]
    margin = EDGE if dimension.is_continuous else 1e-9
    return all(abs(place - end) <= margin for place in places)


def _further(dimension: Dimension, end: int) -> float:
    """Return a value one step beyond an end."""
    low, last, other = dimension.extent[0], dimension.extent[end], dimension.extent[1 - end]
    if dimension.is_continuous:
        step = FURTHER * (last - other)
        factor = FURTHER_LOG if end else 1 / FURTHER_LOG
    else:
        before = dimension.choices[(1, -2)[end]]
        step, factor = last - before, last / before if before else 1.0
    further = last * factor if dimension.is_log else last + step
    return max(further, 0.0) if low >= 0 else further
