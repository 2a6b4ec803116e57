"""Cross-validation: compares methods on changed copies of the training experiments.

The held-out experiments are not used, so the comparison may guide the choice of methods and
settings. The pairs are drawn as for the training of policies (`curriculum.pairs`), with another
seed and without the synthetic prior: sub-grids, shifted axes, noise, other names, and cheaper
copies where a table has no cheaper experiment.
"""

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from autollm_jax.curriculum.pairs import CurationConfig, Pair, curate
from autollm_jax.evaluation.runner import Game, Player
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.experiments import Experiment
from autollm_jax.progress_bar import progress_bar

SEED = 777_000  # far from the seeds of the training pairs
PAIRS_PER_FAMILY = 3
TRIALS = (1, 3, 5)


def pairs_of(training: Sequence[Experiment], pairs: int, seed: int) -> list[Pair]:
    """Draw pairs of changed copies; every task and source has the same share."""
    config = CurationConfig(
        seed=SEED + seed,
        pairs=pairs,
        synthetic=0.0,
        unchanged=0.15,
        pairs_per_family=PAIRS_PER_FAMILY,
        all_evidence=0.8,
        no_evidence=0.0,
    )
    return curate(training, config)


def cross_validate(
    players: Mapping[str, Player], pairs: Sequence[Pair], budget: int
) -> dict[str, dict[str, np.ndarray]]:
    """Play every method on the pairs.

    Returns:
      Arrays [budget + 2] by method, then by `task/source` and `all` (the mean over tasks of the
      mean over sources). An array holds the mean regret after each trial, then the share of invalid
      calls and the share of matched calls.
    """
    found = {}
    bar = progress_bar(players.items(), "cross-validate", unit="method")
    for name, player in bar:
        bar.set_postfix_str(name)
        games = [Game(Episode(p.target, p.evidence, budget), n) for n, p in enumerate(pairs)]
        player(games)
        rows = collections.defaultdict(list)
        for game in games:
            target, trials = game.episode.setting, game.episode.trials
            regrets = [game.episode.best_regret(k + 1) for k in range(budget)]
            invalid = np.mean([not t.valid for t in trials] or [0.0])
            matched = np.mean([t.matched for t in trials] or [0.0])
            rows[f"{target.task}/{target.source}"].append([*regrets, invalid, matched])
        means = {key: np.mean(values, axis=0) for key, values in sorted(rows.items())}
        tasks = collections.defaultdict(list)
        for key, mean in means.items():
            tasks[key.split("/")[0]].append(mean)
        means["all"] = np.mean([np.mean(values, axis=0) for values in tasks.values()], axis=0)
        found[name] = means
    return found


def table(found: Mapping[str, Mapping[str, np.ndarray]], budget: int) -> str:
    """Format the result of `cross_validate` as text, one line per method and group."""
    shown = [k for k in TRIALS if k <= budget]
    lines = [f"{'method':20}{'experiments':28}" + "".join(f"{k:>8}" for k in shown)]
    lines[0] += f"{'invalid':>10}{'matched':>9}"
    for method, groups in found.items():
        for group, values in groups.items():
            regrets = "".join(f"{values[k - 1]:8.3f}" for k in shown)
            lines.append(f"{method:20}{group:28}{regrets}{values[-2]:10.1%}{values[-1]:9.1%}")
    return "\n".join(lines)
