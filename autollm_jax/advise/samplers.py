"""Samplers that are compared as studies, and what each is given of the evidence."""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, create_trial

from autollm_jax.advise.checking import file_of
from autollm_jax.advise.decider import Decider
from autollm_jax.advise.optuna_sampler import AutoLLMSampler
from autollm_jax.advise.study_parameters import Parameters
from autollm_jax.forecasts.coordinates import project
from autollm_jax.forecasts.gathering import TargetScale, gather
from autollm_jax.forecasts.relevance import relevant_evidence
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting

BUDGET = 5
ENQUEUED = 2  # configurations, the best one of each of so many experiments
ROWS, PROCESS_ROWS = 400, 200  # added trials; a Gaussian process takes time cubic in them
OURS = "autollm"


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
