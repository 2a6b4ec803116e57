"""The order of the evidence: which experiments say most about a setting."""

from collections.abc import Sequence

import numpy as np

from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting


def relevance(experiment: Setting, setting: Setting) -> tuple:
    """Return a sort key, least for the experiment that says most about the setting.

    In turn: the same objective; fewer named differences (problem, corpus, backbone); a smaller
    distance in log fidelity; a share of feasible configurations that is more alike; more facts in
    common; the id.
    """
    shared_facts = sum(experiment.facts.get(k) == v for k, v in setting.facts.items())
    return (
        experiment.objective.metric != setting.objective.metric,
        named_differences(experiment, setting),
        round(fidelity_distance(experiment, setting), 6),
        abs(float(experiment.feasible_R.mean() - setting.feasible_R.mean())),
        -shared_facts,
        experiment.id,
    )


def by_relevance(evidence: Sequence[Experiment], setting: Setting) -> tuple[Experiment, ...]:
    """Sort all of the evidence, the most relevant experiment first."""
    return tuple(sorted(evidence, key=lambda experiment: relevance(experiment, setting)))


def relevant_evidence(evidence: Sequence[Experiment], setting: Setting) -> tuple[Experiment, ...]:
    """Return the evidence of the setting's own objective, the most relevant experiment first.

    A source may hold several objectives (validation losses of different domains). Where no
    experiment has the setting's objective, all of the evidence is returned.
    """
    found = by_relevance(evidence, setting)
    same = tuple(e for e in found if e.objective.metric == setting.objective.metric)
    return same or found


def fidelity_distance(a: Setting, b: Setting) -> float:
    """Return the Euclidean distance in log fidelity over the numbers that both settings have."""
    return float(np.sqrt(np.nansum((a.fidelity.log - b.fidelity.log) ** 2)))


def named_differences(a: Setting, b: Setting) -> int:
    """Count the facts that are texts (problem, corpus, backbone) and differ."""
    names = {k for e in (a, b) for k, v in e.facts.items() if isinstance(v, str)}
    return sum(a.facts.get(name) != b.facts.get(name) for name in names)
