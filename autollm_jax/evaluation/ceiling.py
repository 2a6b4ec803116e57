"""What could be known at best: the regret of somebody who reads the target's own table.

Every cell is predicted from all the other cells of that very table, and cells are tried in the
order of the predictions. So nothing is missing but what sets a cell apart from its neighbours: the
luck of its run, and what no smooth landscape explains. It is a yardstick and no method: methods see
cheaper experiments only. At one trial a method that stays below it was lucky, or knew a cell from
cheap runs of the same configuration; after several, methods have also learned from their trials.
"""

from collections.abc import Callable, Sequence

import numpy as np

from autollm_jax.evaluation.summary import ALL, Results
from autollm_jax.gym.experiments import Experiment


def ceilings(
    results: Results,
    experiments: Sequence[Experiment],
    predict: Callable[[Experiment], np.ndarray],
) -> dict[str, dict[str, float]]:
    """Score the yardstick on the scored experiments.

    Args:
      results: say which tasks and budgets there are.
      experiments: the scored ones, open.
      predict: predicts each cell's loss (lower is better) [R] without its own outcome.

    Returns:
      {TASK: {"1": mean regret after one trial, "3": …}}, with a TASK named `all`, in which tasks
      weigh the same.
    """
    curves = {
        task: np.mean(
            [_curve(e, predict, results.budget) for e in experiments if e.task == task], 0
        )
        for task in results.tasks
    }
    curves[ALL] = np.mean(list(curves.values()), axis=0)
    return {
        task: {str(k): float(curve[k - 1]) for k in results.budgets}
        for task, curve in curves.items()
    }


def _curve(experiment: Experiment, predict, budget: int) -> np.ndarray:
    """Return the best regret after each of `budget` trials in the order of the predictions."""
    order = np.argsort(predict(experiment), kind="stable")[:budget]
    best = np.minimum.accumulate(experiment.outcomes.regrets_R[order])
    return np.concatenate([best, np.full(budget - len(best), best[-1])])
