"""A neural acquisition process: a transformer decides, meta-trained by reinforcement learning.

After NAP (Maraval et al., NeurIPS 2023, arXiv 2305.15930) and MetaBO (Volpp et al., ICLR 2020,
arXiv 1904.02642). One network serves all search spaces; each space has its own embedding.

1. Surrogate. A Gaussian process with learned scales predicts every cell from the evidence and the
   trials. The cell's mean and deviation are part of the state, as in MetaBO.
2. History. Cells attend to the evidence's rows once, and to the trials at every step. Attention is
   biased towards near rows, with one learned length per head.
3. Heads. One head gives each cell's acquisition value, one predicts each cell's score.

Meta-training plays episodes on the training experiments, several episodes per problem. The loss is
REINFORCE plus NAP's auxiliary loss. REINFORCE minimises the best regret so far, summed over the
trials left; its baseline is the mean of the problem's other episodes. The auxiliary loss is the
negative log likelihood of the cells' scores. Each problem's evidence is varied: thinned, noisy,
tilted, or drifting with fidelity. An experiment without evidence gets a tilted and noisy copy of
itself as evidence.

At play the untried cell with the greatest acquisition value is tried.

Settings were chosen on the low experiments alone (docs/experiments.md).
"""

import functools
from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np

from autollm_jax.baselines.acquisition_network import (
    Inputs,
    Settings,
    State,
    View,
    advance,
    decide,
    look,
    of_space,
    regard,
)
from autollm_jax.baselines.acquisition_training import PARAMETER, learn
from autollm_jax.baselines.base import Candidates, Problem
from autollm_jax.forecasts.gathering import TargetScale
from autollm_jax.forecasts.problem_arrays import bucket, pad, read_target
from autollm_jax.gym.experiments import Experiment

TRIALS = 16  # the latest trials that the network reads at play
DEFAULT = Settings()


@functools.partial(jax.jit, static_argnums=(2,))
def _look(params: dict, inputs: Inputs, s: Settings) -> tuple[View, State]:
    return look(params, inputs, regard(params, inputs), TRIALS, s)


@functools.partial(jax.jit, static_argnums=(6,))
def _values(params, view, state, cells_T, scores_T, made: jax.Array, s: Settings) -> jax.Array:
    """Return acquisition values [C] after `made` trials."""

    def take(t, state):
        return advance(params, view, state, cells_T[t], scores_T[t])

    return decide(params, view, jax.lax.fori_loop(0, made, take, state), s)[0]


class NeuralAcquisition:
    """Try the untried cell with the greatest acquisition value.

    Args:
      problem: the setting, its evidence and the budget.
      seed: not used, since nothing is drawn at play.
      learned: the result of `learn`.
      settings: sizes of the network that `learned` belongs to.
    """

    @classmethod
    def learn(
        cls,
        training: Sequence[Experiment],
        seed: int,
        progress: bool,
        share: float = 1.0,
        settings: Settings = DEFAULT,
    ) -> dict[str, np.ndarray]:
        """Return the network's parameters, and each search space's layout and scale."""
        steps = max(round(share * settings.steps), 1)
        return learn(training, seed, progress, replace(settings, steps=steps))

    def __init__(self, problem: Problem, seed: int, learned: dict, settings: Settings = DEFAULT):
        del seed  # Nothing is drawn.
        self._settings = settings
        self._candidates = Candidates(problem.setting)
        self._scale = TargetScale(problem.setting, problem.evidence)
        self._rows: list[int] = []
        self._losses: list[float] = []
        known, context, _ = read_target(problem.setting, problem.evidence, learned, settings.rows)
        named = {k: v for k, v in learned.items() if k.startswith(PARAMETER)}
        shared = {k.removeprefix(PARAMETER): v for k, v in named.items()}
        self._params = of_space(shared, 0 if known is None else known + 1)
        rows, cells = settings.rows + 64, bucket(len(context.cells_RZ))
        inputs = Inputs(
            pad(context.rows_NZ, rows),
            pad(context.scores_N, rows),
            pad(context.experiments_N.astype(np.int32), rows),
            pad(np.ones(len(context.scores_N), bool), rows),
            pad(context.cells_RZ, cells),
            pad(np.ones(len(context.cells_RZ), bool), cells),
        )
        self._view, self._start = _look(self._params, inputs, settings)

    def ask(self) -> dict:
        rows = self._candidates.untried
        if self._rows:
            scores_T = self._scale.scores(np.array(self._losses)).astype(np.float32)
            scores_T = pad(scores_T[-TRIALS:], TRIALS)
        else:
            scores_T = np.zeros(TRIALS, np.float32)
        cells_T = pad(np.array(self._rows[-TRIALS:], np.int32), TRIALS)
        made = min(len(self._rows), TRIALS)
        values_C = _values(
            self._params, self._view, self._start, cells_T, scores_T, made, self._settings
        )
        values_C = np.asarray(values_C)
        return self._candidates.take(int(rows[np.argmax(values_C[rows])]))

    def tell(self, trial) -> None:
        row = self._candidates.mark(trial)
        if row is not None:
            self._rows.append(row)
            self._losses.append(trial.loss(self._candidates.setting))
