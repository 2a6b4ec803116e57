"""Plays held-out experiments as Optuna studies, to compare samplers.

    played = play("tpe_added", target, evidence, seed=0)

1. The space's dimensions become parameters of a study (`study_parameters`).
2. A method makes the study: a sampler, and what the sampler is given of the evidence (`samplers`).
3. The study optimises: each trial is answered by the nearest measured configuration.
4. The regrets after each trial, and the time that the sampler took, are what is compared.
"""

import dataclasses
import math
import time
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import optuna
from optuna.trial import Trial

from autollm_jax.advise.decider import Decider
from autollm_jax.advise.samplers import BUDGET, METHODS, OURS, Asked
from autollm_jax.evaluation.statistics import Bootstrap, Interval, Unit
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.environment import Trial as Answer
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.runs import runs_key


@dataclasses.dataclass(frozen=True)
class Played:
    """One study.

    Attributes:
      method: a key of METHODS.
      unit: the study's source and task, its experiment, and its seed.
      regrets: best regret after each trial.
      seconds: of the processor, a trial: all but the look-ups, the making of the sampler and its
        reading of the evidence included.
    """

    method: str
    unit: Unit
    regrets: tuple[float, ...]
    seconds: float


def play(
    method: str,
    target: Experiment,
    evidence: Sequence[Experiment],
    seed: int,
    budget: int = BUDGET,
    decider: Decider | None = None,
) -> Played:
    """Play one experiment as a study of a method's sampler."""
    episode = Episode(target, evidence, budget)
    asked = Asked(episode.setting, episode.evidence, seed, budget, decider)
    losses: list[float] = []
    looked_up = 0.0

    def objective(trial: Trial) -> float:
        nonlocal looked_up
        config = asked.parameters.suggest(trial)
        started = time.process_time()
        answer = look_up(episode, config)
        losses.append(answer.loss(episode.setting))
        looked_up += time.process_time() - started
        if not answer.ok:
            return math.nan  # Optuna takes the trial as failed
        if prepared.scale is None:
            return answer.outcome
        return float(prepared.scale.scores(np.array(losses))[-1])

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            started = time.process_time()
            prepared = METHODS[method](asked)
            prepared.study.optimize(objective, n_trials=budget)
            seconds = time.process_time() - started - looked_up
    finally:
        optuna.logging.set_verbosity(level)
    regrets = tuple(episode.best_regret(k) for k in range(1, budget + 1))
    unit = Unit(f"{target.source}/{target.task}", runs_key(target), target.id, seed)
    return Played(method, unit, regrets, seconds / budget)


def look_up(episode: Episode, config: Mapping) -> Answer:
    """Let the nearest measured configuration answer.

    Under a limit it is the nearest one within the limit: a size is known before a run, so that no
    run would be spent on a larger one.
    """
    setting = episode.setting
    if setting.limit is None:
        return episode.exec_config(config)
    away_R = ((setting.units_RD - setting.space.to_unit(config)) ** 2).sum(1)
    row = int(np.where(setting.feasible_R, away_R, math.inf).argmin())
    return episode.exec_config(setting.configurations[row])


@dataclasses.dataclass(frozen=True)
class Compared:
    """A method's mean over its studies; each source and task weighs alike.

    Attributes:
      regrets: after each trial.
      differences: the regrets of our sampler minus the method's, paired; None without ours.
      seconds: of the processor, a trial: the median over the studies, and the greatest.
      by_source: regrets after each trial, by source and task.
    """

    regrets: tuple[Interval, ...]
    differences: tuple[Interval, ...] | None
    seconds: tuple[float, float]
    by_source: dict[str, tuple[float, ...]]


def compare(played: Sequence[Played]) -> dict[str, Compared]:
    """Compare methods that played the same experiments under the same seeds.

    Means and intervals are those of `evaluation.statistics`, a source and task being a stratum.
    """
    methods = list(dict.fromkeys(each.method for each in played))
    studies = {m: {p.unit: p for p in played if p.method == m} for m in methods}
    units = sorted(studies[methods[0]])
    if any(sorted(own) != units for own in studies.values()):
        raise ValueError("methods played different experiments or seeds")
    bootstrap = Bootstrap(units)
    best = {m: np.array([own[unit].regrets for unit in units]) for m, own in studies.items()}
    found = {}
    for method, best_UK in best.items():
        ours = best.get(OURS)
        apart = None if ours is None else tuple(bootstrap.differences(ours, best_UK))
        by_source = {
            source: tuple(best_UK[[unit.task == source for unit in units]].mean(0).tolist())
            for source in dict.fromkeys(unit.task for unit in units)
        }
        spent = [each.seconds for each in studies[method].values()]
        seconds = float(np.median(spent)), max(spent)
        found[method] = Compared(tuple(bootstrap.regrets(best_UK)), apart, seconds, by_source)
    return found
