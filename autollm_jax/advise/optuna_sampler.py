"""A sampler for Optuna that knows cheap runs.

    sampler = AutoLLMSampler(evidence="runs.csv", target="parameters=7e9,tokens=2e11")
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=5)

Each trial of the study is an expensive run. Parameters that all trials share are chosen together,
by the advisers and the agent; a conditional parameter, which only some trials have, is drawn at
random.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autollm_jax.advise import reading
from autollm_jax.advise.advisor import Advisor
from autollm_jax.advise.columns import Hints
from autollm_jax.advise.decider import Agent, Decider, Panels
from autollm_jax.advise.question import SOURCE, TASK
from autollm_jax.advise.question import trial as make_trial
from autollm_jax.advise.runs import Run
from autollm_jax.forecasts.advice import decision_of
from autollm_jax.forecasts.advisers import counsel
from autollm_jax.forecasts.coordinates import project
from autollm_jax.forecasts.panel import Panel
from autollm_jax.gym.environment import Observation, Trial
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.outcomes import Objective
from autollm_jax.gym.settings import Fidelity, Setting, design, make_setting
from autollm_jax.gym.spaces import Dimension, InvalidConfiguration, Space

LISTED = 64  # a whole-number or stepped parameter of at most so many values is listed
FIRST_AT_RANDOM = 4  # trials of a study without evidence
CONSTRAINTS = "constraints"  # the key of a trial's system attributes, as Optuna's samplers use it
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class AutoLLMSampler(BaseSampler):
    """Chooses a study's trials with the evidence of cheap runs.

    Args:
      evidence: cheap runs: rows (mappings by column), a file as `launch/advise.py` reads it, a data
        frame, or a finished Optuna study; None for none.
      target: the size of the study's runs: "parameters=7e9,tokens=2e11" or a mapping; needed with
        evidence of several sizes.
      objective: the evidence's column that the study's value is; guessed where empty.
      hints: more that is known of the columns.
      budget: trials that the study will have, about; the agent plans with it.
      decider: who decides between the advisers; None for the shipped agent.
      seed: of what is drawn at random.
      constraints_func: as in Optuna's samplers: a trial is infeasible where a number is over 0.
    """

    def __init__(
        self,
        evidence=None,
        target: Mapping[str, float | str] | str | None = None,
        *,
        objective: str = "",
        hints: Hints | None = None,
        budget: int = 5,
        decider: Decider | None = None,
        seed: int | None = None,
        constraints_func: Callable[[FrozenTrial], Sequence[float]] | None = None,
    ):
        self._independent = RandomSampler(seed=seed)
        self._shared = IntersectionSearchSpace(include_pruned=True)
        self._budget, self._constraints_func = budget, constraints_func
        self._decider = decider or (Agent() if Agent.is_shipped() else Panels())
        self._advisor: Advisor | None = None
        self._first: tuple[int, dict] | None = None  # number of a trial, and what evidence proposes
        self._panels: dict[tuple, Panel] = {}
        if evidence is not None:
            self._advisor = Advisor.from_runs(
                _rows(evidence),
                target=target or {"tokens": 1.0},
                objective=objective,
                hints=hints,
                decider=self._decider,
                budget=budget,
            )

    def reseed_rng(self) -> None:
        self._independent.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that all trials share and that have a choice."""
        del trial
        shared = self._shared.calculate(study)
        return {name: each for name, each in shared.items() if not each.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Choose the shared parameters together."""
        self._raise_error_if_multi_objective(study)
        if not search_space:
            return {}
        past = [
            each
            for each in study.get_trials(deepcopy=False)
            if each.number != trial.number
            and (each.state in FINISHED or each.state == TrialState.RUNNING)
            and all(name in each.params for name in search_space)
        ]
        told = [each for each in past if each.state == TrialState.COMPLETE]
        if self._advisor is None and len(told) < FIRST_AT_RANDOM:
            return self._drawn(study, trial, search_space)
        names = {name: _Parameter(name, each) for name, each in search_space.items()}
        panel = self._panel(study, names, past)
        trials = self._trials(panel, names, past)
        left = max(self._budget - len(trials), 1)
        seen = Observation(panel.setting, panel.evidence, left, tuple(trials))
        decision = decision_of(panel, seen, seed=trial.number)
        if decision is None:  # every candidate was tried
            return self._drawn(study, trial, search_space)
        chosen = self._decider.decide(panel, seen, decision)
        config = panel.setting.configurations[decision.offer.rows[chosen.place]]
        return {name: each.value(config[name]) for name, each in names.items()}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Take the evidence's proposal in a first trial, else draw."""
        self._raise_error_if_multi_objective(study)
        if self._advisor is not None:
            value = self._proposal(study, trial).get(param_name)
            internal = _internal(param_distribution, value)
            if internal is not None and param_distribution._contains(internal):
                return param_distribution.to_external_repr(internal)
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Keep a trial's constraints where Optuna's samplers keep them."""
        if self._constraints_func is not None and state in (TrialState.COMPLETE, TrialState.PRUNED):
            constraints = tuple(map(float, self._constraints_func(trial)))
            study._storage.set_trial_system_attr(trial._trial_id, CONSTRAINTS, constraints)
        self._independent.after_trial(study, trial, state, values)

    def _drawn(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        draw = self._independent.sample_independent
        return {name: draw(study, trial, name, each) for name, each in search_space.items()}

    def _proposal(self, study: Study, trial: FrozenTrial) -> dict:
        """Return what the evidence proposes beside the study's other trials, once for each trial.

        It serves as long as no trial of the study was completed, so that Optuna knows no space.
        """
        if self._first is not None and self._first[0] == trial.number:
            return self._first[1]
        assert self._advisor is not None
        advisor = self._advisor
        space, names = advisor.question.setting.space, advisor.question.setting.space.names
        for each in study.get_trials(deepcopy=False):
            if each.number == trial.number or not all(name in each.params for name in names):
                continue
            config = {
                name: each.params[name] if space[name].is_numeric else str(each.params[name])
                for name in names
            }
            try:
                advisor = advisor.tell(config, *_outcome(each))
            except InvalidConfiguration:  # beyond what the evidence tried
                continue
        ranked = advisor.ask().ranked
        self._first = trial.number, ranked[0].config if ranked else {}
        return self._first[1]

    def _panel(
        self, study: Study, names: Mapping[str, "_Parameter"], past: Sequence[FrozenTrial]
    ) -> Panel:
        """Make the advisers of a search space; they are kept until a trial lies off their cells."""
        space = Space(tuple(each.dimension for each in names.values()))
        key = tuple(sorted((name, repr(each.distribution)) for name, each in names.items()))
        configs = [_config(names, each) for each in past]
        panel = self._panels.get(key)
        if panel is not None:
            lacking = [c for c in configs if panel.setting.match(c).matched]
            if not lacking:
                return panel
        setting = self._setting(study, space, configs)
        evidence = self._advisor.question.evidence if self._advisor else ()
        self._panels[key] = counsel(setting, evidence)
        return self._panels[key]

    def _setting(self, study: Study, space: Space, configs: Sequence[Mapping]) -> Setting:
        minimize = study.direction != StudyDirection.MAXIMIZE
        objective, fidelity = Objective("value", minimize), Fidelity("high", 0.0, 0.0, 1.0)
        evidence: Sequence[Experiment] = ()
        default = space.from_unit(np.full(space.width, 0.5))
        if self._advisor is not None:
            asked = self._advisor.question.setting
            objective, fidelity = asked.objective, asked.fidelity
            evidence = self._advisor.question.evidence
            origin = asked.space
            default = space.from_unit(
                project([asked.default], origin, space, default)[0].clip(0, 1)
            )
        ran = [
            space.from_unit(unit_D.clip(0.0, 1.0))
            for e in evidence[:4]
            for unit_D in project(e.configurations, e.space, space, default)
        ]
        return make_setting(
            source=SOURCE, task=TASK, name="study", space=space, fidelity=fidelity,
            objective=objective, default=default,
            configurations=[default, *design(space), *ran[:256], *configs],
        )  # fmt: skip

    def _trials(
        self, panel: Panel, names: Mapping[str, "_Parameter"], past: Sequence[FrozenTrial]
    ) -> list[Trial]:
        """Say what the study's trials brought; one that runs is taken to bring what is expected."""
        found: list[Trial] = []
        for each in sorted(past, key=lambda t: t.state == TrialState.RUNNING):
            config = _config(names, each)
            outcome, status = _outcome(each)
            if each.state == TrialState.RUNNING:
                mean_R, _ = panel.predict(found).outcomes()
                outcome, status = float(mean_R[panel.setting.match(config).row]), "ok"
                if math.isnan(outcome):
                    continue
            run = Run(config, {}, {}, outcome, status, f"trial {each.number}")
            found.append(make_trial(len(found) + 1, run, panel.setting))
        return found


def _rows(evidence) -> reading.Rows:
    if isinstance(evidence, reading.Rows):
        return evidence
    if isinstance(evidence, str):
        return reading.read(evidence)
    if isinstance(evidence, Study):
        return reading.of_study(evidence)
    if hasattr(evidence, "to_dict") and hasattr(evidence, "columns"):  # a data frame
        evidence = evidence.to_dict("records")
    return reading.of_mappings(list(evidence))


def _outcome(trial: FrozenTrial) -> tuple[float, str]:
    """Return a finished trial's outcome and status."""
    constraints = trial.system_attrs.get(CONSTRAINTS) or ()
    if any(number > 0 for number in constraints):
        return math.nan, "infeasible"
    value = trial.value if trial.values else None
    if trial.state != TrialState.COMPLETE or value is None or not math.isfinite(value):
        return math.nan, "diverged"
    return float(value), "ok"


def _config(names: Mapping[str, "_Parameter"], trial: FrozenTrial) -> dict:
    return {name: each.inside(trial.params[name]) for name, each in names.items()}


@dataclasses.dataclass(frozen=True)
class _Parameter:
    """One parameter of a study as a dimension, and the way back."""

    name: str
    distribution: BaseDistribution

    @functools.cached_property
    def dimension(self) -> Dimension:
        each = self.distribution
        if isinstance(each, CategoricalDistribution):
            return Dimension(self.name, "categorical", self._labels)
        assert isinstance(each, FloatDistribution | IntDistribution)
        scale = "log-" if each.log else ""
        count = (each.high - each.low) / each.step + 1 if each.step else math.inf
        if count <= LISTED:
            assert each.step is not None
            values = [each.low + n * each.step for n in range(round(count))]
            return Dimension(self.name, f"{scale}ordinal", tuple(values))
        return Dimension(self.name, f"{scale}continuous", bounds=(each.low, each.high))

    @property
    def _labels(self) -> tuple[str, ...]:
        """Name each choice as evidence does; by its number where two have one name."""
        assert isinstance(self.distribution, CategoricalDistribution)
        labels = tuple(map(str, self.distribution.choices))
        distinct = len(set(labels)) == len(labels)
        return labels if distinct else tuple(str(n) for n in range(len(labels)))

    def inside(self, value):
        """Return the dimension's value of a parameter's value."""
        if isinstance(self.distribution, CategoricalDistribution):
            return self._labels[int(self.distribution.to_internal_repr(value))]
        return self.dimension.canonical(value)

    def value(self, inside):
        """Return the parameter's value of the dimension's value."""
        each = self.distribution
        if isinstance(each, CategoricalDistribution):
            return each.choices[self._labels.index(inside)]
        assert isinstance(each, FloatDistribution | IntDistribution)
        number = float(inside)
        if each.step and not each.log:
            number = each.low + round((number - each.low) / each.step) * each.step
        number = min(max(number, each.low), each.high)
        return round(number) if isinstance(each, IntDistribution) else number


def _internal(distribution: BaseDistribution, value) -> float | None:
    """Return Optuna's number for a value that evidence proposes; None where it is none."""
    if value is None or isinstance(value, Mapping):
        return None
    if isinstance(distribution, CategoricalDistribution):
        labels = list(map(str, distribution.choices))
        return float(labels.index(str(value))) if str(value) in labels else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.step and not distribution.log:
        low, step = distribution.low, distribution.step
        number = low + round((number - low) / step) * step
    return float(round(number)) if isinstance(distribution, IntDistribution) else number
