"""A yardstick: the regret of a search that reads the target's own table.

Every configuration's outcome is predicted from all other outcomes of the same table, and
configurations are tried in the order of the predictions. Only the luck of single runs is missing,
and effects that no smooth landscape explains. It is not a method: methods see cheaper experiments
only. A method can stay below it after one trial by luck, or because a cheap run of the same
configuration told; after several trials methods have also learned from these.
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
      results: the results, for their tasks and budgets.
      experiments: the scored experiments.
      predict: experiment -> each configuration's loss (lower is better) [R], predicted without its
        own outcome.

    Returns:
      {TASK: {"1": mean regret after one trial, "3": …}}, with a TASK named `all`, in which tasks
      weigh the same.
    """
    curves = {
        task: np.mean(
            [best_regrets(e, predict(e), results.budget) for e in experiments if e.task == task], 0
        )
        for task in results.tasks
    }
    curves[ALL] = np.mean(list(curves.values()), axis=0)
    return {
        task: {str(k): float(curve[k - 1]) for k in results.budgets}
        for task, curve in curves.items()
    }


def best_regrets(experiment: Experiment, predicted_R: np.ndarray, budget: int) -> np.ndarray:
    """Return the best regret after each of `budget` trials in the order of predictions [budget]."""
    order = np.argsort(predicted_R, kind="stable")[:budget]
    best = np.minimum.accumulate(experiment.outcomes.regrets_R[order])
    return np.concatenate([best, np.full(budget - len(best), best[-1])])
