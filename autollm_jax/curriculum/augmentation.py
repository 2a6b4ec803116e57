"""Changed copies of real tables, so that a policy does not learn their optima by heart.

`augment` copies the experiments of one task and source. Which changes apply depends on the space:
numeric axes have units to shift, a mixture has names, a limit can be lowered, several objectives
can be mixed, and where nothing is cheaper than anything else copies stand in for cheap runs.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from autollm_jax.curriculum.names import part_names
from autollm_jax.forecasts.landscapes import is_shiftable
from autollm_jax.gym.experiments import Experiment, Fidelity, make_experiment
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

NOISE_FLOOR = 0.02  # of median - optimum, where no repeats tell the noise
LEAST_CELLS, LEAST_CHOICES = 12, 3
MOST_CELLS = 120  # of an augmented table
OTHER_ROWS = 0.3  # share of augmented tables that keep rows of their own
MOST_OBJECTIVES = 3  # of an augmented family
COPY_DRIFT = (0.1, 0.6)  # of a cheaper copy's landscape, in deviations


def applicable(experiments: Sequence[Experiment]) -> tuple[str, ...]:
    """Return the augmentations that change something of these experiments."""
    first = experiments[0]
    kinds = {d.kind for d in first.space.dimensions}
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

    Not where a law moves landscapes: what it does between fidelities cannot be made up from one.
    """
    alike = len({e.fidelity.flops for e in experiments}) == 1
    return alike and not is_shiftable(experiments[0].space)


@dataclasses.dataclass(frozen=True)
class _Shift:
    """One relabelling for a whole family."""

    maps: dict  # per numeric dimension, from old choices to new ones
    names: dict  # per simplex, from old components to new ones, in the new order
    parameters: float
    tokens: float
    outcome: float


def augment(
    experiments: Sequence[Experiment], changes: Sequence[str], seed: int
) -> list[Experiment]:
    """Make changed copies of one family's experiments.

    Args:
      experiments: open, of one task and source.
      changes: some of `AUGMENTATIONS`, or `CHEAPER_COPIES`. `shifted axes` multiplies values on
        a log scale, parameters, tokens and losses each by one factor for the whole family, which is
        a change of units; `sub-grid` drops choices, or rows where the cells are no grid; `noise`
        adds the noise floor anew; `other names` permutes and renames a mixture's components;
        `lower limit` lowers each limit; `mixed objectives` averages each objective with another;
        `cheaper copies` adds a cheaper copy of each experiment, whose landscape drifted.
      seed: the same seed gives the same copies.
    """
    unknown = sorted(set(changes) - {*AUGMENTATIONS, CHEAPER_COPIES})
    if unknown:
        raise ValueError(f"no augmentation {unknown[0]!r}; there are {', '.join(AUGMENTATIONS)}")
    random = np.random.default_rng([seed, 503])
    names = experiments[0].space.names
    factors = {name: 2.0 ** random.uniform(-2.5, 2.5) for name in names}
    parameters, tokens = (2.0 ** random.uniform(-3, 3, 2)).tolist()
    outcome = random.uniform(0.5, 1.5)
    if "shifted axes" not in changes:
        factors, parameters, tokens, outcome = dict.fromkeys(names, 1.0), 1.0, 1.0, 1.0
    numeric = [d.name for d in experiments[0].space.dimensions if d.is_numeric]
    maps = {name: _relabelling(experiments, name, factors[name]) for name in numeric}
    experiments = _some_objectives(experiments, random)
    renamed = {}
    for dimension in experiments[0].space.dimensions:
        if dimension.kind == "simplex" and "other names" in changes:
            order = random.permutation(len(dimension.choices))
            fresh = part_names(random, len(order))
            old = [dimension.choices[place] for place in order]
            renamed[dimension.name] = dict(zip(old, fresh, strict=True))
    shift = _Shift(maps, renamed, parameters, tokens, outcome)
    outcomes = [np.array(e.outcomes.values_R) for e in experiments]
    if "mixed objectives" in changes:
        outcomes = _mixed(experiments, random)
    rows_of: dict = {}
    made = [
        _changed(e, y_R, changes, shift, seed, random, rows_of)
        for e, y_R in zip(experiments, outcomes, strict=True)
    ]
    made = _sharing_cells(made)
    if CHEAPER_COPIES in changes:
        made += [_cheaper_copy(e, random) for e in made]
    return made


def _some_objectives(experiments, random) -> list[Experiment]:
    metrics = sorted({e.objective.metric for e in experiments})
    if len(metrics) > MOST_OBJECTIVES:
        chosen = set(random.choice(metrics, MOST_OBJECTIVES, replace=False).tolist())
        experiments = [e for e in experiments if e.objective.metric in chosen]
    return list(experiments)


def _mixed(experiments, random) -> list[np.ndarray]:
    """Average each objective with another one of the same cells, by the same share everywhere."""
    metrics = sorted({e.objective.metric for e in experiments})
    order = random.permutation(metrics).tolist()
    partners = dict(zip(order, order[1:] + order[:1], strict=True))
    share = random.uniform(0.5, 1.0)
    by_place = {(e.cells, e.fidelity, e.objective.metric): e for e in experiments}
    mixed = []
    for e in experiments:
        partner = by_place.get((e.cells, e.fidelity, partners[e.objective.metric]), e)
        sign = e.objective.sign * partner.objective.sign
        scale = _unit(e) / _unit(partner) * sign
        other_R = e.outcomes.optimum + scale * (
            partner.outcomes.values_R - partner.outcomes.optimum
        )
        mixed.append(share * e.outcomes.values_R + (1 - share) * other_R)
    return mixed


def _unit(experiment: Experiment) -> float:
    return experiment.outcomes.unit


def _relabelling(experiments: Sequence[Experiment], name: str, factor: float) -> dict:
    """Map a dimension's choices, of all experiments, to new ones; integers stay integers."""
    dimensions = [e.space[name] for e in experiments]
    old = sorted({value for e in experiments for value in _values(e, name)})
    if not dimensions[0].is_log or factor == 1.0:
        return {c: c for c in old}
    if not all(isinstance(c, int) for c in old):
        return {c: c * factor for c in old}
    # The power of two nearest to the factor that keeps the choices whole.
    power = 2.0 ** round(np.log2(factor))
    while any(c * power != int(c * power) for c in old):
        power *= 2.0
    return {c: int(c * power) for c in old}


def _values(experiment: Experiment, name: str) -> set:
    """Return a numeric dimension's choices; its bounds and the values in use where it has none."""
    dimension = experiment.space[name]
    if not dimension.is_continuous:
        return set(dimension.choices)
    used = (config[name] for config in (*experiment.configurations, experiment.default))
    return {*dimension.bounds, *used}


def _sharing_cells(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Let experiments over the same rows share their cells, as those read from a table do."""
    cells: dict = {}
    shared = []
    for experiment in experiments:
        keys = tuple(map(experiment.space.key_of, experiment.configurations))
        same = cells.setdefault((experiment.space, keys), experiment.cells)
        shared.append(dataclasses.replace(experiment, cells=same))
    return shared


def _changed(
    experiment, outcomes_R, changes, shift: _Shift, seed: int, random, rows_of: dict
) -> Experiment:
    kept_R = np.ones(len(experiment.configurations), bool)
    kept = {d.name: d.choices for d in experiment.space.dimensions}
    if "sub-grid" in changes and is_shiftable(experiment.space):
        kept, kept_R = _sub_grid(experiment, random)
    elif not is_shiftable(experiment.space):
        # Often the same rows wherever the same cells were run, as in tables that share mixtures.
        if experiment.cells not in rows_of or random.random() < OTHER_ROWS:
            drop = "sub-grid" in changes
            rows_of[experiment.cells] = _sub_rows(experiment, drop, random)
        kept_R = rows_of[experiment.cells].copy()
        if not (experiment.outcomes.status_R[kept_R] == "ok").any():
            kept_R[experiment.outcomes.best_row] = True
    if "noise" in changes:
        floor = experiment.outcomes.noise
        if not np.isfinite(floor) or floor <= 0:
            floor = NOISE_FLOOR * _unit(experiment)
        outcomes_R = outcomes_R + random.normal(0.0, floor, len(outcomes_R))
    # Only the differences are stretched: a loss keeps its usual place.
    outcomes_R = (
        experiment.outcomes.optimum + (outcomes_R - experiment.outcomes.optimum) * shift.outcome
    )
    status_R = np.array(experiment.outcomes.status_R)
    limit = experiment.limit
    if limit is not None and "lower limit" in changes:
        sizes_N = experiment.parameters_R[kept_R & (status_R == "ok")]
        limit = {**limit, "at_most": float(np.quantile(sizes_N, random.uniform(0.5, 1.0)))}
        over_R = experiment.parameters_R > limit["at_most"]
        status_R = np.where(over_R, "infeasible", status_R)
        outcomes_R = np.where(over_R, np.nan, outcomes_R)
    space = Space(
        tuple(_moved_dimension(d, kept[d.name], shift) for d in experiment.space.dimensions)
    )
    rows = np.flatnonzero(kept_R)
    default = {n: _nearest(kept[n], v, n in shift.maps) for n, v in experiment.default.items()}
    mark = hashlib.sha256(f"{seed} {' '.join(changes)}".encode()).hexdigest()[:8]
    known = experiment.parameters_R is not None
    fidelity = experiment.fidelity
    return make_experiment(
        source=experiment.source,
        task=experiment.task,
        name=f"{experiment.name}+{mark}",
        space=space,
        fidelity=Fidelity(
            fidelity.level,
            fidelity.parameters * shift.parameters,
            fidelity.tokens * shift.tokens,
            fidelity.flops * shift.parameters * shift.tokens,
        ),
        configurations=[_moved(experiment.configurations[r], shift) for r in rows],
        outcomes=outcomes_R[rows].tolist(),
        default=_moved(default, shift),
        default_origin=experiment.default_origin,
        facts={**experiment.facts, "augmentation": ", ".join(changes)},
        status=status_R[rows].tolist(),
        objective_metric=experiment.objective.metric,
        minimize=experiment.objective.minimize,
        limit=limit,
        parameters=experiment.parameters_R[rows].tolist() if known else None,
    )


def _moved_dimension(dimension: Dimension, kept: tuple, shift: _Shift) -> Dimension:
    if dimension.is_continuous:
        low, high = (shift.maps[dimension.name][bound] for bound in dimension.bounds)
        return Dimension(dimension.name, dimension.kind, bounds=(low, high))
    if dimension.is_numeric:
        choices = tuple(shift.maps[dimension.name][c] for c in kept)
        return Dimension(dimension.name, dimension.kind, choices)
    if dimension.name in shift.names:
        return Dimension(dimension.name, "simplex", tuple(shift.names[dimension.name].values()))
    return dimension


def _moved(config: dict, shift: _Shift) -> dict:
    moved = {n: shift.maps[n][v] if n in shift.maps else v for n, v in config.items()}
    for name, fresh in shift.names.items():
        moved[name] = {new: config[name][old] for old, new in fresh.items()}
    return moved


def _nearest(choices: tuple, value, numeric: bool):
    if not numeric or not choices or value in choices:
        return value
    return min(choices, key=lambda c: abs(np.log(c / value)) if c > 0 < value else abs(c - value))


def _sub_rows(experiment: Experiment, drop: bool, random) -> np.ndarray:
    """Keep some rows of cells that are no grid."""
    count = len(experiment.configurations)
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
    deviation = 0.5 * _unit(experiment)
    noise_R = random.normal(0, random.uniform(0.0, 0.3), len(drift_R))
    outcomes_R = experiment.outcomes.values_R + deviation * (share * drift_R + noise_R)
    factor = random.uniform(2, 12)
    fidelity = experiment.fidelity
    outcomes = experiment.outcomes.with_values(outcomes_R)
    return dataclasses.replace(
        experiment,
        name=f"{experiment.name}-cheaper",
        fidelity=dataclasses.replace(
            fidelity, parameters=fidelity.parameters / factor, flops=fidelity.flops / factor
        ),
        outcomes=outcomes,
    )


def _sub_grid(experiment: Experiment, random):
    """Drop ends and single choices of the numeric dimensions; return what is kept."""
    space = experiment.space
    ok_R = experiment.outcomes.status_R == "ok"
    for _ in range(8):
        kept = {}
        for d in space.dimensions:
            kept[d.name] = d.choices
            if not d.is_numeric or d.is_continuous or len(d.choices) <= LEAST_CHOICES:
                continue
            cut = random.integers(0, max(len(d.choices) // 3, 1) + 1, 2)
            middle = d.choices[cut[0] : len(d.choices) - cut[1]]
            drop = random.choice([0.0, 0.15, 0.3])
            thinned = tuple(c for c in middle if random.random() >= drop)
            if len(thinned) >= LEAST_CHOICES:
                kept[d.name] = thinned
        sets = {n: set(c) for n, c in kept.items() if space[n].is_discrete}
        kept_R = np.array(
            [all(c[n] in s for n, s in sets.items()) for c in experiment.configurations]
        )
        # Most kept cells must work, or a middling outcome would mean nothing.
        if kept_R.sum() >= LEAST_CELLS and ok_R[kept_R].mean() > 0.55:
            return kept, kept_R
    return {d.name: d.choices for d in space.dimensions}, np.ones(len(ok_R), bool)
