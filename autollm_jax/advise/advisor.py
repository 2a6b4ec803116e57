"""The advisor: the next configuration of an expensive run, with reasons and honest intervals.

>>> import itertools
>>> rows = [
...     {"learning_rate": 2.0**-n, "batch_size": b, "parameters": p, "tokens": 20 * p,
...      "loss": 3 + 0.1 * (n - 9) ** 2 + 0.01 * b / 32 + p**-0.1}
...     for n, b, p in itertools.product(range(6, 13), (32, 64), (1e6, 2e6, 4e6))
... ]
>>> advisor = Advisor.from_runs(rows, target={"parameters": 3e7, "tokens": 6e8}, objective="loss")
>>> advice = advisor.ask()
>>> sorted(advice.config), len(advice.ranked) > 1
(['batch_size', 'learning_rate'], True)
>>> advisor = advisor.tell(advice.config, 3.05)
>>> len(advisor.question.trials)
1
"""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from autollm_jax.advise import intervals, reading, runs
from autollm_jax.advise.cheap_runs import CheapRun, most_telling
from autollm_jax.advise.columns import Hints, Understanding
from autollm_jax.advise.decider import Decider, default_decider
from autollm_jax.advise.explaining import why_not_best
from autollm_jax.advise.intervals import Calibration, Expected
from autollm_jax.advise.notes import notes_of
from autollm_jax.advise.question import TASK, Question, trial
from autollm_jax.advise.question import question as make_question
from autollm_jax.advise.setting import spelled, with_configuration
from autollm_jax.advise.target import Target
from autollm_jax.advise.understanding import understand
from autollm_jax.advise.usage import LeftOut
from autollm_jax.errors import UserError
from autollm_jax.forecasts.advice import decision_of
from autollm_jax.forecasts.advisers import COUNSEL, counsel
from autollm_jax.forecasts.panel import Panel
from autollm_jax.gym.environment import Observation, Trial
from autollm_jax.text.claims import Claim

HANDFUL = 5


@dataclasses.dataclass(frozen=True)
class Ranked:
    """One configuration of the ranked handful.

    Attributes:
      config: the configuration.
      chance: how likely it was to be chosen; `Advice.chances_are` says by whom.
      outcome: predicted, in the objective's units; nan where nothing tells the level.
      interval_80, interval_95: of the outcome.
      beats_best: the chance to beat the best trial by more than the noise; nan before a trial.
      advisers: the regret that each adviser expects to remain after it, over that after the
        adviser's own favourite: 0 is that favourite, 1 no better than a median run.
    """

    config: dict
    chance: float
    outcome: float
    interval_80: tuple[float, float]
    interval_95: tuple[float, float]
    beats_best: float
    advisers: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Advice:
    """What to try next, and why.

    Attributes:
      ranked: the handful, the proposal first; empty where nothing is left to try.
      thinking: the agent's words.
      claims: their statements, each checked.
      stop: whether another expensive run is likely to bring less than the noise.
      expected_gain: over the best trial, in the objective's units; nan before one.
      noise: deviation over seeds at the target, nan where unknown.
      cheap_run: the cheap run that would sharpen the answer most for its cost, or None.
      notes: what the reader should know.
      state: what is known of the level, one of `intervals.STATES`.
      explanation: why the proposal is not the best predicted configuration; "" where it is, or is
        near.
      chances_are: says what the handful's chances are.
    """

    ranked: tuple[Ranked, ...]
    thinking: str
    claims: tuple[Claim, ...]
    stop: bool
    expected_gain: float
    noise: float
    cheap_run: CheapRun | None
    notes: tuple[str, ...]
    state: str
    explanation: str = ""
    chances_are: str = ""

    @property
    def config(self) -> dict:
        """The proposed configuration.

        Raises:
          UserError: nothing is left to try.
        """
        if not self.ranked:
            raise UserError("every configuration was tried; nothing is left to propose")
        return self.ranked[0].config

    def to_json(self) -> dict:
        """Return plain values, nan as None."""
        return {key: _plain(value) for key, value in dataclasses.asdict(self).items()}


def _nothing(made: Sequence[runs.Run], unusable: Sequence[LeftOut]) -> str:
    """Say why no run can be learned from, and what is wanted."""
    said = [f"{count} {status}" for status, count in Counter(run.status for run in made).items()]
    kinds = Counter(each.kind for each in unusable)
    if kinds:
        (kind, count), first = kinds.most_common(1)[0], unusable[0]
        said += [f"{first.place}: {first.reason}", f"{count} of {len(unusable)} rows: {kind}"]
    return (
        f"no run has an outcome to learn from ({'; '.join(said)}); "
        "accepted are finished runs with an outcome, all hyperparameters and positive sizes"
    )


def _plain(value):
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclasses.dataclass(frozen=True, eq=False)
class Advisor:
    """Answers one question; `tell` returns another advisor, which knows one trial more.

    Attributes:
      question: target, evidence, trials.
      known: what the columns of the person's file mean.
      decider: who decides between the advisers.
      calibration: of the intervals.
      budget: expensive runs in all.
    """

    question: Question
    known: Understanding
    decider: Decider
    calibration: Calibration
    budget: int = 5

    @classmethod
    def from_runs(
        cls,
        rows: Sequence[Mapping] | reading.Rows,
        *,
        target: Target | Mapping[str, float | str] | str,
        objective: str = "",
        minimize: bool | None = None,
        hints: Hints | None = None,
        candidates: Sequence[Mapping] | None = None,
        default: Mapping | None = None,
        task: str = TASK,
        decider: Decider | None = None,
        budget: int = 5,
    ) -> "Advisor":
        """Make an advisor from runs.

        Args:
          rows: of runs, by column name; or what `reading.read` returns.
          target: the fidelity asked about: {"parameters": 7e9, "tokens": 2e11}, or such a text.
            Other names are columns that tell experiments apart, with the target's value;
            "parameters<=" limits what a configuration may have.
          objective: the column to be good at; guessed where empty.
          minimize: whether low is good; guessed where None.
          hints: what is known of other columns.
          candidates: configurations to choose from; None for any of the space.
          default: the configuration that would be taken untuned.
          task: what the runs are: architecture, pretraining, grpo or data_mixture.
          decider: who decides; None for the shipped agent.
          budget: expensive runs in all.

        Raises:
          UserError: the rows cannot be used; the message says why and what to do.
        """
        rows = rows if isinstance(rows, reading.Rows) else reading.of_mappings(rows)
        wanted = Target.of(target)
        hints = dataclasses.replace(
            hints or Hints(),
            objective=objective or (hints.objective if hints else ""),
            minimize=minimize if minimize is not None else (hints.minimize if hints else None),
            wanted=tuple(wanted.sizes),
            contexts=tuple(wanted.contexts),
            limited=wanted.quantity,
        )
        known = understand(rows, hints)
        made, unusable = runs.clean(rows, known)
        if not any(run.status == "ok" for run in made):
            raise UserError(_nothing(made, unusable))
        question = make_question(
            made, known, wanted, unusable=unusable, task=task, default=default,
            candidates=candidates,
        )  # fmt: skip
        notes = [*rows.notes, *question.notes]
        question = dataclasses.replace(question, notes=tuple(notes))
        return cls(question, known, decider or default_decider(), Calibration.shipped(), budget)

    def describe(self) -> str:
        """Write how the columns were understood, and what became of the rows."""
        columns, rows = self.known.describe(), self.question.usage.describe()
        return f"columns, as understood:\n{columns}\nrows, as used:\n{rows}"

    def understood(self) -> dict:
        """Return what `describe` writes as plain values, and the target."""
        setting = self.question.setting
        return self.known.understood() | {
            "target": setting.name,
            "rows": self.question.usage.to_json(),
        }

    @functools.cached_property
    def panel(self) -> Panel:
        """The advisers' forecasts."""
        return counsel(self.question.setting, self.question.evidence)

    def tell(self, config: Mapping, outcome: float, status: str = "ok") -> "Advisor":
        """Return an advisor that knows one expensive run more.

        Args:
          config: what was run; it need not have been proposed.
          outcome: the objective; not finite where the run diverged.
          status: ok, diverged or infeasible.

        Raises:
          InvalidConfiguration: the configuration is not in the space.
        """
        setting = self.question.setting
        known = {**config, **spelled(setting.space, config)}  # other names are refused
        valid = setting.space.validate(known)
        if not math.isfinite(outcome) and status == "ok":
            status = "diverged"
        run = runs.Run(valid, {}, {}, outcome, status, "told")
        extended = with_configuration(setting, valid)
        trials = [*self.question.trials]
        trials.append(trial(len(trials) + 1, run, extended))
        question = dataclasses.replace(self.question, setting=extended, trials=tuple(trials))
        advisor = dataclasses.replace(self, question=question)
        if extended is setting and "panel" in self.__dict__:
            advisor.__dict__["panel"] = self.panel  # forecasts are functions of the trials
        return advisor

    def ask(self) -> Advice:
        """Return what to try next."""
        question = self.question
        setting, trials = question.setting, (*question.trials, *self._under_way())
        left = max(self.budget - len(question.trials), 1)
        seen = Observation(setting, question.evidence, left, trials)
        decision = decision_of(self.panel, seen, seed=0)
        found = self._expected(trials)
        noise = intervals.noise_floor(setting, question.evidence, self.panel.unit)
        if decision is None:
            notes = (*question.notes, *notes_of(question, None))
            return Advice((), "", (), True, math.nan, noise, None, notes, found.state)
        chosen = self.decider.decide(self.panel, seen, decision)
        gain, stop = self._stop(found, noise, decision.advice.open_R)
        order = np.argsort(-chosen.chances_C, kind="stable")
        order = [chosen.place, *[int(place) for place in order if place != chosen.place]]
        ranked = [
            self._ranked(decision, place, float(chosen.chances_C[place]), found, noise)
            for place in order[:HANDFUL]
        ]
        row = decision.offer.rows[chosen.place]
        cheap = most_telling(self.panel, question.evidence, setting, row)
        notes = (*question.notes, *notes_of(question, ranked[0].config))
        claims = tuple(chosen.claims)
        why = why_not_best(decision, found, row, chosen.trusted)
        return Advice(
            tuple(ranked), chosen.thinking, claims, stop, gain, noise, cheap, notes, found.state,
            why, chosen.chances_are,
        )  # fmt: skip

    def _under_way(self) -> list[Trial]:
        """Take running configurations as tried, with the outcome that is expected of them."""
        question = self.question
        if not question.running:
            return []
        found = self._expected(question.trials)
        trials = []
        for number, config in enumerate(question.running, len(question.trials) + 1):
            row = question.setting.match(config).row
            run = runs.Run(config, {}, {}, float(found.mean_R[row]), "ok", "running")
            trials.append(trial(number, run, question.setting))
        return trials

    def _expected(self, trials: Sequence[Trial]) -> Expected:
        question = self.question
        prediction = self.panel.predict(trials)
        return intervals.expected(
            question.setting, question.evidence, trials, prediction, self.calibration
        )

    def _best(self) -> float:
        """Return the best outcome so far; nan before one."""
        sign = self.question.setting.objective.sign
        outcomes = [sign * trial.outcome for trial in self.question.trials if trial.ok]
        return sign * min(outcomes) if outcomes else math.nan

    def _stop(self, found: Expected, noise: float, open_R: np.ndarray) -> tuple[float, bool]:
        """Return the expected gain of the best open row, and whether it is lost in the noise."""
        best = self._best()
        if math.isnan(best):
            return math.nan, False
        gain_R = intervals.expected_gain(best, found, self.question.setting.objective.sign)
        gain = float(gain_R[open_R].max())
        floor = noise if math.isfinite(noise) else 0.01 * self.panel.unit
        return gain, gain < 0.5 * floor

    def _ranked(self, decision, place: int, chance: float, found: Expected, noise) -> Ranked:
        row = decision.offer.rows[place]
        best, sign = self._best(), self.question.setting.objective.sign
        margin = noise if math.isfinite(noise) else 0.0
        (low80, high80), (low95, high95) = found.intervals_C2R[:, :, row].tolist()
        remaining_A = np.minimum(decision.advice.remaining_AR[:, row], 1.0)
        return Ranked(
            dict(self.question.setting.configurations[row]),
            chance,
            float(found.mean_R[row]),
            (low80, high80),
            (low95, high95),
            math.nan
            if math.isnan(best)
            else intervals.chance_to_beat(best, margin, row, found, sign),
            dict(zip(COUNSEL, map(float, remaining_A), strict=True)),
        )
