"""Optuna's tree-structured Parzen estimator, warm-started with the evidence."""

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from autollm_jax.baselines import coordinates
from autollm_jax.baselines.base import Candidates, Problem, draw_seed
from autollm_jax.baselines.evidence import TargetScale, gather
from autollm_jax.gym.spaces import Dimension

# TPE models a tenth of its trials as good, yet never more than 25: with more evidence than this
# the good ones would be but the very best cell or two of each experiment.
EVIDENCE_ROWS = 400
# A proposal whose nearest cell was tried is drawn again this often before the next cell is taken.
REDRAWS = 20


class OptunaTPE:
    """Ask Optuna's TPE, told of all evidence beforehand, and try the cell nearest to its answer.

    As a practised user would: the evidence enters the study as finished trials, in the target's
    scale, each experiment's outcomes standardised (0 its best, 1 its median), the nearest
    experiment last, since TPE weighs late trials most. The search range covers evidence and target,
    so that a window that slid cuts nothing off. The default configuration is tried first only where
    there is no evidence: with it, a trial of five would be spent on less than is known. The cell
    that was run is what the study is told of, not the proposal. (Bergstra et al., NeurIPS 2011;
    Watanabe, arXiv 2304.11127.)
    """

    def __init__(self, problem: Problem, seed: int):
        self._problem = problem
        self._candidates = Candidates(problem.experiment)
        self._scale = TargetScale(problem)
        self._trials: list = []
        evidence = gather(problem, EVIDENCE_ROWS)
        self._warm = len(evidence) > 0
        points_ND = np.concatenate([self._candidates.units_RD, evidence.points_ND])
        space = problem.experiment.space
        self._space = _distributions(space, points_ND)
        spans = coordinates.columns(space)
        self._mixtures = [spans[d.name] for d in space.dimensions if d.kind == "simplex"]
        # Optuna logs every trial to stderr; a library's user did not ask for that.
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=draw_seed(problem, seed), multivariate=True)
        self._study = optuna.create_study(sampler=sampler, direction="minimize")
        optuna.logging.set_verbosity(level)
        self._study.add_trials(
            [
                create_trial(params=self._params(p), distributions=self._space, value=float(s))
                for p, s in zip(evidence.points_ND[::-1], evidence.scores_N[::-1], strict=True)
            ]
        )

    def ask(self) -> dict:
        if not self._warm and not self._trials:
            row = self._candidates.row_of(self._problem.experiment.default)
            return self._candidates.take(row)
        untried = set(self._candidates.untried.tolist())
        for _ in range(REDRAWS):
            proposal = self._study.ask(self._space)
            # The study hears of the cell that was run (see tell), so the proposal itself is closed.
            self._study.tell(proposal, state=TrialState.FAIL)
            point_D = self._point(proposal.params)
            row = self._candidates.nearest(point_D)
            if row in untried:
                return self._candidates.take(row)
        return self._candidates.take(self._candidates.nearest(point_D, untried=True))

    def tell(self, trial) -> None:
        row = self._candidates.mark(trial)
        if row is None:
            return
        self._trials.append(trial)
        self._study.add_trial(
            create_trial(
                params=self._params(self._candidates.units_RD[row]),
                distributions=self._space,
                value=float(self._scale.scores(self._trials)[-1]),
            )
        )

    def _params(self, point_D: np.ndarray) -> dict:
        params = {}
        for name, distribution in self._space.items():
            columns = _columns(name)
            if isinstance(distribution, CategoricalDistribution):
                params[name] = int(np.argmax(point_D[columns]))
            else:
                params[name] = float(point_D[columns][0])
        return params

    def _point(self, params: dict) -> np.ndarray:
        point_D = np.zeros(self._candidates.units_RD.shape[1])
        for name, value in params.items():
            columns = _columns(name)
            if isinstance(self._space[name], CategoricalDistribution):
                point_D[columns.start + value] = 1.0
            else:
                point_D[columns] = value
        for columns in self._mixtures:
            # Weights are drawn one by one; only their shares mean anything.
            point_D[columns] /= max(point_D[columns].sum(), 1e-12)
        return point_D


def _distributions(space, points_ND: np.ndarray) -> dict:
    """Return one distribution a number and one a category, named START:STOP by their columns."""
    distributions = {}
    spans = coordinates.columns(space)
    for axis in coordinates.axes(space):
        span = spans[axis.name]
        if isinstance(axis, Dimension) and axis.kind == "categorical":
            choices = tuple(range(len(axis.choices)))
            distributions[f"{span.start}:{span.stop}"] = CategoricalDistribution(choices)
            continue
        for column in range(span.start, span.stop):
            low, high = float(points_ND[:, column].min()), float(points_ND[:, column].max())
            distributions[f"{column}:{column + 1}"] = FloatDistribution(low, high)
    return distributions


def _columns(name: str) -> slice:
    start, stop = name.split(":")
    return slice(int(start), int(stop))
