"""Plays held-out experiments as Optuna studies, to compare samplers.

    played = play(METHODS["tpe_added"], target, evidence, seed=0)

1. The space's dimensions become parameters of a study (`Parameters`).
2. A method makes the study: a sampler, and what the sampler is given of the evidence.
3. The study optimises: each trial is answered by the nearest measured configuration.
4. The regrets after each trial, and the time that the sampler took, are what is compared.
"""

import dataclasses
import functools
import importlib.util
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, create_trial

from autollm_jax.advise.checking import file_of
from autollm_jax.advise.decider import Decider
from autollm_jax.advise.optuna_sampler import AutoLLMSampler
from autollm_jax.evaluation.statistics import Bootstrap, Interval, Unit
from autollm_jax.forecasts.coordinates import project
from autollm_jax.forecasts.gathering import TargetScale, gather
from autollm_jax.forecasts.relevance import relevant_evidence
from autollm_jax.gym.environment import Episode
from autollm_jax.gym.environment import Trial as Answer
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.runs import runs_key
from autollm_jax.gym.settings import Setting
from autollm_jax.gym.spaces import Dimension, Space

BUDGET = 5
ENQUEUED = 2  # configurations, the best one of each of so many experiments
ROWS, PROCESS_ROWS = 400, 200  # added trials; a Gaussian process takes time cubic in them
OURS = "autollm"


@dataclasses.dataclass(frozen=True)
class Parameters:
    """A space's dimensions as parameters of a study.

    A number is a float within the dimension's extent, a category is a category, and a mixture has
    one float from 0 to 1 for each component; the objective divides them by their sum.

    >>> space = Space((Dimension("rate", "log-ordinal", (1e-4, 1e-3)),
    ...                Dimension("mixture", "simplex", ("web", "code"))))
    >>> list(Parameters(space).distributions)
    ['rate', 'mixture.web', 'mixture.code']
    >>> Parameters(space).of_point(np.array([0.5, 0.25, 0.75]))["mixture.code"]
    0.75
    """

    space: Space

    @functools.cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The parameters by name."""
        made: dict[str, BaseDistribution] = {}
        for dimension in self.space.dimensions:
            if dimension.kind == "categorical":
                made[dimension.name] = CategoricalDistribution(dimension.choices)
            elif dimension.kind == "simplex":
                made |= {name: FloatDistribution(0.0, 1.0) for name in _components(dimension)}
            else:
                low, high = map(float, dimension.extent)
                made[dimension.name] = FloatDistribution(low, high, log=dimension.is_log)
        return made

    def suggest(self, trial: Trial) -> dict:
        """Return the configuration that a trial suggests."""
        params: dict[str, Any] = {}
        for name, each in self.distributions.items():
            if isinstance(each, CategoricalDistribution):
                params[name] = trial.suggest_categorical(name, each.choices)
            else:
                assert isinstance(each, FloatDistribution)
                params[name] = trial.suggest_float(name, each.low, each.high, log=each.log)
        return self.configuration(params)

    def configuration(self, params: Mapping[str, Any]) -> dict:
        """Return the configuration of parameters; weights are divided by their sum."""
        config = {}
        for dimension in self.space.dimensions:
            if dimension.kind == "simplex":
                weights = [params[name] for name in _components(dimension)]
                weights = weights if any(weights) else [1.0] * len(weights)
                shares = [weight / sum(weights) for weight in weights]
                config[dimension.name] = dict(zip(dimension.choices, shares, strict=True))
            else:
                config[dimension.name] = params[dimension.name]
        return config

    def of_point(self, point_D: np.ndarray) -> dict:
        """Return the parameters at unit coordinates [D']; those beyond the extent are moved to it.

        Numbers between a dimension's choices are kept.
        """
        made, start = {}, 0
        for dimension in self.space.dimensions:
            units = np.clip(point_D[start : start + dimension.width], 0.0, 1.0).tolist()
            start += dimension.width
            if dimension.kind == "categorical":
                made[dimension.name] = dimension.choices[int(np.argmax(units))]
            elif dimension.kind == "simplex":
                made |= dict(zip(_components(dimension), units, strict=True))
            else:
                low, high = map(float, dimension.extent)
                number = (
                    low * (high / low) ** units[0]
                    if dimension.is_log
                    else low + units[0] * (high - low)
                )
                made[dimension.name] = min(max(number, low), high)
        return made


def _components(dimension: Dimension) -> list[str]:
    return [f"{dimension.name}.{part}" for part in dimension.choices]


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """What a method may know of a study before its first trial.

    Attributes:
      setting: the target, without outcomes.
      evidence: cheaper experiments.
      seed: of the sampler.
      budget: trials that the study will have.
      decider: who decides for our sampler; None for the shipped agent.
    """

    setting: Setting
    evidence: Sequence[Experiment]
    seed: int
    budget: int = BUDGET
    decider: Decider | None = None

    @property
    def parameters(self) -> Parameters:
        return Parameters(self.setting.space)

    def size(self, params: Mapping) -> float:
        """Return the size of parameters, known before a run: that of the nearest measured row."""
        point_D = self.setting.space.to_unit(self.parameters.configuration(params))
        return float(self.setting.sizes_R[self.setting.nearest_row(point_D)])

    def added(self, rows: int) -> list[FrozenTrial]:
        """Return the evidence as finished trials, those of the nearest experiment last.

        A value is a regret, 0 for an experiment's best run and 1 for its median one and for a
        failed one, so that experiments can be compared. Each experiment gives an equal share.
        """
        found = gather(self.setting, self.evidence, rows)
        make, distributions = self.parameters.of_point, self.parameters.distributions
        trials = [
            create_trial(params=make(point_D), distributions=distributions, value=float(score))
            for point_D, score in zip(found.points_ND, found.scores_N, strict=True)
        ]
        return trials[::-1]

    def enqueued(self) -> list[dict]:
        """Return the best configurations of the nearest experiments, the nearest one's first."""
        setting, found = self.setting, []
        for each in relevant_evidence(self.evidence, setting):
            best = each.configurations[each.outcomes.best_row]
            [point_D] = project([best], each.space, setting.space, setting.default)
            params = self.parameters.of_point(point_D)
            if params not in found:
                found.append(params)
        return found[:ENQUEUED]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A study before its first trial.

    Attributes:
      study: with its sampler, and what it knows of the evidence.
      scale: brings the target's outcomes to the scale of added trials; None for outcomes as they
        are.
    """

    study: optuna.Study
    scale: TargetScale | None = None


def _prepared(asked: Asked, sampler: BaseSampler) -> Prepared:
    direction = "minimize" if asked.setting.objective.minimize else "maximize"
    return Prepared(optuna.create_study(sampler=sampler, direction=direction))


def _with_added(asked: Asked, sampler: BaseSampler, trials: Sequence[FrozenTrial]) -> Prepared:
    study = optuna.create_study(sampler=sampler, direction="minimize")
    study.add_trials(trials)
    return Prepared(study, TargetScale(asked.setting, asked.evidence))


def _with_enqueued(asked: Asked, sampler: BaseSampler) -> Prepared:
    prepared = _prepared(asked, sampler)
    for params in asked.enqueued():
        prepared.study.enqueue_trial(params)
    return prepared


def _autollm(asked: Asked) -> Prepared:
    rows, target, hints = file_of(asked.evidence, asked.setting)
    sampler = AutoLLMSampler(
        rows, target, hints=hints, budget=asked.budget, decider=asked.decider, seed=asked.seed,
        space=asked.parameters.distributions, size=asked.size,
    )  # fmt: skip
    return _prepared(asked, sampler)


def _tpe_added(asked: Asked) -> Prepared:
    return _with_added(asked, TPESampler(seed=asked.seed), asked.added(ROWS))


def _tpe_enqueued(asked: Asked) -> Prepared:
    return _with_enqueued(asked, TPESampler(seed=asked.seed, n_startup_trials=ENQUEUED))


def _gp_added(asked: Asked) -> Prepared:
    return _with_added(asked, GPSampler(seed=asked.seed), asked.added(PROCESS_ROWS))


def _gp_enqueued(asked: Asked) -> Prepared:
    return _with_enqueued(asked, GPSampler(seed=asked.seed, n_startup_trials=ENQUEUED))


def _cma_es_added(asked: Asked) -> Prepared:
    """Start at the Gaussian of the evidence's best trials, as Optuna's `source_trials` does it.

    The trials are in the study besides, else it would draw its first trial at random: a study
    without finished trials knows no parameters. CMA-ES leaves categories to chance.
    """
    kept: dict[str, BaseDistribution] = {
        name: each
        for name, each in asked.parameters.distributions.items()
        if isinstance(each, FloatDistribution) and not each.single()
    }
    trials = [
        create_trial(
            params={name: trial.params[name] for name in kept},
            distributions=kept,
            value=trial.value,
        )
        for trial in asked.added(ROWS)
    ]
    source = trials if kept and trials else None
    sampler = CmaEsSampler(seed=asked.seed, source_trials=source, warn_independent_sampling=False)
    return _with_added(asked, sampler, trials)


def _cma_es_enqueued(asked: Asked) -> Prepared:
    sampler = CmaEsSampler(seed=asked.seed, warn_independent_sampling=False)
    return _with_enqueued(asked, sampler)


def _random(asked: Asked) -> Prepared:
    return _prepared(asked, RandomSampler(seed=asked.seed))


METHODS: dict[str, Callable[[Asked], Prepared]] = {
    OURS: _autollm,
    "tpe_added": _tpe_added,
    "tpe_enqueued": _tpe_enqueued,
    "gp_added": _gp_added,
    "gp_enqueued": _gp_enqueued,
    "cma_es_added": _cma_es_added,
    "cma_es_enqueued": _cma_es_enqueued,
    "random": _random,
}


def is_installed(method: str) -> bool:
    """Whether the packages of a method are there: Optuna's Gaussian process needs torch."""
    return not method.startswith("gp_") or importlib.util.find_spec("torch") is not None


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
