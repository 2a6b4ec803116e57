"""How difficult tables are: random, default, the best cheap baseline, and what could be known.

For each task and source the held-out experiments are played on the terms of the evaluation. What
could be known is no method: it reads the held-out table itself (`ceiling.py`).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from autollm_jax.evaluation.ceiling import best_regrets
from autollm_jax.evaluation.runner import Game, Player
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.splits import Split, evidence_for
from autollm_jax.progress_bar import progress_bar

TRIALS = (1, 3, 5)


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """Mean regrets [len(TRIALS)] over the held-out experiments of one task of one source.

    Attributes:
      task, source: the table.
      experiments: the number of held-out experiments.
      players: by player, in the order given.
      known: of what could be known.
    """

    task: str
    source: str
    experiments: int
    players: Mapping[str, np.ndarray]
    known: np.ndarray

    def best(self, names: Sequence[str]) -> str:
        """Return which of some players has the lowest regret, the mean over `TRIALS`."""
        return min(names, key=lambda name: float(self.players[name].mean()))


def difficulties(
    split: Split,
    players: Mapping[str, Player],
    predict: Callable[[Experiment], np.ndarray],
    seeds: Sequence[int],
) -> list[Difficulty]:
    """Play the held-out experiments of every task and source; shows a progress bar.

    Args:
      split: training experiments, which are the evidence, and held-out ones.
      players: by name.
      predict: experiment -> each configuration's loss (lower is better) [R], predicted without its
        own outcome.
      seeds: one episode per experiment and seed.

    Returns:
      One entry per task and source, in their order; none without held-out experiments.
    """
    groups: dict[tuple[str, str], list[Experiment]] = {}
    for target in sorted(split.held_out, key=lambda e: (e.task, e.source, e.id)):
        groups.setdefault((target.task, target.source), []).append(target)
    found = []
    with progress_bar(total=len(groups) * (len(players) + 1), unit="method") as bar:
        for (task, source), targets in groups.items():
            regrets = {}
            for name, player in players.items():
                bar.set_description(f"{task}/{source} {name}")
                regrets[name] = _played(player, targets, split, seeds)
                bar.update()
            bar.set_description(f"{task}/{source} could be known")
            curves_EK = [best_regrets(target, predict(target), max(TRIALS)) for target in targets]
            known = np.mean(curves_EK, axis=0)[[k - 1 for k in TRIALS]]
            bar.update()
            found.append(Difficulty(task, source, len(targets), regrets, known))
    return found


def _played(
    player: Player, targets: Sequence[Experiment], split: Split, seeds: Sequence[int]
) -> np.ndarray:
    games = [
        Game(Episode(target, evidence_for(target, split.training), max(TRIALS)), seed)
        for target in targets
        for seed in seeds
    ]
    player(games)
    return np.mean([[game.episode.best_regret(k) for k in TRIALS] for game in games], axis=0)
