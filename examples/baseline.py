"""Write a baseline of your own and score it: python examples/baseline.py"""

from pathlib import Path

import numpy as np

from autollm_jax.baselines import BASELINES, Problem
from autollm_jax.evaluation.runner import Game, play_method
from autollm_jax.gym.environment import Episode, Trial
from autollm_jax.gym.experiments import load_experiments
from autollm_jax.gym.splits import evidence_for, split

GYM_DATA = Path(__file__).parents[1] / "gym_data"


class Dartboard:
    """Tries configurations near the best of the dearest cheap experiment, at random."""

    def __init__(self, problem: Problem, seed: int):
        setting, cheap = problem.setting, problem.evidence[-1]
        best = cheap.configurations[cheap.outcomes.best_row]
        away_R = ((setting.units_RD - setting.space.to_unit(best)) ** 2).sum(1)
        noise_R = 0.1 * np.random.default_rng(seed).random(len(away_R))
        self._setting, self._order = setting, list(np.argsort(away_R + noise_R))

    def ask(self) -> dict:
        return dict(self._setting.configurations[self._order.pop(0)])

    def tell(self, trial: Trial) -> None:
        del trial  # it does not learn


found = split(load_experiments(GYM_DATA, tasks=["pretraining"]), "dev")
for name, method in {"dartboard": Dartboard, "random": BASELINES["random"]}.items():
    games = [
        Game(Episode(target, evidence_for(target, found.training), budget=5), seed)
        for target in found.held_out
        for seed in range(3)
    ]
    play_method(method)(games)
    regrets = [[game.episode.best_regret(k) for k in (1, 3, 5)] for game in games]
    print(name, "mean regret after 1, 3, 5 trials:", np.mean(regrets, axis=0).round(3))
