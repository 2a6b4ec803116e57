"""The environment: an episode of a few trials on one experiment, with its accounting.

    episode = Episode(experiment, evidence_for(experiment, training), budget=5)
    while not episode.done:
        observation = episode.tell()                  # what may be known
        trial = episode.exec_config({...})            # spends one trial

Only an episode holds the outcomes of the experiment that is scored. A player sees its setting, and
one outcome a trial.
"""

import copy
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np

from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting
from autollm_jax.gym.spaces import InvalidConfiguration

INVALID_PENALTY = 0.05
_COURSE = ("_trials", "_regrets", "_minmax", "_finished")  # what changes in an episode


class EpisodeOver(RuntimeError):
    """The budget is spent or the episode has ended: the caller has a bug if it asks for a trial."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One `exec_config` call, as everybody may see it (regret is the scorer's alone).

    Two trials are equal if all their fields are; a missing outcome (nan) equals a missing one.

    Attributes:
      number: counts from 1.
      proposed: what was asked for: the configuration, or the text that held none.
      config: the measured configuration that answered; None if the trial is invalid.
      outcome: the objective in its own units, nan where none was measured.
      status: `ok`, `diverged`, `infeasible` or `invalid`.
      valid: whether a measured configuration answered.
      matched: whether `config` is the nearest measured one and not what was proposed.
      message: why the trial is invalid, or what it was matched to; else empty.
      row: the row of the setting's configurations that answered; None if the trial is invalid.
    """

    number: int
    proposed: Mapping | str | None
    config: dict | None
    outcome: float
    status: str
    valid: bool
    matched: bool
    message: str
    row: int | None = None

    @property
    def ok(self) -> bool:
        """Whether a run answered that ended with a finite outcome."""
        return self.valid and self.status == "ok" and math.isfinite(self.outcome)

    def loss(self, setting: Setting) -> float:
        """The outcome with lower values better; +inf unless the trial is ok."""
        return setting.objective.sign * self.outcome if self.ok else math.inf

    def _key(self) -> tuple:
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return tuple(None if v is self.outcome and math.isnan(v) else v for v in values)

    def __eq__(self, other) -> bool:
        return self._key() == other._key() if isinstance(other, Trial) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.number, self.row, self.status))


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a method may look at.

    Attributes:
      setting: the question.
      evidence: cheaper experiments, with their outcomes.
      budget_left: trials that are left.
      trials: those made so far.
    """

    setting: Setting
    evidence: tuple[Experiment, ...]
    budget_left: int
    trials: tuple[Trial, ...]


class Episode:
    """Up to `budget` trials on one experiment.

    >>> from autollm_jax.gym.experiments import Fidelity, make_experiment
    >>> from autollm_jax.gym.spaces import Dimension, Space
    >>> experiment = make_experiment(
    ...     source="mine", task="pretraining", name="1M",
    ...     space=Space((Dimension("rate", "log-ordinal", (1e-4, 1e-3, 1e-2)),)),
    ...     fidelity=Fidelity("low", parameters=1e6, tokens=1e9, flops=6e15),
    ...     configurations=[{"rate": 1e-4}, {"rate": 1e-3}, {"rate": 1e-2}],
    ...     outcomes=[3.0, 2.0, 4.0], default={"rate": 1e-4}, default_origin="the first")
    >>> episode = Episode(experiment, evidence=(), budget=2)
    >>> trial = episode.exec_config({"rate": 1e-4})
    >>> trial.outcome, trial.status, episode.best_regret()
    (3.0, 'ok', 1.0)
    >>> episode.exec_config({"rate": 1.1e-3}).message
    'not in the table; the nearest measured is rate 0.001'
    >>> episode.best_regret(), episode.done
    (0.0, True)

    Args:
      experiment: the target; players get its setting.
      evidence: experiments that may be looked at.
      budget: the number of trials.
      matching: whether an off-grid or unmeasured configuration is replaced by the nearest measured
        one; otherwise it is invalid.
      invalid_penalty: what an invalid action costs in reward.
    """

    def __init__(
        self,
        experiment: Experiment,
        evidence: Sequence[Experiment],
        budget: int,
        matching: bool = True,
        invalid_penalty: float = INVALID_PENALTY,
    ):
        if budget < 1:
            raise ValueError(f"budget is {budget}; accepted is 1 or more")
        for other in evidence:
            if not isinstance(other, Experiment) or other.id == experiment.id:
                raise ValueError(f"{other.id} cannot be evidence for {experiment.id}")
        self.setting = experiment.setting
        self._outcomes = experiment.outcomes
        self.evidence = tuple(evidence)
        self.budget = budget
        self.matching = matching
        self.invalid_penalty = invalid_penalty
        self._trials: list[Trial] = []
        self._regrets: list[float] = []
        self._minmax: list[float] = []
        self._finished = False

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(self._trials)

    @property
    def done(self) -> bool:
        return self._finished or len(self._trials) >= self.budget

    def tell(self) -> Observation:
        """Return what is known so far."""
        left = 0 if self.done else self.budget - len(self._trials)
        return Observation(self.setting, self.evidence, left, self.trials)

    def fork(self) -> "Episode":
        """Return a copy, in which one can go on without a change to this episode."""
        other = copy.copy(self)
        other._trials, other._regrets = list(self._trials), list(self._regrets)
        other._minmax = list(self._minmax)
        return other

    @property
    def course(self) -> dict:
        """All that has happened in it, for `follow`; small, without any table."""
        return {name: getattr(self, name) for name in _COURSE}

    def follow(self, course: Mapping) -> None:
        """Take the course of a copy of this episode, which went on elsewhere."""
        vars(self).update({name: course[name] for name in _COURSE})

    def finish(self) -> None:
        """End the episode early; the remaining trials do not happen."""
        self._finished = True

    def exec_config(self, config: Mapping | None, proposed_text: str | None = None) -> Trial:
        """Run one configuration and spend one trial, whatever is proposed.

        Args:
          config: one value per dimension; None where the player produced none.
          proposed_text: what the player wrote, recorded where `config` is None.

        Raises:
          EpisodeOver: no trial is left.
        """
        if self.done:
            raise EpisodeOver(f"{self.setting.id}: all trials are spent")
        proposed = proposed_text if config is None else config
        number = len(self._trials) + 1
        try:
            if config is None:
                names = ", ".join(self.setting.space.names)
                raise InvalidConfiguration(f"no configuration found; expected values for {names}")
            if not self.matching:
                self.setting.space.validate(config)
            row, matched = self.setting.match(config)
            if matched and not self.matching:
                raise InvalidConfiguration("this configuration was not measured")
        except InvalidConfiguration as error:
            trial = Trial(number, proposed, None, math.nan, "invalid", False, False, str(error))
            regret = minmax = 1.0
        else:
            measured = self._outcomes.measured(row)
            answer = dict(self.setting.configurations[row])
            message = ""
            if matched:
                message = f"not in the table; the nearest measured is {describe_config(answer)}"
            outcome, status, regret, minmax = measured
            trial = Trial(number, proposed, answer, outcome, status, True, matched, message, row)
        self._trials.append(trial)
        self._regrets.append(regret)
        self._minmax.append(minmax)
        return trial

    def best_regret(self, k: int | None = None) -> float:
        """Return the regret of the best of the first `k` trials (None: of all); 1 before any."""
        return min(self._regrets[:k], default=1.0)

    def rewards_of(self, rows: Sequence[int]) -> np.ndarray:
        """Return the reward that trying each of these rows next would bring.

        It is what training may know in hindsight of tables; no player is told it.
        """
        k, now = len(self._trials), self.best_regret()
        regrets = [self._outcomes.measured(row).regret for row in rows]
        return np.maximum(now - np.array(regrets), 0.0) * (self.budget - k) / self.budget

    @property
    def rewards(self) -> list[float]:
        """Per trial the drop in regret it brought, less a penalty if it was invalid.

        A drop counts once for every trial from its own to the last of the budget, over the budget.
        So an episode's return is the mean over k of 1 - (regret after k trials), less penalties: a
        good first trial earns most, and the scores at every k are what is maximised.
        """
        return [
            (self.best_regret(k) - self.best_regret(k + 1)) * (self.budget - k) / self.budget
            - self.invalid_penalty * (not trial.valid)
            for k, trial in enumerate(self._trials)
        ]

    def score_rows(self) -> list[dict]:
        """Return one row per trial for `results.parquet`, without the columns of method and seed.

        `regret` and `regret_minmax` are those of the trial itself; an invalid one scores 1.
        """
        setting = self.setting
        return [
            {
                "task": setting.task,
                "source": setting.source,
                "experiment": setting.name,
                "fidelity": setting.fidelity.level,
                "trial": trial.number,
                "config": json.dumps(trial.config),
                "outcome": trial.outcome,
                "status": trial.status,
                "regret": regret,
                "regret_minmax": minmax,
                "valid": trial.valid,
                "matched": trial.matched,
            }
            for trial, regret, minmax in zip(self._trials, self._regrets, self._minmax, strict=True)
        ]


def describe_config(config: Mapping) -> str:
    """Write a configuration in a line, numbers with four significant digits, no zero weights."""
    return ", ".join(f"{name} {_describe(value)}" for name, value in config.items())


def _describe(value) -> str:
    if isinstance(value, Mapping):
        return f"({describe_config({name: part for name, part in value.items() if part})})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
