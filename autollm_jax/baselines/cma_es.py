"""CMA-ES, warm-started with the evidence."""

import numpy as np

from autollm_jax.baselines.base import Problem
from autollm_jax.baselines.proposals import ProposesPoints
from autollm_jax.forecasts import coordinates
from autollm_jax.forecasts.base import draw_seed

EVIDENCE_ROWS = 4000
# The next three values were chosen on cheap experiments.
# Share of the evidence rows that the first Gaussian is fitted to: 0.02 beats the paper's 0.1.
GAMMA = 0.02
# Deviation added to that of the rows, in units of the search range: 0.1 in the paper.
ALPHA = 0.05
# Trials per generation. The package's default, 4 + 3 log D', is more than an episode has.
POPULATION = 4
COLD_SIGMA = 1 / 6  # deviation without evidence, in units of the search range: Optuna's value


class CmaEs(ProposesPoints):
    """Ask CMA-ES (the package `cmaes`) for a point, then try the cell nearest to the point.

    The search distribution starts as the Gaussian nearest to the evidence's best cells (warm
    starting, arXiv 2012.06932). Before that, the cells of each experiment are moved to the target's
    fidelity (`gathering.move_along_law`).

    Three choices suit CMA-ES to a short budget: the first trial is the mean of the first Gaussian,
    not a draw; a generation has 4 trials, so that the distribution follows the trials; and CMA-ES
    is told the cell that was run, not the point that it proposed. Optuna's own CMA-ES sampler has
    none of the three and accepts no categories. Here a category has one column per choice, as a
    mixture has one column per component.

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
    >>> method = BASELINES["cma_es"](Problem(dear.setting, (cheap,), budget=1), seed=0)
    >>> method.ask()
    {'rate': 0.001}

    Args:
      problem: the setting, its evidence and the budget.
      seed: of the draws.
    """

    def __init__(self, problem: Problem, seed: int):
        import cmaes  # imports scipy.stats: a second that every command would wait for

        super().__init__(problem, EVIDENCE_ROWS)
        self._width_D = np.where(self._high_D > self._low_D, self._high_D - self._low_D, 1.0)
        if self._warm:
            rows = [*zip(self._to_unit(self._points_ND), self._scores_N, strict=True)]
            # `cmaes` rounds share x rows down; the result must be at least 1.
            share = min(max(GAMMA, 1.5 / len(rows)), 1.0)
            mean_D, sigma, covariance_DD = cmaes.get_warm_start_mgd(rows, share, ALPHA)
        else:
            space = problem.setting.space
            default_D = coordinates.project([problem.setting.default], space, space)[0]
            mean_D, sigma, covariance_DD = self._to_unit(default_D), COLD_SIGMA, None
        self._optimizer = cmaes.CMA(
            mean_D,
            sigma,
            bounds=np.tile([0.0, 1.0], (len(mean_D), 1)),
            seed=draw_seed(problem.setting, seed),
            population_size=POPULATION,
            cov=covariance_DD,
        )
        self._mean_first = [mean_D]
        self._generation: list = []

    def _propose(self) -> np.ndarray:
        unit_D = self._mean_first.pop() if self._mean_first else self._optimizer.ask()
        return self._low_D + unit_D * self._width_D

    def _learn(self, point_D: np.ndarray, score: float) -> None:
        self._generation.append((self._to_unit(point_D), score))
        if len(self._generation) == self._optimizer.population_size:
            self._optimizer.tell(self._generation)
            self._generation = []

    def _to_unit(self, points: np.ndarray) -> np.ndarray:
        return (points - self._low_D) / self._width_D
