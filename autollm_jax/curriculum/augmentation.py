"""Changed copies of real tables, so that a policy does not learn their optima by heart.

`augment` copies the experiments of one family: one task of one source. They may have different
choices, dimensions and components, so each is changed in its own space. Which changes apply depends
on the spaces: numeric axes have units to shift, a mixture has names, a limit can be lowered,
several objectives can be mixed. Where nothing is cheaper than anything else, copies stand in for
cheap runs.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from autollm_jax.curriculum.relabelling import Relabelling, Units, draw_part_names
from autollm_jax.forecasts.landscapes import is_shiftable
from autollm_jax.gym.cells import Cells
from autollm_jax.gym.experiments import Experiment, make_experiment
from autollm_jax.gym.spaces import Dimension, Space

AUGMENTATIONS = (
    "sub-grid",
    "shifted axes",
    "noise",
    "other names",
    "lower limit",
    "mixed objectives",
)
CHEAPER_COPIES = "cheaper copies"

NOISE_FLOOR = 0.02  # of a unit of regret, where no repeats tell the noise
LEAST_CELLS, LEAST_CHOICES = 12, 3
LEAST_OK = 0.55  # share of a sub-grid's cells that work, or a middling outcome would mean nothing
MOST_CELLS = 120  # of an augmented table
OTHER_ROWS = 0.3  # share of augmented tables that keep rows of their own
MOST_OBJECTIVES = 3  # of an augmented family
COPY_DRIFT = (0.1, 0.6)  # of a cheaper copy's landscape, in deviations


def applicable(experiments: Sequence[Experiment]) -> tuple[str, ...]:
    """Return the augmentations that change something of these experiments."""
    kinds = {dimension.kind for e in experiments for dimension in e.space.dimensions}
    possible = {
        "sub-grid": True,
        "noise": True,
        "shifted axes": True,
        "other names": "simplex" in kinds,
        "lower limit": any(e.limit is not None for e in experiments),
        "mixed objectives": len({e.objective.metric for e in experiments}) > 1,
    }
    return tuple(name for name in AUGMENTATIONS if possible[name])


def needs_copies(experiments: Sequence[Experiment]) -> bool:
    """Tell whether no experiment is cheaper than another, so that copies must stand in for some.

    Not where a law moves all the landscapes: how it moves them between fidelities cannot be made
    up from one fidelity.
    """
    alike = len({e.fidelity.flops for e in experiments}) == 1
    return alike and not all(is_shiftable(e.space) for e in experiments)


@dataclasses.dataclass(frozen=True)
class _Change:
    """The changes of one family.

    Attributes:
      names: some of `AUGMENTATIONS`, or `CHEAPER_COPIES`.
      seed: marks the copies' names.
      random: of the draws.
      relabelling: of units and components.
      rows_of: the rows kept of cells that are no grid, so that tables which share cells share rows.
    """

    names: tuple[str, ...]
    seed: int
    random: np.random.Generator
    relabelling: Relabelling
    rows_of: dict[Cells, np.ndarray]


def augment(
    experiments: Sequence[Experiment], changes: Sequence[str], seed: int
) -> list[Experiment]:
    """Make changed copies of one family's experiments.

    Args:
      experiments: of one task and source, over any spaces.
      changes: some of `AUGMENTATIONS`, or `CHEAPER_COPIES`. `shifted axes` multiplies values on
        a log scale, parameters, tokens and losses each by one factor for the whole family, which is
        a change of units; `sub-grid` drops choices and narrows bounds, or drops rows where the
        cells are no grid; `noise` adds the noise floor anew; `other names` permutes and renames
        mixtures' components; `lower limit` lowers each limit; `mixed objectives` averages each
        objective with another; `cheaper copies` adds a cheaper copy of each experiment, whose
        landscape drifted.
      seed: the same seed gives the same copies.

    Raises:
      ValueError: there is no such change.
    """
    unknown = sorted(set(changes) - {*AUGMENTATIONS, CHEAPER_COPIES})
    if unknown:
        raise ValueError(f"no augmentation {unknown[0]!r}; there are {', '.join(AUGMENTATIONS)}")
    random = np.random.default_rng([seed, 503])
    units = Units.draw(experiments, random, "shifted axes" in changes)
    experiments = _some_objectives(experiments, random)
    parts = draw_part_names(experiments, random) if "other names" in changes else {}
    outcomes = [np.array(e.outcomes.values_R) for e in experiments]
    if "mixed objectives" in changes:
        outcomes = _mixed(experiments, random)
    change = _Change(tuple(changes), seed, random, Relabelling(units, parts), {})
    made = [_changed(e, y_R, change) for e, y_R in zip(experiments, outcomes, strict=True)]
    made = _sharing_cells(made)
    if CHEAPER_COPIES in changes:
        made += [_cheaper_copy(e, random) for e in made if not is_shiftable(e.space)]
    return made


def _some_objectives(experiments, random) -> list[Experiment]:
    metrics = sorted({e.objective.metric for e in experiments})
    if len(metrics) > MOST_OBJECTIVES:
        chosen = set(random.choice(metrics, MOST_OBJECTIVES, replace=False).tolist())
        experiments = [e for e in experiments if e.objective.metric in chosen]
    return list(experiments)


def _mixed(experiments, random) -> list[np.ndarray]:
    """Average each objective with another one of the same runs, by the same share everywhere."""
    metrics = sorted({e.objective.metric for e in experiments})
    order = random.permutation(metrics).tolist()
    partners = dict(zip(order, order[1:] + order[:1], strict=True))
    share = random.uniform(0.5, 1.0)

    def runs(e: Experiment, metric: str) -> tuple:
        return e.cells, e.fidelity, e.limit and e.limit["at_most"], metric

    by_runs = {runs(e, e.objective.metric): e for e in experiments}
    mixed = []
    for e in experiments:
        own, other = e.outcomes, by_runs.get(runs(e, partners[e.objective.metric]), e).outcomes
        scale = own.unit / other.unit * own.sign * other.sign
        other_R = own.optimum + scale * (other.values_R - other.optimum)
        mixed_R = share * own.values_R + (1 - share) * other_R
        mixed.append(np.where(other.ok_R, mixed_R, own.values_R))
    return mixed


def _sharing_cells(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Let experiments over the same rows share their cells, as those read from a table do."""
    cells: dict = {}
    shared = []
    for experiment in experiments:
        keys = tuple(map(experiment.space.key_of, experiment.configurations))
        same = cells.setdefault((experiment.space, keys), experiment.cells)
        shared.append(dataclasses.replace(experiment, cells=same))
    return shared


def _changed(experiment: Experiment, outcomes_R: np.ndarray, change: _Change) -> Experiment:
    """Make the changed copy of one experiment from its (mixed) outcomes [R]."""
    dimensions, kept_R = _kept(experiment, change)
    outcomes_R = _stretched(experiment, outcomes_R, change)
    limit, status_R = experiment.limit, np.array(experiment.outcomes.status_R)
    if limit is not None and "lower limit" in change.names:
        sizes_N = experiment.sizes_R[kept_R & experiment.outcomes.ok_R]
        at_most = float(np.quantile(sizes_N, change.random.uniform(0.5, 1.0)))
        limit = {**limit, "at_most": at_most}
        over_R = experiment.sizes_R > at_most
        status_R = np.where(over_R, "infeasible", status_R)
        outcomes_R = np.where(over_R, np.nan, outcomes_R)
    rows = np.flatnonzero(kept_R)
    relabelling, space = change.relabelling, experiment.space
    default = {d.name: _nearest(d, experiment.default[d.name]) for d in dimensions}
    mark = hashlib.sha256(f"{change.seed} {' '.join(change.names)}".encode()).hexdigest()[:8]
    known = experiment.parameters_R is not None
    return make_experiment(
        source=experiment.source,
        task=experiment.task,
        name=f"{experiment.name}+{mark}",
        space=Space(tuple(map(relabelling.dimension, dimensions))),
        fidelity=relabelling.units.fidelity(experiment.fidelity),
        configurations=[relabelling.config(space, experiment.configurations[r]) for r in rows],
        outcomes=outcomes_R[rows].tolist(),
        default=relabelling.config(space, default),
        default_origin=experiment.default_origin,
        facts={**experiment.facts, "augmentation": ", ".join(change.names)},
        status=status_R[rows].tolist(),
        objective_metric=experiment.objective.metric,
        minimize=experiment.objective.minimize,
        limit=limit,
        parameters=experiment.sizes_R[rows].tolist() if known else None,
    )


def _kept(experiment: Experiment, change: _Change) -> tuple[tuple[Dimension, ...], np.ndarray]:
    """Choose the rows that a copy keeps.

    Returns:
      The dimensions with the choices and bounds that are kept, and which rows are kept [R].
    """
    if is_shiftable(experiment.space):
        if "sub-grid" in change.names:
            return _sub_grid(experiment, change.random)
        return experiment.space.dimensions, np.ones(len(experiment.cells), bool)
    # Often the same rows wherever the same cells were run, as in tables that share mixtures.
    cells = experiment.cells
    if cells not in change.rows_of or change.random.random() < OTHER_ROWS:
        change.rows_of[cells] = _sub_rows(cells, "sub-grid" in change.names, change.random)
    kept_R = change.rows_of[cells].copy()
    if not experiment.outcomes.ok_R[kept_R].any():
        kept_R[experiment.outcomes.best_row] = True
    return experiment.space.dimensions, kept_R


def _stretched(experiment: Experiment, outcomes_R: np.ndarray, change: _Change) -> np.ndarray:
    """Add noise where it is wanted, and stretch the differences between the outcomes [R].

    Only the differences: a loss keeps its usual place.
    """
    outcomes = experiment.outcomes
    if "noise" in change.names:
        floor = outcomes.noise
        if not np.isfinite(floor) or floor <= 0:
            floor = NOISE_FLOOR * outcomes.unit
        outcomes_R = outcomes_R + change.random.normal(0.0, floor, len(outcomes_R))
    stretch = change.relabelling.units.stretch
    return outcomes.optimum + (outcomes_R - outcomes.optimum) * stretch


def _nearest(dimension: Dimension, value):
    """Return the nearest value that a narrowed numeric dimension still accepts."""
    if dimension.is_continuous:
        low, high = dimension.extent
        return min(max(value, low), high)
    choices = dimension.choices
    if not dimension.is_numeric or value in choices:
        return value
    return min(choices, key=lambda c: abs(np.log(c / value)) if c > 0 < value else abs(c - value))


def _sub_rows(cells: Cells, drop: bool, random) -> np.ndarray:
    """Keep some rows of cells that are no grid [R]."""
    count = len(cells)
    most = min(count, MOST_CELLS)
    if drop:
        most = max(int(most * random.uniform(0.5, 1.0)), min(count, 2 * LEAST_CELLS))
    order = np.argsort(random.random(count), kind="stable")
    kept_R = np.zeros(count, bool)
    kept_R[order[:most]] = True
    return kept_R


def _cheaper_copy(experiment: Experiment, random) -> Experiment:
    """Copy an experiment as a cheaper one would have it: drifted, noisier, of fewer parameters."""
    units_RD = np.asarray(experiment.units_RD)
    spread_D = units_RD.std(0)
    z_RD = (units_RD - units_RD.mean(0)) / np.where(spread_D > 1e-9, spread_D, np.inf)
    drift_R = np.tanh(z_RD @ random.normal(size=(z_RD.shape[1], 4))) @ random.normal(size=4) / 2
    share = random.uniform(*COPY_DRIFT)
    deviation = 0.5 * experiment.outcomes.unit
    noise_R = random.normal(0, random.uniform(0.0, 0.3), len(drift_R))
    outcomes_R = experiment.outcomes.values_R + deviation * (share * drift_R + noise_R)
    factor = random.uniform(2, 12)
    fidelity = experiment.fidelity
    return dataclasses.replace(
        experiment,
        name=f"{experiment.name}-cheaper",
        fidelity=dataclasses.replace(
            fidelity, parameters=fidelity.parameters / factor, flops=fidelity.flops / factor
        ),
        outcomes=experiment.outcomes.with_values(outcomes_R),
    )


def _sub_grid(experiment: Experiment, random) -> tuple[tuple[Dimension, ...], np.ndarray]:
    """Drop ends and single choices of the numeric dimensions, and the ends of continuous ones."""
    space, ok_R = experiment.space, experiment.outcomes.ok_R
    for _ in range(8):
        narrowed = tuple(_narrowed(dimension, random) for dimension in space.dimensions)
        kept_R = np.ones(len(ok_R), bool)
        for d in narrowed:
            kept_R &= [_accepts(d, config[d.name]) for config in experiment.configurations]
        if kept_R.sum() >= LEAST_CELLS and ok_R[kept_R].mean() > LEAST_OK:
            return narrowed, kept_R
    return space.dimensions, np.ones(len(ok_R), bool)


def _narrowed(dimension: Dimension, random) -> Dimension:
    """Narrow a numeric dimension; one of few choices stays as it is."""
    if dimension.is_continuous:
        low, high = random.uniform(0.0, 1 / 3, 2)
        bounds = (dimension.from_unit(np.array([unit])) for unit in (low, 1.0 - high))
        return dataclasses.replace(dimension, bounds=tuple(bounds))
    choices = dimension.choices
    if len(choices) <= LEAST_CHOICES:
        return dimension
    cut = random.integers(0, max(len(choices) // 3, 1) + 1, 2)
    middle = choices[cut[0] : len(choices) - cut[1]]
    drop = random.choice([0.0, 0.15, 0.3])
    thinned = tuple(c for c in middle if random.random() >= drop)
    few = len(thinned) < LEAST_CHOICES
    return dimension if few else dataclasses.replace(dimension, choices=thinned)


def _accepts(dimension: Dimension, value) -> bool:
    """Tell whether a narrowed dimension still accepts a measured value."""
    if dimension.is_continuous:
        low, high = dimension.extent
        return low <= value <= high
    return value in dimension.choices
