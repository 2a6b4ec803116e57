"""Curation: which targets, with which cheaper experiments as evidence, a policy learns from.

Pairs come from families. A family is the training tables of one task and source as they are, a
changed copy of them (augmentation: sub-grids, shifted axes, noise), or a draw from the synthetic
prior. Within a family each experiment is a target with cheaper ones as evidence, all or some.

A pair is written as its `Recipe`, one JSON line, from which it is built again bit by bit.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np

from autollm_jax.agent import synthetic
from autollm_jax.errors import UserError
from autollm_jax.gym.experiments import Experiment, Fidelity, make_experiment
from autollm_jax.gym.spaces import Dimension, Space
from autollm_jax.gym.splits import evidence_for

AUGMENTATIONS = ("sub-grid", "shifted axes", "noise")
TABLES = "tables"

NOISE_FLOOR = 0.02  # of median - optimum, where no repeats tell the noise
LEAST_CELLS, LEAST_CHOICES = 12, 3


@dataclasses.dataclass(frozen=True)
class CurationConfig:
    """How pairs are drawn.

    Attributes:
      seed: the same seed and experiments give the same pairs.
      pairs: how many.
      synthetic: share of families from the synthetic prior (the rest are from tables).
      unchanged: share of the tables' families that are left as they are.
      pairs_per_family: how many pairs share a family.
      all_evidence: share of pairs that get all cheaper experiments; the others get some.
      no_evidence: share of pairs without any.
    """

    seed: int = 0
    pairs: int = 8000
    synthetic: float = 0.5
    unchanged: float = 0.1
    pairs_per_family: int = 16
    all_evidence: float = 0.6
    no_evidence: float = 0.01


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to build one pair again.

    Attributes:
      family: `tables` or `synthetic prior`.
      source, task: which tables (empty for synthetic ones).
      seed: of the family's changes or draw.
      changes: augmentations applied, by name.
      target: position of the target in the family.
      evidence: positions of its evidence.
      number: the pair's position in the curation; trajectories derive their seeds from it.
    """

    family: str
    source: str
    task: str
    seed: int
    changes: tuple[str, ...]
    target: int
    evidence: tuple[int, ...]
    number: int

    @property
    def provenance(self) -> str:
        """Say where the outcomes come from, for people."""
        if self.family == synthetic.PROVENANCE:
            return synthetic.PROVENANCE
        changes = f" with {', '.join(self.changes)}" if self.changes else ""
        return f"{self.source}/{self.task}{changes}"

    def to_json(self) -> str:
        """Write one JSON line."""
        return json.dumps(dataclasses.asdict(self) | {"provenance": self.provenance})

    @classmethod
    def from_json(cls, line: str) -> "Recipe":
        """Read what `to_json` wrote.

        Raises:
          UserError: the line is no recipe.
        """
        try:
            value = json.loads(line)
            fields = {f.name: value[f.name] for f in dataclasses.fields(cls)}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"not a recipe of a pair: {error!r}; accepted is curation's JSON"
            ) from error
        fields["changes"], fields["evidence"] = tuple(fields["changes"]), tuple(fields["evidence"])
        return cls(**fields)


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """A target, and the cheap experiments that may be looked at; an environment plays on it."""

    target: Experiment
    evidence: tuple[Experiment, ...]
    recipe: Recipe

    @property
    def provenance(self) -> str:
        return self.recipe.provenance


def plan(training: Sequence[Experiment], config: CurationConfig) -> Iterator[Recipe]:
    """Draw the recipes of all pairs, family by family.

    Args:
      training: open experiments, all sources together.
      config: how pairs are drawn.

    Raises:
      UserError: there is no family that a pair could come from.
    """
    groups = _groups(training)
    groups = {k: v for k, v in groups.items() if any(evidence_for(t, v) for t in v)}
    if not groups and config.synthetic <= 0:
        raise UserError(
            "curation: no training experiment has a cheaper one of its task and source, and "
            "config.synthetic is 0; accepted are tables of two fidelities, or synthetic > 0"
        )
    names = sorted(groups)
    number = family = 0
    while number < config.pairs:
        random = np.random.default_rng([config.seed, family])
        seed = int(random.integers(2**31))
        family += 1
        if not names or random.random() < config.synthetic:
            kind, source, task, changes = synthetic.PROVENANCE, "", "", ()
        else:
            # The sources take turns, so that a small table is not drowned by a large one.
            kind, (source, task) = TABLES, names[family % len(names)]
            changes = ()
            if random.random() >= config.unchanged:
                kept = random.random(len(AUGMENTATIONS)) < 0.75
                changes = tuple(c for c, k in zip(AUGMENTATIONS, kept, strict=True) if k)
        experiments = _family(training, kind, source, task, seed, changes)
        cheaper = _cheaper(experiments)
        targets = [t for t, e in enumerate(cheaper) if e]
        if not targets:
            continue
        for position in range(min(config.pairs_per_family, config.pairs - number)):
            target = targets[position % len(targets)]
            evidence = cheaper[target]
            draw = random.random()
            if draw < config.no_evidence:
                evidence = ()
            elif draw < 1 - config.all_evidence:
                some = [e for e in evidence if random.random() < 0.6]
                evidence = tuple(some) or (evidence[int(random.integers(len(evidence)))],)
            yield Recipe(kind, source, task, seed, changes, target, evidence, number)
            number += 1


def build(recipe: Recipe, training: Sequence[Experiment]) -> Pair:
    """Make the pair of a recipe from the experiments that it was planned on.

    Raises:
      UserError: the experiments are not those.
    """
    family = _family(
        training, recipe.family, recipe.source, recipe.task, recipe.seed, recipe.changes
    )
    if max((recipe.target, *recipe.evidence)) >= len(family):
        raise UserError(
            f"pair {recipe.number}: its {recipe.provenance} has {len(family)} experiments, "
            "fewer than when it was planned; accepted are the same training tables"
        )
    return Pair(family[recipe.target], tuple(family[e] for e in recipe.evidence), recipe)


def curate(training: Sequence[Experiment], config: CurationConfig) -> list[Pair]:
    """Plan and build all pairs (see `plan`, `build`; a long list is better built pair by pair)."""
    return [build(recipe, training) for recipe in plan(training, config)]


def _groups(training: Sequence[Experiment]) -> dict:
    groups: dict = {}
    for experiment in sorted(training, key=lambda e: e.id):
        groups.setdefault((experiment.source, experiment.task), []).append(experiment)
    return groups


def _cheaper(experiments: Sequence[Experiment]) -> list[tuple[int, ...]]:
    places = {e.id: n for n, e in enumerate(experiments)}
    return [tuple(places[c.id] for c in evidence_for(t, experiments)) for t in experiments]


_FAMILIES: dict = {}
_MOST_FAMILIES = 4


def _family(training, kind, source, task, seed, changes) -> list[Experiment]:
    """Make a family, or return it if it is one of the latest few."""
    # Identities are sound keys, because the kept value keeps the tables alive.
    tables = [] if kind == synthetic.PROVENANCE else _groups(training).get((source, task), [])
    key = (kind, seed if changes or not tables else 0, changes, *map(id, tables))
    if key not in _FAMILIES:
        while len(_FAMILIES) >= _MOST_FAMILIES:
            del _FAMILIES[next(iter(_FAMILIES))]
        if kind == synthetic.PROVENANCE:
            made = synthetic.sample_family(seed)
        elif changes:
            made = augment(tables, changes, seed)
        else:
            made = tables
        _FAMILIES[key] = (made, tables)
    return _FAMILIES[key][0]


@dataclasses.dataclass(frozen=True)
class _Shift:
    """One relabelling of units for a whole family."""

    maps: dict  # per numeric dimension, from old choices to new ones
    parameters: float
    tokens: float
    outcome: float


def augment(
    experiments: Sequence[Experiment], changes: Sequence[str], seed: int
) -> list[Experiment]:
    """Make changed copies of one family's experiments.

    Args:
      experiments: open, of one task and source.
      changes: some of `AUGMENTATIONS`. `shifted axes` multiplies learning rates, batch sizes,
        parameters, tokens and losses each by one factor for the whole family, which is a change of
        units; `sub-grid` drops choices of each experiment; `noise` adds its noise floor anew.
      seed: the same seed gives the same copies.
    """
    unknown = sorted(set(changes) - set(AUGMENTATIONS))
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
    shift = _Shift(maps, parameters, tokens, outcome)
    return [_changed(e, changes, shift, seed, random) for e in experiments]


def _relabelling(experiments: Sequence[Experiment], name: str, factor: float) -> dict:
    """Map a dimension's choices, of all experiments, to new ones; integers stay integers."""
    dimensions = [e.space[name] for e in experiments]
    old = sorted({c for d in dimensions for c in d.choices}) if dimensions[0].is_numeric else []
    if dimensions[0].kind != "log-ordinal" or factor == 1.0:
        return {c: c for c in old}
    if not all(isinstance(c, int) for c in old):
        return {c: c * factor for c in old}
    # The power of two nearest to the factor that keeps the choices whole.
    power = 2.0 ** round(np.log2(factor))
    while any(c * power != int(c * power) for c in old):
        power *= 2.0
    return {c: int(c * power) for c in old}


def _changed(experiment, changes, shift: _Shift, seed: int, random) -> Experiment:
    space = experiment.space
    maps = shift.maps
    kept_R = np.ones(len(experiment.configurations), bool)
    kept = {d.name: d.choices for d in space.dimensions}
    if "sub-grid" in changes:
        kept, kept_R = _sub_grid(experiment, random)
    outcomes_R = np.array(experiment.outcomes_R)
    if "noise" in changes:
        floor = experiment.noise
        if not np.isfinite(floor) or floor <= 0:
            floor = NOISE_FLOOR * abs(experiment.median - experiment.optimum)
        outcomes_R = outcomes_R + random.normal(0.0, floor, len(outcomes_R))
    # Only the differences are stretched: a loss keeps its usual place.
    outcomes_R = experiment.optimum + (outcomes_R - experiment.optimum) * shift.outcome
    new_space = Space(
        tuple(
            Dimension(d.name, d.kind, tuple(maps[d.name][c] for c in kept[d.name]))
            if d.is_numeric
            else d
            for d in space.dimensions
        )
    )

    def moved(config):
        return {n: maps[n][v] if n in maps else v for n, v in config.items()}

    def nearest(name, value):
        choices = kept[name]
        if value in choices or name not in maps:
            return value
        return min(
            choices, key=lambda c: abs(np.log(c / value)) if c > 0 < value else abs(c - value)
        )

    default = {n: nearest(n, v) for n, v in experiment.default.items()}
    rows = np.flatnonzero(kept_R)
    parameters = experiment.fidelity.parameters * shift.parameters
    tokens = experiment.fidelity.tokens * shift.tokens
    flops = experiment.fidelity.flops * shift.parameters * shift.tokens
    mark = hashlib.sha256(f"{seed} {' '.join(changes)}".encode()).hexdigest()[:8]
    return make_experiment(
        source=experiment.source,
        task=experiment.task,
        name=f"{experiment.name}+{mark}",
        space=new_space,
        fidelity=Fidelity(experiment.fidelity.level, parameters, tokens, flops),
        configurations=[moved(experiment.configurations[r]) for r in rows],
        outcomes=outcomes_R[rows].tolist(),
        default=moved(default),
        default_origin=experiment.default_origin,
        context={**experiment.context, "augmentation": ", ".join(changes)},
        status=experiment.status_R[rows].tolist(),
        objective_metric=experiment.objective_metric,
        minimize=experiment.minimize,
    )


def _sub_grid(experiment: Experiment, random):
    """Drop ends and single choices of the numeric dimensions; return what is kept."""
    space = experiment.space
    ok_R = experiment.status_R == "ok"
    for _ in range(8):
        kept = {}
        for d in space.dimensions:
            kept[d.name] = d.choices
            if not d.is_numeric or len(d.choices) <= LEAST_CHOICES:
                continue
            cut = random.integers(0, max(len(d.choices) // 3, 1) + 1, 2)
            middle = d.choices[cut[0] : len(d.choices) - cut[1]]
            drop = random.choice([0.0, 0.15, 0.3])
            thinned = tuple(c for c in middle if random.random() >= drop)
            if len(thinned) >= LEAST_CHOICES:
                kept[d.name] = thinned
        sets = {
            n: set(c)
            for n, c in kept.items()
            if all(not isinstance(v, dict) for v in c) and space[n].kind != "simplex"
        }
        kept_R = np.array(
            [all(c[n] in s for n, s in sets.items()) for c in experiment.configurations]
        )
        # Most kept cells must work, or a middling outcome would mean nothing.
        if kept_R.sum() >= LEAST_CELLS and ok_R[kept_R].mean() > 0.55:
            return kept, kept_R
    return {d.name: d.choices for d in space.dimensions}, np.ones(len(ok_R), bool)
