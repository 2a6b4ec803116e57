"""Curation: which targets, with which cheaper experiments as evidence, a policy learns from.

Pairs come from families. A family is the training tables of one task and source as they are, a
changed copy of them (`augmentation`), or a draw from the synthetic
prior. Within a family each experiment is a target with cheaper ones as evidence, all or some.

A pair is written as its `Recipe`, one JSON line, from which it is built again bit by bit.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence

import numpy as np

from autollm_jax.curriculum import synthetic
from autollm_jax.curriculum.augmentation import (
    CHEAPER_COPIES,
    applicable,
    augment,
    needs_copies,
)
from autollm_jax.curriculum.names import invented_names
from autollm_jax.curriculum.synthetic_kinds import sample_family
from autollm_jax.errors import UserError
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.renaming import renamed_alike
from autollm_jax.gym.splits import evidence_for
from autollm_jax.text.spelling import short_names

TABLES = "tables"


@dataclasses.dataclass(frozen=True)
class CurationConfig:
    """How pairs are drawn.

    Attributes:
      seed: the same seed and experiments give the same pairs.
      pairs: how many.
      synthetic: share of families from the synthetic prior (the rest are from tables).
      unchanged: share of the tables' families that are left as they are.
      invented_names: share of pairs whose dimensions and components are called otherwise.
      pairs_per_family: how many pairs share a family.
      all_evidence: share of pairs that get all cheaper experiments; the others get some.
      no_evidence: share of pairs without any.
    """

    seed: int = 0
    pairs: int = 8000
    synthetic: float = 0.5
    unchanged: float = 0.1
    invented_names: float = 0.0
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
      renamed: whether dimensions and components have invented names.
      target: position of the target in the family.
      evidence: positions of its evidence.
      number: the pair's position in the curation; trajectories derive their seeds from it.
    """

    family: str
    source: str
    task: str
    seed: int
    changes: tuple[str, ...]
    renamed: bool
    target: int
    evidence: tuple[int, ...]
    number: int

    @property
    def provenance(self) -> str:
        """Say where the outcomes come from, for people."""
        changed = [*self.changes, *["invented names"] * self.renamed]
        changes = f" with {', '.join(changed)}" if changed else ""
        if self.family == synthetic.PROVENANCE:
            return synthetic.PROVENANCE + changes
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
    groups = {
        k: v for k, v in groups.items() if needs_copies(v) or any(evidence_for(t, v) for t in v)
    }
    if not groups and config.synthetic <= 0:
        raise UserError(
            "curation: no training experiment has a cheaper one of its task and source, and "
            "there are no tables of two fidelities to learn from; accepted are others in "
            "config.gym.roots, or config.curate.synthetic and config.grpo.synthetic over 0"
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
            tables, changes = groups[source, task], ()
            if random.random() >= config.unchanged:
                options = applicable(tables)
                kept = random.random(len(options)) < 0.75
                changes = tuple(c for c, k in zip(options, kept, strict=True) if k)
            if needs_copies(tables):
                changes += (CHEAPER_COPIES,)
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
            renamed = bool(random.random() < config.invented_names)
            yield Recipe(kind, source, task, seed, changes, renamed, target, evidence, number)
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
    target, *evidence = (family[place] for place in (recipe.target, *recipe.evidence))
    if recipe.renamed:
        random = np.random.default_rng([recipe.seed, recipe.number])
        target, *evidence = renamed_alike([target, *evidence], lambda: invented_names(random))
    return Pair(target, tuple(evidence), recipe)


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


def _parts(training: Sequence[Experiment]) -> tuple[str, ...]:
    """Return the names of the parts of the tables' mixtures, for a policy to learn."""
    dimensions = {d for e in training for d in e.space.dimensions if d.kind == "simplex"}
    return tuple(sorted({name for d in dimensions for name in short_names(d).values()}))


_FAMILIES: dict = {}
_MOST_FAMILIES = 4


def _family(training, kind, source, task, seed, changes) -> list[Experiment]:
    """Make a family, or return it if it is one of the latest few."""
    # Identities are sound keys, because the kept value keeps the tables alive.
    made_up = kind == synthetic.PROVENANCE
    tables = list(training) if made_up else _groups(training).get((source, task), [])
    key = (kind, seed if changes or made_up else 0, changes, *map(id, tables))
    if key not in _FAMILIES:
        while len(_FAMILIES) >= _MOST_FAMILIES:
            del _FAMILIES[next(iter(_FAMILIES))]
        if made_up:
            made = sample_family(seed, _parts(training))
        elif changes:
            made = augment(tables, changes, seed)
        else:
            made = tables
        _FAMILIES[key] = (made, tables)
    return _FAMILIES[key][0]
