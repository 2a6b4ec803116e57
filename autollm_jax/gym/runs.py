"""Runs that experiments share: one run may answer several of them.

A run is read more than once where experiments differ in their objective (the loss on another
domain) or in their limit (the same runs, fewer of them allowed).
"""

import json
from collections.abc import Iterable, Sequence

import numpy as np

from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting


def runs_key(setting: Setting) -> str:
    """Return a text that is equal for two settings that the same runs answer.

    It is the setting's id where neither a limit nor `facts["objective"]` is given. Otherwise it
    holds source, task, tokens, parameters and FLOPs, and the facts. The objective is left out; of a
    limited setting so are the parameters, the FLOPs and each fact that has "limit" in its name,
    since they follow from the limit.
    """
    limited = setting.limit is not None
    if not limited and "objective" not in setting.facts:
        return setting.id
    stated = {
        name: value
        for name, value in setting.facts.items()
        if name != "objective" and not (limited and "limit" in name)
    }
    fidelity = setting.fidelity
    size = () if limited else (fidelity.parameters, fidelity.flops)
    parts = [setting.source, setting.task, fidelity.tokens, *size, stated]
    return json.dumps(parts, sort_keys=True, default=str)


def flops_of_runs(looks: Iterable[tuple[Experiment, Sequence[int]]]) -> float:
    """Sum the FLOPs of runs, each shared run counted once.

    Args:
      looks: experiments, and the rows of each that were looked at. An infeasible row counts
        nothing: it was over the limit and not run, or it ran out of memory at its start. A diverged
        run counts whole, because tables do not say when it diverged. Under a limit a run costs in
        proportion to its own parameters.
    """
    runs: dict[tuple, float] = {}
    for experiment, rows in looks:
        shared, fidelity = runs_key(experiment), experiment.fidelity
        names = experiment.space.names
        rows = np.asarray(rows, int)
        for row in rows[experiment.outcomes.status_R[rows] != "infeasible"].tolist():
            flops = fidelity.flops
            if experiment.limit is not None and experiment.parameters_R is not None:
                flops *= float(experiment.parameters_R[row]) / fidelity.parameters
            cell = experiment.space.key_of(experiment.configurations[row])
            # FLOPs as text: a missing number is nan, which differs from itself.
            runs[shared, names, cell, f"{flops:.9g}"] = flops
    return sum(runs.values())
