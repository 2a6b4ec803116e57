"""What every method is given, and the one interface it answers through."""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autollm_jax.forecasts import coordinates
from autollm_jax.gym.environment import Trial
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Setting


@dataclass(frozen=True)
class Problem:
    """One expensive run to configure, and all that may be known of it beforehand.

    Attributes:
      setting: the question; an experiment, which has the answers too, is refused.
      evidence: cheaper experiments of the same task and source.
      budget: number of trials.
    """

    setting: Setting
    evidence: tuple[Experiment, ...]
    budget: int

    def __post_init__(self):
        if isinstance(self.setting, Experiment):
            raise TypeError(f"{self.setting.id}: a method is given a setting, not its outcomes")


class Method(Protocol):
    """A way of choosing configurations: built as `METHOD(problem, seed)`.

    A method that looked at a part of the evidence only may say what that part cost, as the
    attribute `evidence_flops` (see the function of that name).
    """

    def ask(self) -> dict:
        """Return the next configuration to try: a measured one, untried while any is left."""

    def tell(self, trial: Trial) -> None:
        """Take in what the last configuration brought."""


class MetaLearned(Method, Protocol):
    """A method that learns from the training experiments before it can play.

    It is built as `METHOD(problem, seed, learned)` with what `learn` returned.
    """

    @classmethod
    def learn(
        cls, training: Sequence[Experiment], seed: int, progress: bool, share: float = 1.0
    ) -> dict[str, np.ndarray]:
        """Learn from the split's training experiments, which are open; deterministic by seed.

        Args:
          training: the experiments.
          seed: of learning.
          progress: whether to show a progress bar.
          share: of the steps that it takes; less only tries the code out.
        """


def draw_seed(problem: Problem, seed: int) -> int:
    """Return a seed that differs between experiments, whose draws would else go together."""
    own = zlib.crc32(problem.setting.id.encode())
    return int(np.random.SeedSequence([seed, own]).generate_state(1)[0])


def fidelity_distance(a: Setting, b: Setting) -> float:
    """Return the Euclidean distance in log fidelity over the numbers that both settings have."""
    return float(np.sqrt(np.nansum((a.fidelity.log - b.fidelity.log) ** 2)))


def relevant_evidence(problem: Problem) -> tuple[Experiment, ...]:
    """Return the evidence that speaks of the target's own objective, nearest first.

    A source may hold several objectives (validation losses of different domains); where some of
    the evidence shares the target's, the rest is left aside. Nearest are those on the same named
    thing (problem, backbone), then in fidelity, then in how much a limit leaves, then those whose
    context agrees in more fields.
    """
    target = problem.setting
    same = [e for e in problem.evidence if e.objective.metric == target.objective.metric]

    def key(experiment):
        shared = sum(experiment.facts.get(k) == v for k, v in target.facts.items())
        feasible = abs(experiment.feasible_R.mean() - target.feasible_R.mean())
        distance = fidelity_distance(experiment, target)
        return named_differences(experiment, target), distance, feasible, -shared, experiment.id

    return tuple(sorted(same or problem.evidence, key=key))


def named_differences(a: Setting, b: Setting) -> int:
    """Count the context's texts (problem, corpus, backbone) in which two experiments differ."""
    names = {k for e in (a, b) for k, v in e.facts.items() if isinstance(v, str)}
    return sum(a.facts.get(name) != b.facts.get(name) for name in names)


def evidence_flops(method: Method, problem: Problem) -> float:
    """Return the FLOPs of the cheap runs behind a method's choices.

    That is what the method gives as its attribute `evidence_flops`, and without one the FLOPs of
    all runs of the problem's evidence, whatever of it the method made use of.
    """
    everything = ((e, np.arange(len(e.configurations))) for e in problem.evidence)
    return float(getattr(method, "evidence_flops", None) or flops_of_runs(everything))


def flops_of_runs(looks: Iterable[tuple[Experiment, Sequence[int]]]) -> float:
    """Sum the FLOPs of runs, each counted once.

    Args:
      looks: experiments and the rows looked at. A row over the limit was not run; a diverged one
        counts whole, since tables do not say when it diverged. Where a limit is all that an
        experiment's number of parameters says, a run costs in proportion to its own.

    Returns:
      FLOPs. Experiments that read another objective off the same runs, or set another limit to
      them, share their runs: same source, task, fidelity and configuration, and no text of the
      context besides the objective differs.
    """
    runs: dict[tuple, float] = {}
    for experiment, rows in looks:
        texts = {k: v for k, v in experiment.facts.items() if isinstance(v, str)}
        texts.pop("objective", None)
        shared = (experiment.source, experiment.task, *sorted(texts.items()))
        fidelity, names = experiment.fidelity, experiment.space.names
        for row in np.asarray(rows, int)[experiment.feasible_R[rows]].tolist():
            size, flops = fidelity.parameters, fidelity.flops
            if experiment.limit is not None:
                size = float(experiment.parameters_R[row])
                flops *= size / fidelity.parameters
            cell = experiment.space.key_of(experiment.configurations[row])
            # Numbers as text, since one that is not known is nan, which differs from itself.
            runs[*shared, names, cell, f"{size:.9g} {fidelity.tokens:.9g} {flops:.9g}"] = flops
    return sum(runs.values())


class Candidates:
    """The target's measured cells within its limit, which were tried, and where they lie.

    Whether a configuration is within the limit is known before any run, so that no method is
    offered one that is not.

    Attributes:
      units_RD: coordinates of all cells in the target's own scale (see coordinates.py).
    """

    def __init__(self, setting: Setting):
        self.setting = setting
        self.units_RD = coordinates.project(setting.configurations, setting.space, setting.space)
        self._feasible = np.flatnonzero(setting.feasible_R)
        self._tried_R = np.zeros(len(self.units_RD), bool)

    @property
    def untried(self) -> np.ndarray:
        """Return the feasible rows that were not tried; all of them again once none is left."""
        rows = self._feasible[~self._tried_R[self._feasible]]
        return rows if len(rows) else self._feasible

    def lowest(self, scores_R: np.ndarray) -> int:
        """Return the untried row of the lowest score."""
        rows = self.untried
        return int(rows[np.argmin(scores_R[rows])])

    def in_turn(self, points_ND: np.ndarray) -> Iterator[int]:
        """Yield the row nearest to each point, in order; what was tried is passed over."""
        for point_D in points_ND:
            row = self.nearest(point_D)
            if row in self.untried:
                yield row

    def take(self, row: int) -> dict:
        """Mark a row as tried and return its configuration."""
        self._tried_R[row] = True
        return dict(self.setting.configurations[row])

    def mark(self, trial: Trial) -> int | None:
        """Mark what a trial looked up as tried; return its row, None where it looked up nothing."""
        if trial.row is not None:
            self._tried_R[trial.row] = True
        return trial.row

    def row_of(self, config: dict) -> int:
        """Return the feasible row nearest to a configuration."""
        return self.nearest(coordinates.project([config], *[self.setting.space] * 2)[0])

    def nearest(self, unit_D: np.ndarray, untried: bool = False) -> int:
        """Return the feasible row nearest to a point, of all or of those that were not tried."""
        rows = self.untried if untried else self._feasible
        distance = ((self.units_RD[rows] - unit_D) ** 2).sum(-1)
        return int(rows[np.argmin(distance)])
