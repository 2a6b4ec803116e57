"""The nearest cheaper experiment's best cells, best first."""

import numpy as np

from autollm_jax.baselines.base import Candidates, Problem, relevant_evidence
from autollm_jax.forecasts import coordinates


class NearestExperiment:
    """Carry the best cells of the cheaper experiment nearest in fidelity over to the target.

    Each of its cells, best first, is mapped to the target's nearest cell; one that was tried is
    passed over. Where its cells run out the next nearest experiment's follow, and without any
    evidence the cells nearest to the default.
    """

    def __init__(self, problem: Problem, seed: int):
        del seed  # Nothing is drawn.
        self._candidates = Candidates(problem.setting)
        space, points = problem.setting.space, []
        for experiment in relevant_evidence(problem):
            regrets_R = np.asarray(experiment.outcomes.regrets_R)
            # A diverged cell and a middling one both have regret 1: neither is worth carrying over.
            rows = [r for r in np.argsort(regrets_R, kind="stable") if regrets_R[r] < 1]
            configs = [experiment.configurations[r] for r in rows]
            points.append(
                coordinates.project(configs, experiment.space, space, problem.setting.default)
            )
        default = coordinates.project([problem.setting.default], space, space)
        self._default_D = default[0]
        self._rows = self._candidates.in_turn(np.concatenate([*points, default]))

    def ask(self) -> dict:
        row = next(self._rows, None)
        if row is None:
            row = self._candidates.nearest(self._default_D, untried=True)
        return self._candidates.take(row)

    def tell(self, trial) -> None:
        self._candidates.mark(trial)
