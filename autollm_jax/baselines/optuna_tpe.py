"""Optuna's tree-structured Parzen estimator, warm-started with the evidence."""

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from autollm_jax.baselines.base import Problem
from autollm_jax.baselines.proposals import ProposesPoints
from autollm_jax.forecasts import coordinates
from autollm_jax.forecasts.base import draw_seed

# TPE models a tenth of its trials as good, at most 25. With more evidence rows than this the good
# trials would be only the best one or two cells of each experiment.
EVIDENCE_ROWS = 400


class OptunaTPE(ProposesPoints):
    """Ask Optuna's TPE for a point, then try the cell nearest to the point.

    The evidence enters the study before the first trial, as finished trials: points on the target's
    scale, outcomes standardised per experiment (0 for the best, 1 for the median). The nearest
    experiment enters last, because TPE gives the latest trials the most weight. Until a study has
    10 finished trials, Optuna draws at random. TPE: Bergstra et al., NeurIPS 2011; Watanabe, arXiv
    2304.11127.

    >>> from autollm_jax.baselines import BASELINES, Problem
    >>> from autollm_jax.gym.experiments import Fidelity, make_experiment
    >>> from autollm_jax.gym.spaces import Dimension, Space
    >>> space = Space((Dimension("rate", "log-ordinal", (1e-4, 1e-3, 1e-2)),))
    >>> rates = [{"rate": 1e-4}, {"rate": 1e-3}, {"rate": 1e-2}]
    >>> def made(name, parameters, losses):
    ...     return make_experiment(
    ...         source="mine", task="pretraining", name=name, space=space,
    ...         fidelity=Fidelity("low", parameters, 1e9, 6e9 * parameters),
    ...         configurations=rates, outcomes=losses, default=rates[0],
    ...         default_origin="the first")
    >>> cheap, dear = made("1M", 1e6, [3, 2, 4]), made("2M", 2e6, [2, 1, 3])
    >>> method = BASELINES["optuna_tpe"](Problem(dear.setting, (cheap,), budget=3), seed=0)
    >>> sorted(method.ask()["rate"] for _ in range(3))
    [0.0001, 0.001, 0.01]

    Args:
      problem: the setting, its evidence and the budget.
      seed: of the draws.
    """

    evidence_rows = EVIDENCE_ROWS

    def __init__(self, problem: Problem, seed: int):
        super().__init__(problem, self.evidence_rows)
        self._space = _distributions(problem.setting.space, self._low_D, self._high_D)
        # Optuna logs every new study and trial to stderr; a library must stay silent.
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = self._make_sampler(draw_seed(problem.setting, seed))
        self._study = optuna.create_study(sampler=sampler, direction="minimize")
        optuna.logging.set_verbosity(level)
        rows = zip(self._points_ND, self._scores_N, strict=True)
        self._study.add_trials([self._finished(*row) for row in reversed([*rows])])

    def _make_sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(seed=seed, multivariate=True)

    def _propose(self) -> np.ndarray:
        proposal = self._study.ask(self._space)
        # `_learn` tells the study the cell that was run, so the proposal itself is closed here.
        self._study.tell(proposal, state=TrialState.FAIL)
        point_D = np.zeros(len(self._low_D))
        for name, value in proposal.params.items():
            columns = _columns(name)
            if isinstance(self._space[name], CategoricalDistribution):
                point_D[columns.start + value] = 1.0
            else:
                point_D[columns] = value
        return point_D

    def _learn(self, point_D: np.ndarray, score: float) -> None:
        self._study.add_trial(self._finished(point_D, score))

    def _finished(self, point_D: np.ndarray, score: float) -> optuna.trial.FrozenTrial:
        params = {}
        for name, distribution in self._space.items():
            columns = _columns(name)
            if isinstance(distribution, CategoricalDistribution):
                params[name] = int(np.argmax(point_D[columns]))
            else:
                params[name] = float(point_D[columns][0])
        return create_trial(params=params, distributions=self._space, value=float(score))


def _distributions(space, low_D: np.ndarray, high_D: np.ndarray) -> dict:
    """Return a distribution per number and per category, named START:STOP after its columns."""
    distributions = {}
    spans = coordinates.columns(space)
    for dimension in space.dimensions:
        span = spans[dimension.name]
        if dimension.kind == "categorical":
            choices = tuple(range(len(dimension.choices)))
            distributions[f"{span.start}:{span.stop}"] = CategoricalDistribution(choices)
            continue
        for column in range(span.start, span.stop):
            low, high = float(low_D[column]), float(high_D[column])
            distributions[f"{column}:{column + 1}"] = FloatDistribution(low, high)
    return distributions


def _columns(name: str) -> slice:
    start, stop = name.split(":")
    return slice(int(start), int(stop))
