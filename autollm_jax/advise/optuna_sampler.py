"""A sampler for Optuna that knows cheap runs.

    sampler = AutoLLMSampler(evidence="runs.csv", target="parameters=7e9,tokens=2e11")
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=5)

Each trial of the study is an expensive run. Parameters that all trials share are chosen together,
by the advisers and the agent; a conditional parameter, which only some trials have, is drawn at
random. Components of a mixture (shares in the evidence) are chosen as one mixture where a study has
them all; the objective should divide them by their sum.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autollm_jax.advise import optuna_parameters, reading
from autollm_jax.advise.advisor import Advisor
from autollm_jax.advise.columns import Hints
from autollm_jax.advise.decider import Decider, default_decider
from autollm_jax.advise.evidence import SOURCE
from autollm_jax.advise.names import stripped
from autollm_jax.advise.optuna_parameters import Parts
from autollm_jax.advise.question import TASK
from autollm_jax.advise.question import trial as make_trial
from autollm_jax.advise.runs import Run
from autollm_jax.errors import UserError
from autollm_jax.forecasts.advice import decision_of
from autollm_jax.forecasts.advisers import counsel
from autollm_jax.forecasts.coordinates import project
from autollm_jax.forecasts.panel import Panel
from autollm_jax.gym.environment import Observation, Trial
from autollm_jax.gym.outcomes import Objective
from autollm_jax.gym.settings import Fidelity, Setting, design, make_setting
from autollm_jax.gym.spaces import Dimension, Space

FIRST_AT_RANDOM = 4  # trials of a study without evidence
NEAREST, BEST = 4, 256  # experiments whose best configurations are candidates; these in all
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
      space: the parameters that trials will have, if they are known before the first trial. Else
        the first trial is chosen in the evidence's space, and moved into the study's.
      size: returns what the target limits, of a trial's parameters: with the target
        "parameters<=1e8" the number of a model's parameters. Without it the study has no limit.
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
        space: Mapping[str, BaseDistribution] | None = None,
        size: Callable[[dict[str, Any]], float] | None = None,
    ):
        self._independent = RandomSampler(seed=seed)
        self._shared = IntersectionSearchSpace(include_pruned=True)
        self._budget, self._constraints_func = budget, constraints_func
        self._space, self._size = dict(space or {}), size
        self._decider = decider or default_decider()
        self._advisor: Advisor | None = None
        self._mixtures: dict[str, dict[str, str]] = {}  # mixture -> parameter -> component
        # What the evidence alone proposes, by a trial's number and a parameter's name.
        self._proposals: dict[int, dict[str, tuple[Any, Dimension | None]]] = {}
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
            for column in self._advisor.known.of("hyperparameter"):
                if column.mixture:
                    parts = self._mixtures.setdefault(column.mixture, {})
                    parts[stripped(column.name)] = column.meaning

    def reseed_rng(self) -> None:
        self._independent.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that all trials share and that have a choice.

        Before a trial was completed they are those of the failed trial that has the most.
        """
        del trial
        shared = self._space or self._shared.calculate(study)
        if not shared:
            failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
            shared = max((each.distributions for each in failed), key=len, default={})
        return {name: each for name, each in shared.items() if not each.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Choose the shared parameters together."""
        self._raise_error_if_multi_objective(study)
        if not search_space:
            self._propose(study, trial)
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
        known = self._advisor.question.setting.space.dimensions if self._advisor else ()
        parts = optuna_parameters.parts_of(search_space, self._mixtures, known)
        panel = self._panel(study, parts, past)
        trials = self._trials(panel, parts, past)
        left = max(self._budget - len(trials), 1)
        seen = Observation(panel.setting, panel.evidence, left, tuple(trials))
        decision = decision_of(panel, seen, seed=trial.number)
        if decision is None:  # every candidate was tried
            return self._drawn(study, trial, search_space)
        chosen = self._decider.decide(panel, seen, decision)
        config = panel.setting.configurations[decision.offer.rows[chosen.place]]
        return optuna_parameters.outside(parts, config)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Take the evidence's proposal in a first trial, else draw."""
        self._raise_error_if_multi_objective(study)
        proposal = self._proposals.get(trial.number, {})
        if param_name in proposal:
            proposed, origin = proposal[param_name]
            value = optuna_parameters.moved(proposed, origin, param_distribution)
            if value is not None:
                return value
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Keep a trial's constraints where Optuna's samplers keep them."""
        if self._constraints_func is not None and state in (TrialState.COMPLETE, TrialState.PRUNED):
            constraints = tuple(map(float, self._constraints_func(trial)))
            study._storage.set_trial_system_attr(trial._trial_id, CONSTRAINTS, constraints)
        self._proposals.pop(trial.number, None)
        self._independent.after_trial(study, trial, state, values)

    def _drawn(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        draw = self._independent.sample_independent
        return {name: draw(study, trial, name, each) for name, each in search_space.items()}

    def _propose(self, study: Study, trial: FrozenTrial) -> None:
        """Keep what the evidence proposes for a trial, before the study's space is known.

        Of several such trials that run side by side, each takes the next best proposal. Where
        completed trials share no parameter, all are drawn.
        """
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        if self._advisor is None or study.get_trials(deepcopy=False, states=ended):
            return
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        place = sum(each.number < trial.number for each in running)
        ranked = self._advisor.ask().ranked
        if place >= len(ranked):
            return
        config, space = ranked[place].config, self._advisor.question.setting.space
        proposal: dict[str, tuple[Any, Dimension | None]] = {
            name: (config[name], space[name]) for name in space.names
        }
        for mixture, parts in self._mixtures.items():
            shares = proposal.pop(mixture)[0]
            proposal |= {name: (shares[part], None) for name, part in parts.items()}
        self._proposals[trial.number] = proposal

    def _panel(self, study: Study, parts: Parts, past: Sequence[FrozenTrial]) -> Panel:
        """Make the advisers of a search space; they are kept until a trial lies off their cells."""
        space = Space(tuple(each.dimension for each in parts))
        key = tuple(map(repr, parts))
        configs = [optuna_parameters.inside(parts, each.params) for each in past]
        panel = self._panels.get(key)
        if panel is not None and not any(panel.setting.match(c).matched for c in configs):
            return panel
        setting = self._setting(study, parts, space, configs)
        evidence = self._advisor.question.evidence if self._advisor else ()
        self._panels[key] = counsel(setting, evidence)
        return self._panels[key]

    def _setting(
        self, study: Study, parts: Parts, space: Space, configs: Sequence[Mapping]
    ) -> Setting:
        """Lay out what a trial is chosen from: a design, the evidence's best, and past trials."""
        minimize = study.direction != StudyDirection.MAXIMIZE
        objective, fidelity = Objective("value", minimize), Fidelity("high", 0.0, 0.0, 1.0)
        default = space.from_unit(np.full(space.width, 0.5))
        best: list[Mapping] = []
        limit, facts = None, {}
        if self._advisor is not None:
            asked = self._advisor.question.setting
            objective, fidelity, facts = asked.objective, asked.fidelity, asked.facts
            limit = asked.limit if self._size is not None else None
            default = space.from_unit(
                project([asked.default], asked.space, space, default)[0].clip(0, 1)
            )
            nearest = self._advisor.question.evidence[:NEAREST]
            for each in nearest:
                order = np.argsort(each.outcomes.losses_R, kind="stable")[: BEST // len(nearest)]
                found = [each.configurations[row] for row in order]
                units_ND = project(found, each.space, space, default).clip(0.0, 1.0)
                best += [space.from_unit(unit_D) for unit_D in units_ND]
        chosen = [default, *design(space), *best, *configs]
        sizes = None
        if limit is not None:
            assert self._size is not None
            sizes = [self._size(optuna_parameters.outside(parts, config)) for config in chosen]
            if not min(sizes) <= limit["at_most"]:
                raise UserError(
                    f"size: the least of {len(sizes)} candidates is {min(sizes):.4g}, over the "
                    f"target's {limit['at_most']:.4g}; accepted is a function in the target's units"
                )
        return make_setting(
            source=SOURCE, task=TASK, name="study", space=space, fidelity=fidelity,
            objective=objective, default=default, configurations=chosen, limit=limit,
            parameters=sizes, facts=facts,
        )  # fmt: skip

    def _trials(self, panel: Panel, parts: Parts, past: Sequence[FrozenTrial]) -> list[Trial]:
        """Say what the study's trials brought; one that runs is taken to bring what is expected."""
        found: list[Trial] = []
        for each in sorted(past, key=lambda t: t.state == TrialState.RUNNING):
            config = optuna_parameters.inside(parts, each.params)
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
