"""Runs as the gym knows them: experiments (the evidence), a setting (the target), its trials.

Runs of one size are an experiment; runs at the target's size are trials.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from autollm_jax.advise.columns import Understanding
from autollm_jax.advise.names import FIDELITIES
from autollm_jax.advise.runs import Run
from autollm_jax.advise.target import Target, label
from autollm_jax.errors import UserError
from autollm_jax.gym.cells import Cells
from autollm_jax.gym.environment import Trial
from autollm_jax.gym.experiments import Experiment, Fidelity, make_experiment
from autollm_jax.gym.outcomes import Objective
from autollm_jax.gym.settings import Setting, design, make_setting
from autollm_jax.gym.spaces import Dimension, Space

SOURCE, TASK = "yours", "pretraining"
SAME_FIDELITY = 1.02  # a factor: runs whose numbers differ by less are of one experiment
GRID_STEP = 1.001 * math.log(SAME_FIDELITY)
MOST_EXPERIMENTS = 64
MOST_CANDIDATES = 512
# Configurations that are learned from: of one experiment, and of all; each has this many at least.
MOST_ROWS, MOST_ROWS_IN_ALL, LEAST_ROWS = 1024, 8192, 128
MOST_TRIALS = 256  # that are told: every forecast is conditioned on each
USUAL_ROWS = 8192  # runs, about, that tell the most usual configuration
LOWER_LIMITS = (0.25, 0.5)  # of the target's limit: experiments made of the same runs


@dataclasses.dataclass(frozen=True)
class Question:
    """What advice is wanted on.

    Attributes:
      setting: the target.
      evidence: experiments of other fidelities.
      trials: runs at the target's fidelity, in their order.
      notes: what a person should know: rows left out, things guessed.
      running: configurations that are being run at the target's fidelity.
      closed: whether only given candidates, or what was run, may be proposed.
    """

    setting: Setting
    evidence: tuple[Experiment, ...]
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()
    running: tuple[dict, ...] = ()
    closed: bool = False


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A target with what its experiments share: their space, objective and task."""

    target: Target
    space: Space
    objective: Objective
    task: str


def question(
    runs: Sequence[Run],
    known: Understanding,
    target: Target,
    *,
    task: str = TASK,
    default: Mapping | None = None,
    candidates: Sequence[Mapping] | None = None,
) -> Question:
    """Make the question of a target from runs.

    Args:
      runs: finished ones, one at least, and those under way.
      known: what the columns mean.
      target: what is asked about.
      task: what the runs are, for the agent's words: architecture, pretraining, grpo, data_mixture.
      default: the configuration that would be taken untuned; None for the most usual one.
      candidates: configurations to choose from; None for a design over the space and what was run.
        Under a limit they have its quantity besides, and None stands for what was run.

    Raises:
      UserError: a candidate is not understood.
    """
    names = [name for name in FIDELITIES if any(name in run.fidelity for run in runs)]
    objective = Objective(known.objective.meaning, known.minimize)
    asked = _Asked(target, Space(known.dimensions), objective, task)
    if target.quantity:
        runs = _one_size_each(runs, asked.space)
    finished = [run for run in runs if run.status != "running"]
    usual = _usual(finished, asked.space)
    notes, groups, tried = _fidelity_notes(names, target.sizes), [], []
    for key, members in _grouped(runs, names).items():
        alike = _same(key, names, target.sizes) and dict(key[1]) == target.contexts
        if alike and not target.quantity:
            tried += members
            continue
        members = [run for run in members if run.status != "running"]
        for at_most in _limits(members, target):
            if any(run.status == "ok" and not run.size > at_most for run in members):
                numbers = {n: v for n, v in zip(names, key[0], strict=True) if not math.isnan(v)}
                groups.append(_Group(numbers, dict(key[1]), members, at_most, asked))
    wanted = target.fidelity(target.sizes, "target", target.at_most)
    groups.sort(key=lambda g: (g.facts != target.contexts, _distance(g.fidelity, wanted)))
    if len(groups) > MOST_EXPERIMENTS:
        notes.append(f"{len(groups)} fidelities: the nearest {MOST_EXPERIMENTS} are used")
        groups = groups[:MOST_EXPERIMENTS]
    most = min(max(MOST_ROWS_IN_ALL // max(len(groups), 1), LEAST_ROWS), MOST_ROWS)
    kept = [group.thinned(most) for group in groups]
    if thinned := sum(len(a.runs) < len(b.runs) for a, b in zip(kept, groups, strict=True)):
        notes.append(
            f"more than {most} configurations of a size, in {thinned} of {len(groups)} sizes: "
            "every second (third, ...) in order of outcome is used there, the best among them"
        )
    evidence = [group.experiment(usual) for group in kept]
    done, untold = _told([run for run in tried if run.status != "running"], objective)
    if untold:
        notes.append(
            f"{len(done) + len(untold)} runs of the target's size: the best and the latest "
            f"{MOST_TRIALS // 2} are used; what the others tried is not proposed again"
        )
    default = usual | spelled(asked.space, default or {})
    setting = _setting(asked, wanted, default, evidence, finished, done, candidates, untold)
    trials = [trial(number, run, setting) for number, run in enumerate(done, 1)]
    waiting = tuple(run.config for run in tried if run.status == "running")
    closed = candidates is not None or bool(target.quantity)
    return Question(setting, tuple(evidence), tuple(trials), tuple(notes), waiting, closed)


def _one_size_each(runs: Sequence[Run], space: Space) -> list[Run]:
    """Give every run of a configuration the largest size that one of them has.

    They differ where something that is not a hyperparameter here changes the size, too.
    """
    largest: dict = {}
    for run in runs:
        key = space.key_of(run.config)
        largest[key] = max(largest.get(key, 0.0), run.size)
    return [dataclasses.replace(run, size=largest[space.key_of(run.config)]) for run in runs]


def _limits(runs: Sequence[Run], target: Target) -> list[float]:
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


def _fidelity_notes(names: Sequence[str], target: Mapping) -> list[str]:
    notes = []
    if not names:
        notes.append(
            "no column says how dear a run is, so all runs count as of one cheaper kind; name one "
            "by --fidelity=parameters:COLUMN"
        )
    if names and target and not set(names) & set(target):
        raise UserError(
            f"target: says its {', '.join(target)}, and the runs say their {', '.join(names)}: "
            f"nothing to compare; give --target={names[0]}=NUMBER, or name a column by "
            f"--fidelity={next(iter(target))}:COLUMN"
        )
    lacking = [name for name in names if name not in target]
    unknown = [name for name in target if names and name not in names]
    if lacking:
        notes.append(f"the target does not say its {', '.join(lacking)}: unknown, so not compared")
    if unknown:
        notes.append(
            f"no run says its {', '.join(unknown)}: the target's is not "
            f"compared; name a column by --fidelity={unknown[0]}:COLUMN"
        )
    return notes


# The numbers of a fidelity in the order of its names, and the pairs of a context.
Key = tuple[tuple[float, ...], tuple[tuple[str, str], ...]]


def _grouped(runs: Sequence[Run], names: Sequence[str]) -> dict[Key, list[Run]]:
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


def _same(key: Key, names: Sequence[str], target: Mapping[str, float]) -> bool:
    fidelity = dict(zip(names, key[0], strict=True))
    shared = [name for name in names if name in target]
    return bool(shared) and _close(
        tuple(fidelity[name] for name in shared), tuple(target[name] for name in shared)
    )


def _distance(a: Fidelity, b: Fidelity) -> float:
    return float(np.nansum((a.log - b.log) ** 2))


@dataclasses.dataclass(frozen=True)
class _Group:
    """Runs of one size, from which an experiment can be made.

    Attributes:
      numbers: the fidelity, by name.
      facts: the context.
      runs: finished ones.
      at_most: the limit; nan without one.
      asked: what all groups share.
    """

    numbers: Mapping[str, float]
    facts: Mapping[str, str]
    runs: Sequence[Run]
    at_most: float
    asked: _Asked

    @property
    def fidelity(self) -> Fidelity:
        return self.asked.target.fidelity(self.numbers, "low", self.at_most)

    def thinned(self, most: int) -> "_Group":
        """Keep at most so many configurations, at even steps in order of outcome, with all runs."""
        if len(self.runs) <= most:
            return self
        members: dict[tuple, list[Run]] = {}
        for run in self.runs:
            members.setdefault(_values(run.config), []).append(run)
        if len(members) <= most:
            return self

        def loss(runs: Sequence[Run]) -> float:
            ran = [run for run in runs if run.status == "ok" and not run.size > self.at_most]
            total = self.asked.objective.sign * sum(run.outcome for run in ran)
            return total / len(ran) if ran else math.inf

        ranked = sorted(members.values(), key=loss)[:: -(-len(members) // most)]
        return dataclasses.replace(self, runs=[run for runs in ranked for run in runs])

    def experiment(self, default: Mapping) -> Experiment:
        runs, asked, quantity = self.runs, self.asked, self.asked.target.quantity
        over = [bool(quantity) and run.size > self.at_most for run in runs]
        name = label(self.numbers, self.facts)
        return make_experiment(
            source=SOURCE,
            task=asked.task,
            name=f"{name},{quantity}<={self.at_most:.4g}" if quantity else name,
            facts=self.facts,
            space=asked.space,
            fidelity=self.fidelity,
            configurations=[run.config for run in runs],
            outcomes=[math.nan if o else run.outcome for run, o in zip(runs, over, strict=True)],
            status=["infeasible" if o else run.status for run, o in zip(runs, over, strict=True)],
            default=default,
            default_origin="the most usual configuration of the runs",
            parameters=[run.size for run in runs] if quantity else None,
            limit=asked.target.limit(self.at_most),
            objective_metric=asked.objective.metric,
            minimize=asked.objective.minimize,
        )


def _values(config: Mapping) -> tuple:
    """Return a configuration's values as something hashable."""
    return tuple(tuple(v.values()) if isinstance(v, Mapping) else v for v in config.values())


def _told(done: Sequence[Run], objective: Objective) -> tuple[list[Run], list[Run]]:
    """Split trials into those that are told, the best and the latest of many, and the others."""
    if len(done) <= MOST_TRIALS:
        return list(done), []
    places = range(len(done))
    losses = [objective.sign * run.outcome if run.status == "ok" else math.inf for run in done]
    kept = {
        *sorted(places, key=losses.__getitem__)[: MOST_TRIALS // 2],
        *places[-MOST_TRIALS // 2 :],
    }
    return [done[p] for p in places if p in kept], [done[p] for p in places if p not in kept]


def _usual(runs: Sequence[Run], space: Space) -> dict:
    """Return the configuration nearest to the middle of all that were run."""
    runs = runs[:: -(-len(runs) // USUAL_ROWS)]
    units_ND = np.stack([space.to_unit(run.config) for run in runs])
    away_N = ((units_ND - np.median(units_ND, axis=0)) ** 2).sum(1)
    return space.validate(runs[int(away_N.argmin())].config)


def _setting(
    asked: _Asked,
    fidelity: Fidelity,
    default: Mapping,
    evidence: Sequence[Experiment],
    runs: Sequence[Run],
    done: Sequence[Run],
    candidates: Sequence[Mapping] | None,
    untold: Sequence[Run],
) -> Setting:
    """Lay out the configurations to choose from: those given, or a design and what was run."""
    space, sizes = asked.space, None
    if candidates is not None:
        chosen, sizes = _given(asked, candidates)
        space = Space(tuple(_extended(d, [*chosen, default]) for d in space.dimensions))
    elif asked.target.quantity:
        chosen, sizes = [run.config for run in runs], [run.size for run in runs]
    else:
        ran: list[Mapping] = []
        for experiment in evidence:  # the nearest experiment first, its best first
            order = np.argsort(experiment.outcomes.losses_R, kind="stable")
            ran += [experiment.configurations[row] for row in order]
        chosen = [default, *design(space, MOST_CANDIDATES), *ran[: MOST_CANDIDATES // 2]]
    if untold:  # never under a limit, so there are no sizes
        tried = {_values(run.config) for run in untold}
        chosen = [c for c in chosen if _values(space.validate(c)) not in tried]
    chosen = [*chosen, *[run.config for run in done]]
    return make_setting(
        source=SOURCE,
        task=asked.task,
        name=asked.target.label,
        facts=dict(asked.target.contexts),
        space=space,
        fidelity=fidelity,
        objective=asked.objective,
        default=default,
        configurations=chosen,
        parameters=sizes,
        limit=asked.target.limit(asked.target.at_most),
    )


def _given(asked: _Asked, candidates: Sequence[Mapping]) -> tuple[list[dict], list[float] | None]:
    """Split candidates into configurations and, under a limit, what each of them has."""
    chosen = [spelled(asked.space, candidate) for candidate in candidates]
    if not asked.target.quantity:
        return chosen, None
    if any(asked.target.quantity not in candidate for candidate in candidates):
        raise UserError(
            f"candidates: each needs its {asked.target.quantity}, which the target limits"
        )
    sizes = [float(candidate[asked.target.quantity]) for candidate in candidates]
    first: dict[str, int] = {}
    for place, config in enumerate(chosen):
        first.setdefault(repr(config), place)
    places = list(first.values())
    return [chosen[place] for place in places], [sizes[place] for place in places]


def with_configuration(setting: Setting, config: Mapping) -> Setting:
    """Add a configuration to those to choose from, after the others; a known one adds none.

    Under a limit the most similar configuration tells what it has.
    """
    cells, _ = Cells.pool(setting.space, [*setting.configurations, config])
    if len(cells) == len(setting.cells):
        return setting
    sizes_R = setting.parameters_R
    if sizes_R is not None:
        similar = setting.nearest_row(setting.space.to_unit(config))
        sizes_R = np.append(sizes_R, sizes_R[similar])
    return dataclasses.replace(setting, cells=cells, parameters_R=sizes_R)


def spelled(space: Space, config: Mapping) -> dict:
    """Spell a configuration as a file's rows are: categories as texts, numpy's numbers as plain.

    What the space does not have is left out: it was the same in every run.
    """
    made = {}
    for name, value in config.items():
        if name not in space.names:
            continue
        value = value.item() if hasattr(value, "item") else value
        made[name] = str(value) if space[name].kind == "categorical" else value
    return made


def _extended(dimension: Dimension, candidates: Sequence[Mapping]) -> Dimension:
    """Extend a dimension to what candidates hold: a larger run may have wider choices."""
    if dimension.kind == "simplex" or any(dimension.name not in c for c in candidates):
        return dimension
    values = [candidate[dimension.name] for candidate in candidates]
    try:
        if dimension.is_continuous:
            low, high = dimension.extent
            return dataclasses.replace(dimension, bounds=(min(low, *values), max(high, *values)))
        if dimension.kind == "categorical":
            choices = dict.fromkeys([*dimension.choices, *values])
        else:
            choices = sorted({*dimension.choices, *values})
        return dataclasses.replace(dimension, choices=tuple(choices))
    except (TypeError, ValueError) as error:
        raise UserError(f"candidates: {dimension.name}: {error}") from error


def trial(number: int, run: Run, setting: Setting) -> Trial:
    """Say what a run at the target's fidelity brought."""
    match = setting.match(run.config)
    return Trial(
        number=number,
        proposed=run.config,
        config=dict(setting.configurations[match.row]),
        outcome=run.outcome if run.status == "ok" else math.nan,
        status=run.status,
        valid=True,
        matched=False,
        message="",
        row=match.row,
    )
