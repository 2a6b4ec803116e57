"""Evidence: runs of one size and context as an experiment, thinned where they are very many."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from autollm_jax.advise.runs import Run
from autollm_jax.advise.target import Target, label
from autollm_jax.gym.experiments import Experiment, make_experiment
from autollm_jax.gym.outcomes import Objective
from autollm_jax.gym.settings import Fidelity
from autollm_jax.gym.spaces import Space

SOURCE = "yours"
SAME_FIDELITY = 1.02  # a factor: runs whose numbers differ by less are of one experiment
GRID_STEP = 1.001 * math.log(SAME_FIDELITY)
LOWER_LIMITS = (0.25, 0.5)  # of the target's limit: experiments made of the same runs


@dataclasses.dataclass(frozen=True)
class Shared:
    """A target with what its experiments share: their space, objective and task."""

    target: Target
    space: Space
    objective: Objective
    task: str


def one_size_each(runs: Sequence[Run], space: Space) -> list[Run]:
    """Give every run of a configuration the largest size that one of them has.

    They differ where something that is not a hyperparameter here changes the size, too.
    """
    largest: dict = {}
    for run in runs:
        key = space.key_of(run.config)
        largest[key] = max(largest.get(key, 0.0), run.size)
    return [dataclasses.replace(run, size=largest[space.key_of(run.config)]) for run in runs]


def limits(runs: Sequence[Run], target: Target) -> list[float]:
    """Return the limits under which some runs are an experiment: one that holds all, lower ones.

    The same runs answer what is best under each, so that a forecast sees how the best moves.
    """
    if not target.quantity:
        return [math.nan]
    if not runs:
        return []
    sizes = sorted(run.size for run in runs)
    most = sizes[-1]
    lower = [target.at_most * share for share in LOWER_LIMITS]
    return [*[each for each in lower if sizes[0] <= each < most], most]


# The numbers of a fidelity in the order of its names, and the pairs of a context.
Key = tuple[tuple[float, ...], tuple[tuple[str, str], ...]]


def grouped(runs: Sequence[Run], names: Sequence[str]) -> dict[Key, list[Run]]:
    """Group runs of about the same fidelity and one context; the key is the first run's."""
    groups: dict[Key, list[Run]] = {}
    key_of: dict[Key, Key] = {}
    numbered: dict[tuple, list[tuple[int, Key]]] = {}  # keys with their numbers, by place on a grid
    for run in runs:
        numbers = tuple(run.fidelity.get(name, math.nan) for name in names)
        own = numbers, tuple(run.context.items())
        if own not in key_of:
            # Numbers that are close lie in one step of a grid, or in steps beside each other.
            steps = [
                None if math.isnan(n) else math.floor(math.log(n) / GRID_STEP) for n in numbers
            ]
            around = itertools.product(*[(s,) if s is None else (s - 1, s, s + 1) for s in steps])
            near = [each for place in around for each in numbered.get((place, own[1]), ())]
            same = [each for each in near if _close(each[1][0], numbers)]
            key_of[own] = min(same, key=lambda each: each[0])[1] if same else own
            if not same:
                numbered.setdefault((tuple(steps), own[1]), []).append((len(groups), own))
        groups.setdefault(key_of[own], []).append(run)
    return groups


def _close(a: tuple, b: tuple) -> bool:
    return all(
        (math.isnan(x) and math.isnan(y)) or max(x / y, y / x) <= SAME_FIDELITY
        for x, y in zip(a, b, strict=True)
    )


def is_of_target(key: Key, names: Sequence[str], target: Mapping[str, float]) -> bool:
    """Whether runs have the target's size, in all numbers that both say."""
    fidelity = dict(zip(names, key[0], strict=True))
    both = [name for name in names if name in target]
    return bool(both) and _close(
        tuple(fidelity[name] for name in both), tuple(target[name] for name in both)
    )


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one size, from which an experiment can be made.

    Attributes:
      numbers: the fidelity, by name.
      facts: the context.
      runs: finished ones.
      at_most: the limit; nan without one.
      shared: what all groups share.
    """

    numbers: Mapping[str, float]
    facts: Mapping[str, str]
    runs: Sequence[Run]
    at_most: float
    shared: Shared

    @property
    def fidelity(self) -> Fidelity:
        return self.shared.target.fidelity(self.numbers, "low", self.at_most)

    def distance(self, wanted: Fidelity) -> float:
        """Return the Euclidean distance to a fidelity, in log parameters and log tokens."""
        return float(np.sqrt(np.nansum((self.fidelity.log - wanted.log) ** 2)))

    def thinned(self, most: int) -> "Group":
        """Keep at most so many configurations, at even steps in order of outcome, with all runs."""
        if len(self.runs) <= most:
            return self
        members: dict[tuple, list[Run]] = {}
        for run in self.runs:
            members.setdefault(values_of(run.config), []).append(run)
        if len(members) <= most:
            return self

        def loss(runs: Sequence[Run]) -> float:
            ran = [run for run in runs if run.status == "ok" and not run.size > self.at_most]
            total = self.shared.objective.sign * sum(run.outcome for run in ran)
            return total / len(ran) if ran else math.inf

        ranked = sorted(members.values(), key=loss)[:: -(-len(members) // most)]
        return dataclasses.replace(self, runs=[run for runs in ranked for run in runs])

    def experiment(self, default: Mapping) -> Experiment:
        """Make the experiment; runs over the limit are infeasible there."""
        runs, shared, quantity = self.runs, self.shared, self.shared.target.quantity
        over = [bool(quantity) and run.size > self.at_most for run in runs]
        name = label(self.numbers, self.facts)
        return make_experiment(
            source=SOURCE,
            task=shared.task,
            name=f"{name},{quantity}<={self.at_most:.4g}" if quantity else name,
            facts=self.facts,
            space=shared.space,
            fidelity=self.fidelity,
            configurations=[run.config for run in runs],
            outcomes=[math.nan if o else run.outcome for run, o in zip(runs, over, strict=True)],
            status=["infeasible" if o else run.status for run, o in zip(runs, over, strict=True)],
            default=default,
            default_origin="the most usual configuration of the runs",
            parameters=[run.size for run in runs] if quantity else None,
            limit=shared.target.limit(self.at_most),
            objective_metric=shared.objective.metric,
            minimize=shared.objective.minimize,
        )


def values_of(config: Mapping) -> tuple:
    """Return a configuration's values as something hashable."""
    return tuple(tuple(v.values()) if isinstance(v, dict) else v for v in config.values())
