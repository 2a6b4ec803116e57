"""Rows as what the gym knows: experiments (the evidence), a setting (the target), its trials.

1. `clean`: each row as a run: configuration, fidelity, outcome, status; what cannot be used is
   named with its place
2. `question`: runs of one fidelity are an experiment; runs at the target's fidelity are trials
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from autollm_jax.advise.columns import FIDELITIES, Column, Understanding, labelled
from autollm_jax.advise.reading import Cell, Rows
from autollm_jax.advise.values import is_missing, number
from autollm_jax.errors import UserError
from autollm_jax.gym.cells import Cells
from autollm_jax.gym.environment import Trial
from autollm_jax.gym.experiments import Experiment, Fidelity, make_experiment
from autollm_jax.gym.outcomes import Objective
from autollm_jax.gym.settings import Setting, design, make_setting
from autollm_jax.gym.spaces import Dimension, InvalidConfiguration, Space

SOURCE, TASK = "yours", "pretraining"
SAME_FIDELITY = 1.02  # a factor: runs whose numbers differ by less are of one experiment
MOST_EXPERIMENTS = 64
MOST_CANDIDATES = 512
LOWER_LIMITS = (0.25, 0.5)  # of the target's limit: experiments made of the same runs
STATUSES = {  # what trackers call them
    "ok": r"ok|finished|complete[d]?|done|success(ful)?|succeeded|true|1|passed|terminated",
    "diverged": r"diverged|nan|exploded|unstable|pruned|early_?stopped",
    "infeasible": r"infeasible|oom|out_?of_?memory|cuda_?oom|too_?large|over_?limit",
    "failed": r"fail(ed|ure)?|crash(ed)?|error(ed)?|killed|preempted|lost|false|0|timeout|aborted",
    "running": r"running|pending|queued|waiting|scheduled|started|alive",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
      config: one value per hyperparameter.
      fidelity: by name, what is known of it.
      context: by column, what tells experiments of one size apart.
      outcome: the objective; nan where there is none.
      status: ok, diverged or infeasible.
      size: of the configuration, where the target limits it; nan elsewhere.
      seed: of the run, or None.
      place: where the row stands.
    """

    config: dict
    fidelity: dict[str, float]
    context: dict[str, str]
    outcome: float
    status: str
    seed: int | None
    place: str
    size: float = math.nan


@dataclasses.dataclass(frozen=True)
class Question:
    """What advice is wanted on.

    Attributes:
      setting: the target.
      evidence: experiments of other fidelities.
      trials: runs at the target's fidelity, in their order.
      notes: what a person should know: rows left out, things guessed.
      running: configurations that are being run at the target's fidelity.
    """

    setting: Setting
    evidence: tuple[Experiment, ...]
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()
    running: tuple[dict, ...] = ()


def parse_target(text: str) -> dict[str, float | str]:
    """Read 'parameters=7e9,tokens=200B,corpus=c4': fidelities, and columns with a value.

    'parameters<=1e8' limits what a configuration may have; its name ends in <= in what is returned.

    Raises:
      UserError: a name or a number is not understood.
    """
    found: dict[str, float | str] = {}
    for part in filter(None, re.split(r"[,;]\s*(?=[^,;=]+=)", text)):
        name, _, value = (piece.strip() for piece in part.partition("="))
        amount = number(value)
        if name.endswith("<") and amount is not None:
            found[f"{name}="] = amount
            continue
        if name not in FIDELITIES and value:
            found[name] = value
            continue
        if amount is None or not 0 < amount < math.inf:
            raise UserError(
                f"target: {part.strip()!r} is not understood; accepted is NAME=NUMBER,... with the "
                f"names {', '.join(FIDELITIES)}, and COLUMN=VALUE; for example "
                "parameters=7e9,tokens=2e11"
            )
        found[name] = amount
    if not found:
        raise UserError("target: is empty; accepted is for example parameters=7e9,tokens=2e11")
    return found


def clean(rows: Rows, known: Understanding) -> tuple[list[Run], list[Run], list[str]]:
    """Turn rows into runs.

    Returns:
      Finished runs, running ones, and a note for each row that cannot be used.
    """
    done, running, notes = [], [], []
    for row, place in zip(rows.rows, rows.places, strict=True):
        try:
            status = _status(row, known)
            if status == "failed":
                notes.append(f"{place}: failed, for a reason that is not known; left out")
                continue
            config = _config(row, known)
            fidelity, size = _fidelity(row, known), _size(row, known)
            context = {c.name: str(row.get(c.name)) for c in known.of("context")}
        except _Unusable as problem:
            notes.append(f"{place}: {problem}; left out")
            continue
        outcome = known.number(row, known.objective)
        if status == "running":
            running.append(
                Run(config, fidelity, context, math.nan, "ok", _seed(row, known), place, size)
            )
            continue
        if status == "ok" and outcome is None:
            shown = labelled(known.objective, row)
            notes.append(f"{place}: {known.objective.name} is {shown}, not a number; left out")
            continue
        if outcome is None or not math.isfinite(outcome):
            # An infinite or undefined loss is what a run that diverged leaves behind.
            outcome, status = math.nan, "diverged" if status == "ok" else status
        done.append(Run(config, fidelity, context, outcome, status, _seed(row, known), place, size))
    return done, running, notes


class _Unusable(ValueError):
    """A row cannot be used; the message says why."""


def _status(row: Mapping[str, Cell], known: Understanding) -> str:
    """Tell how a run ended: ok, diverged, infeasible, failed or running."""
    for column in known.of("status"):
        cell = row.get(column.name)
        if is_missing(cell):
            continue
        text = re.sub(r"[^a-z0-9]+", "_", str(cell).lower()).strip("_")
        for status, pattern in STATUSES.items():
            if re.fullmatch(pattern, text):
                return status
        raise _Unusable(f"{column.name} is {labelled(column, row)}, which is no status known here")
    return "ok"


def _config(row: Mapping[str, Cell], known: Understanding) -> dict:
    config: dict = {}
    for column in known.of("hyperparameter"):
        cell = row.get(column.name)
        if column.mixture:
            weight = known.number(row, column)
            if weight is None or not math.isfinite(weight):
                raise _Unusable(f"{column.name} is {labelled(column, row)}, not a number")
            config.setdefault(column.mixture, {})[column.meaning] = weight
            continue
        if is_missing(cell):
            raise _Unusable(f"{column.name} is missing")
        config[column.meaning] = _value(row, column, known)
    for name, value in config.items():
        if isinstance(value, dict):
            total = sum(value.values())
            if total <= 0:
                raise _Unusable(f"the weights of {name} sum to {total:g}")
            config[name] = {part: weight / total for part, weight in value.items()}
    return config


def _value(row: Mapping[str, Cell], column: Column, known: Understanding):
    dimension = column.dimension
    if dimension is None or not dimension.is_numeric:
        return str(row.get(column.name))
    amount = known.number(row, column)
    if amount is None or not math.isfinite(amount):
        raise _Unusable(f"{column.name} is {labelled(column, row)}, not a number")
    try:
        return dimension.canonical(amount)
    except InvalidConfiguration:
        low, high = dimension.extent
        raise _Unusable(
            f"{column.name} is {labelled(column, row)}, outside {low:g} to {high:g}"
        ) from None


def _fidelity(row: Mapping[str, Cell], known: Understanding) -> dict[str, float]:
    found = {}
    for column in known.of("fidelity"):
        amount = known.number(row, column)
        if amount is None or not 0 < amount < math.inf:
            raise _Unusable(f"{column.name} is {labelled(column, row)}, not a positive number")
        found[column.meaning] = amount
    return found


def _size(row: Mapping[str, Cell], known: Understanding) -> float:
    for column in known.of("size"):
        amount = known.number(row, column)
        if amount is None or not 0 < amount < math.inf:
            raise _Unusable(f"{column.name} is {labelled(column, row)}, not a positive number")
        return amount
    return math.nan


def _seed(row: Mapping[str, Cell], known: Understanding) -> int | None:
    for column in known.of("seed"):
        amount = known.number(row, column)
        if amount is not None and math.isfinite(amount):
            return int(amount)
    return None


@dataclasses.dataclass(frozen=True)
class _Target:
    """What is asked about.

    Attributes:
      space: of the runs' configurations.
      objective: the outcome's name and direction.
      task: what the runs are.
      sizes: the fidelity, by name.
      contexts: the values of context columns.
      quantity, at_most: what a configuration may have; "" and nan without a limit.
    """

    space: Space
    objective: Objective
    task: str
    sizes: Mapping[str, float]
    contexts: Mapping[str, str]
    quantity: str
    at_most: float

    def limit(self, at_most: float) -> dict | None:
        """Return a limit as settings have it; None for an infinite one."""
        if not self.quantity or not math.isfinite(at_most):
            return None
        return {"quantity": "parameters", "at_most": at_most}

    def fidelity(self, numbers: Mapping[str, float], level: str, at_most: float) -> Fidelity:
        """Bring what is known of a fidelity into parameters and tokens.

        Where tokens are not known, steps, epochs, FLOPs or hours stand for them: what forecasts
        compare is their ratio. Under a limit the limit stands for the parameters.
        """
        limited = bool(self.quantity) and math.isfinite(at_most)
        parameters = at_most if limited else numbers.get("parameters", 0.0)
        stand_ins = [numbers[name] for name in ("tokens", "steps", "epochs") if name in numbers]
        if not stand_ins and not parameters:
            stand_ins = [numbers[name] for name in ("flops", "hours") if name in numbers]
        tokens = stand_ins[0] if stand_ins else 0.0
        flops = numbers.get("flops") or (6.0 * parameters * tokens if tokens else 0.0)
        return Fidelity(level, parameters, tokens, flops or parameters or tokens)


def question(
    runs: Sequence[Run],
    running: Sequence[Run],
    known: Understanding,
    target: Mapping[str, float | str],
    *,
    task: str = TASK,
    default: Mapping | None = None,
    candidates: Sequence[Mapping] | None = None,
) -> Question:
    """Make the question of a target from runs.

    Args:
      runs: finished ones.
      running: runs under way.
      known: what the columns mean.
      target: the fidelity that is asked about, the values of context columns, and a limit
        ("parameters<=").
      task: what the runs are, for the agent's words: architecture, pretraining, grpo, data_mixture.
      default: the configuration that would be taken untuned; None for the most usual one.
      candidates: configurations to choose from; None for a design over the space and what was run.
        Under a limit they have its quantity besides, and None stands for what was run.

    Raises:
      UserError: a candidate is not understood.
    """
    space = Space(known.dimensions)
    names = [name for name in FIDELITIES if any(name in run.fidelity for run in runs)]
    limits = [(name[:-2], float(amount)) for name, amount in target.items() if name.endswith("<=")]
    asked = _Target(
        space,
        Objective(known.objective.meaning, known.minimize),
        task,
        {name: float(amount) for name, amount in target.items() if name in FIDELITIES},
        {column.name: str(target[column.name]) for column in known.of("context")},
        *(limits[0] if limits else ("", math.nan)),
    )
    if limits:
        runs = _one_size_each(runs, space)
    notes = _fidelity_notes(names, asked.sizes)
    groups = _grouped([*runs, *running], names)
    under_way = set(map(id, running))
    at_target = [
        key
        for key in groups
        if not limits and _same(key, names, asked.sizes) and dict(key[1]) == asked.contexts
    ]
    usual = _usual(runs, space)
    evidence = []
    for key, members in groups.items():
        members = [run for run in members if id(run) not in under_way]
        if key in at_target:
            continue
        for at_most in _limits(members, asked):
            if any(run.status == "ok" and not run.size > at_most for run in members):
                evidence.append(_experiment(key, names, members, asked, usual, at_most))
    if len(evidence) > MOST_EXPERIMENTS:
        notes.append(f"{len(evidence)} fidelities: the nearest {MOST_EXPERIMENTS} are used")
    wanted = asked.fidelity(asked.sizes, "target", asked.at_most)
    evidence.sort(key=lambda e: (e.facts != asked.contexts, _distance(e.fidelity, wanted)))
    evidence = evidence[:MOST_EXPERIMENTS]
    tried = [run for key in at_target for run in groups[key]]
    done = [run for run in tried if id(run) not in under_way]
    default = usual | spelled(space, default or {})
    setting = _setting(asked, wanted, default, evidence, [*runs], done, candidates)
    trials = [trial(number, run, setting) for number, run in enumerate(done, 1)]
    waiting = tuple(run.config for run in tried if id(run) in under_way)
    return Question(setting, tuple(evidence), tuple(trials), tuple(notes), waiting)


def _one_size_each(runs: Sequence[Run], space: Space) -> list[Run]:
    """Give every run of a configuration the largest size that one of them has.

    They differ where something that is not a hyperparameter here changes the size, too.
    """
    largest: dict = {}
    for run in runs:
        key = space.key_of(run.config)
        largest[key] = max(largest.get(key, 0.0), run.size)
    return [dataclasses.replace(run, size=largest[space.key_of(run.config)]) for run in runs]


def _limits(runs: Sequence[Run], asked: _Target) -> list[float]:
    """Return the limits under which some runs are an experiment: one that holds all, lower ones.

    The same runs answer what is best under each, so that a forecast sees how the best moves.
    """
    if not asked.quantity:
        return [math.nan]
    sizes = sorted(run.size for run in runs)
    most = sizes[-1]
    lower = [asked.at_most * share for share in LOWER_LIMITS]
    return [*[each for each in lower if sizes[0] <= each < most], most]


def _fidelity_notes(names: Sequence[str], target: Mapping) -> list[str]:
    notes = []
    if not names:
        notes.append(
            "no column says how dear a run is, so all runs count as of one cheaper kind; name one "
            "by --fidelity=parameters:COLUMN"
        )
    lacking = [name for name in names if name not in target]
    unknown = [name for name in target if names and name not in names]
    if lacking:
        notes.append(f"the target does not say its {', '.join(lacking)}: unknown, so not compared")
    if unknown:
        notes.append(f"no run says its {', '.join(unknown)}: the target's is not compared")
    return notes


# The numbers of a fidelity in the order of its names, and the pairs of a context.
Key = tuple[tuple[float, ...], tuple[tuple[str, str], ...]]


def _grouped(runs: Sequence[Run], names: Sequence[str]) -> dict[Key, list[Run]]:
    """Group runs of about the same fidelity and one context; the key is the first run's."""
    groups: dict[Key, list[Run]] = {}
    for run in runs:
        numbers = tuple(run.fidelity.get(name, math.nan) for name in names)
        key = numbers, tuple(run.context.items())
        if key not in groups:
            same = (k for k in groups if k[1] == key[1] and _close(k[0], numbers))
            key = next(same, key)
        groups.setdefault(key, []).append(run)
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


def _label(numbers: Mapping[str, float], context: Mapping[str, str]) -> str:
    parts = [f"{name}={amount:.4g}" for name, amount in numbers.items() if not math.isnan(amount)]
    parts += [f"{name}={value}" for name, value in context.items()]
    return ",".join(parts) or "cheap"


def _experiment(
    key: Key,
    names: Sequence[str],
    runs: Sequence[Run],
    asked: _Target,
    default: Mapping,
    at_most: float,
) -> Experiment:
    numbers = {n: v for n, v in zip(names, key[0], strict=True) if not math.isnan(v)}
    over = [bool(asked.quantity) and run.size > at_most for run in runs]
    label = _label(numbers, dict(key[1]))
    return make_experiment(
        source=SOURCE,
        task=asked.task,
        name=f"{label},{asked.quantity}<={at_most:.4g}" if asked.quantity else label,
        facts=dict(key[1]),
        space=asked.space,
        fidelity=asked.fidelity(numbers, "low", at_most),
        configurations=[run.config for run in runs],
        outcomes=[math.nan if o else run.outcome for run, o in zip(runs, over, strict=True)],
        status=["infeasible" if o else run.status for run, o in zip(runs, over, strict=True)],
        default=default,
        default_origin="the most usual configuration of the runs",
        parameters=[run.size for run in runs] if asked.quantity else None,
        limit=asked.limit(at_most),
        objective_metric=asked.objective.metric,
        minimize=asked.objective.minimize,
    )


def _usual(runs: Sequence[Run], space: Space) -> dict:
    """Return the configuration nearest to the middle of all that were run."""
    units_ND = np.stack([space.to_unit(run.config) for run in runs])
    away_N = ((units_ND - np.median(units_ND, axis=0)) ** 2).sum(1)
    return space.validate(runs[int(away_N.argmin())].config)


def _setting(
    asked: _Target,
    fidelity: Fidelity,
    default: Mapping,
    evidence: Sequence[Experiment],
    runs: Sequence[Run],
    done: Sequence[Run],
    candidates: Sequence[Mapping] | None,
) -> Setting:
    """Lay out the configurations to choose from: those given, or a design and what was run."""
    space, sizes = asked.space, None
    if candidates is not None:
        chosen, sizes = _given(asked, candidates)
        space = Space(tuple(_extended(d, [*chosen, default]) for d in space.dimensions))
    elif asked.quantity:
        chosen, sizes = [run.config for run in runs], [run.size for run in runs]
    else:
        ran: list[Mapping] = []
        for experiment in evidence:  # the nearest experiment first, its best first
            order = np.argsort(experiment.outcomes.losses_R, kind="stable")
            ran += [experiment.configurations[row] for row in order]
        chosen = [default, *design(space, MOST_CANDIDATES), *ran[: MOST_CANDIDATES // 2]]
    chosen = [*chosen, *[run.config for run in done]]
    return make_setting(
        source=SOURCE,
        task=asked.task,
        name=_label(asked.sizes, asked.contexts),
        facts=dict(asked.contexts),
        space=space,
        fidelity=fidelity,
        objective=asked.objective,
        default=default,
        configurations=chosen,
        parameters=sizes,
        limit=asked.limit(asked.at_most),
    )


def _given(asked: _Target, candidates: Sequence[Mapping]) -> tuple[list[dict], list[float] | None]:
    """Split candidates into configurations and, under a limit, what each of them has."""
    chosen = [spelled(asked.space, candidate) for candidate in candidates]
    if not asked.quantity:
        return chosen, None
    if any(asked.quantity not in candidate for candidate in candidates):
        raise UserError(
            f"candidates: under {asked.quantity}<={asked.at_most:g} each needs its {asked.quantity}"
        )
    sizes = [float(candidate[asked.quantity]) for candidate in candidates]
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
