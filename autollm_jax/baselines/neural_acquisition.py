"""A neural acquisition process: a transformer decides, meta-trained by reinforcement learning.

After NAP (Maraval et al., NeurIPS 2023, arXiv 2305.15930) and MetaBO (Volpp et al., ICLR 2020,
arXiv 1904.02642). One network for all search spaces, each with an embedding of its own:

1. Surrogate. A Gaussian process with learned scales says what the evidence, and then the trials,
   make of every cell: its mean and deviation are part of the state, as in MetaBO.
2. History. Cells attend to the evidence's rows, once, and to the trials, at every step; attention
   is biased towards what is near (a learned length per head).
3. Heads. One gives the acquisition value of each cell, one predicts its score.

Meta-training plays episodes on the training experiments, several at once on each problem:
REINFORCE on the sum of the best regret so far over the trials left, the other episodes of the
problem as its baseline, plus the auxiliary loss of NAP, the negative log likelihood of the cells'
scores. Problems are varied: evidence thinned, noisy, tilted, or drifting with fidelity. Where an
experiment has none, its evidence is a made-up cheaper run: itself, tilted and noisy.

At play the untried cell with the greatest acquisition value is taken.

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

TRIALS = 16  # that play remembers
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
    """Try the untried cell with the greatest acquisition value."""

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
