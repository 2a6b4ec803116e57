"""Pairs: a target with cheaper experiments as evidence, from which a policy learns.

Pairs come from families. A family is the training tables of one task and source as they are, a
changed copy of them (`augmentation`), or a draw from the synthetic prior. Within a family each
experiment is a target with cheaper ones as evidence, all or some.

    1. `draw_recipes`: draws families, targets and evidence
    2. `Recipe`: one pair as a JSON line
    3. `build_pair`: makes the pair of a recipe, bit by bit the same each time
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
from autollm_jax.curriculum.synthetic_kinds import sample_family
from autollm_jax.errors import UserError
from autollm_jax.forecasts.advisers import COUNSEL, counsel
from autollm_jax.forecasts.failing import FAILURES
from autollm_jax.forecasts.panel import Panel
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.renaming import renamed_alike
from autollm_jax.gym.splits import evidence_for
from autollm_jax.text.spelling import short_names

TABLES = "tables"
CHANGED = 0.75  # share of the applicable augmentations that a changed copy has
SOME_EVIDENCE = 0.6  # share of the cheaper experiments that a pair with some of them has
FAR = (2.0, 32.0)  # the least ratio of the target's FLOPs to those of evidence from far below


@dataclasses.dataclass(frozen=True)
class CurationConfig:
    """How pairs are drawn.

    Attributes:
      seed: the same seed and experiments give the same pairs.
      pairs: number of pairs.
      synthetic: share of families from the synthetic prior (the rest are from tables).
      unchanged: share of the tables' families that are left as they are.
      renamed: share of pairs whose dimensions and components have neutral names, so that a policy
        does not depend on names.
      failing: share of pairs in which one adviser fails (`forecasts.failing`).
      pairs_per_family: number of pairs that share a family.
      all_evidence: share of pairs that get all cheaper experiments; the others get some.
      no_evidence: share of pairs without any.
      far: share of the others whose evidence leaves the near out: the target is then as far beyond
        it as held-out experiments are beyond the training ones.
    """

    seed: int = 0
    pairs: int = 8000
    synthetic: float = 0.5
    unchanged: float = 0.1
    renamed: float = 0.2
    failing: float = 0.0
    pairs_per_family: int = 16
    all_evidence: float = 0.6
    no_evidence: float = 0.01
    far: float = 0.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to build one pair.

    Attributes:
      family: its kind, `tables` or `synthetic prior`.
      source, task: of the tables (empty for synthetic families).
      seed: of the family's changes or draw.
      changes: augmentations applied, by name.
      renamed: whether dimensions and components have neutral names.
      failing: an adviser and how it fails, as for `forecasts.advisers.counsel`; "" for none.
      target: position of the target in the family.
      evidence: positions of the evidence in the family.
      number: the pair's position among all; trajectories derive their seeds from it.
    """

    family: str
    source: str
    task: str
    seed: int
    changes: tuple[str, ...]
    renamed: bool
    failing: str
    target: int
    evidence: tuple[int, ...]
    number: int

    @property
    def provenance(self) -> str:
        """The origin of the outcomes, for people."""
        changed = [*self.changes, *["neutral names"] * self.renamed]
        changed += [f"a failing adviser ({self.failing})"] * bool(self.failing)
        changes = f" with {', '.join(changed)}" if changed else ""
        if self.family == synthetic.PROVENANCE:
            return synthetic.PROVENANCE + changes
        return f"{self.source}/{self.task}{changes}"

    def to_json(self) -> str:
        """Write one JSON line."""
        return json.dumps(dataclasses.asdict(self) | {"provenance": self.provenance})

    @classmethod
    def from_json(cls, line: str) -> "Recipe":
        """Read a line that `to_json` wrote.

        Raises:
          UserError: the line is no recipe.
        """
        try:
            value = json.loads(line)
            fields = {f.name: value[f.name] for f in dataclasses.fields(cls)}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"not a recipe of a pair: {error!r}; accepted is a line written by curation"
            ) from error
        fields["changes"], fields["evidence"] = tuple(fields["changes"]), tuple(fields["evidence"])
        return cls(**fields)


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """A target and its evidence: cheaper experiments, which may be looked at."""

    target: Experiment
    evidence: tuple[Experiment, ...]
    recipe: Recipe

    @property
    def provenance(self) -> str:
        return self.recipe.provenance

    def counsel(self) -> Panel:
        """Make the target's advisers, one of which may fail."""
        return counsel(self.target.setting, self.evidence, failing=self.recipe.failing)


class Families:
    """The families of some training experiments; the latest few are kept, for they are costly.

    Args:
      training: training experiments, all sources together.
      kept: the number of families to keep.
    """

    def __init__(self, training: Sequence[Experiment], kept: int = 4):
        self._tables: dict[tuple[str, str], list[Experiment]] = {}
        for experiment in sorted(training, key=lambda e: e.id):
            self._tables.setdefault((experiment.source, experiment.task), []).append(experiment)
        # A policy learns to say the names of the tables' own components.
        mixtures = {d for e in training for d in e.space.dimensions if d.kind == "simplex"}
        self._parts = tuple(sorted({name for d in mixtures for name in short_names(d).values()}))
        self._kept = kept
        self._latest: dict[tuple, list[Experiment]] = {}

    def usable_tables(self) -> dict[tuple[str, str], list[Experiment]]:
        """Return the tables, by (source, task), in which a target has cheaper evidence.

        Tables whose experiments all cost the same count too: cheaper copies stand in.
        """
        return {
            key: tables
            for key, tables in self._tables.items()
            if needs_copies(tables) or any(evidence_for(target, tables) for target in tables)
        }

    def make(
        self, kind: str, source: str, task: str, seed: int, changes: tuple[str, ...]
    ) -> list[Experiment]:
        """Make a family, or return it if it is one of the latest (arguments as in `Recipe`)."""
        key = (kind, source, task, seed, changes)
        if key not in self._latest:
            while len(self._latest) >= self._kept:
                del self._latest[next(iter(self._latest))]
            tables = self._tables.get((source, task), [])
            if kind == synthetic.PROVENANCE:
                self._latest[key] = sample_family(seed, self._parts)
            else:
                self._latest[key] = augment(tables, changes, seed) if changes else tables
        return self._latest[key]


def draw_recipes(families: Families, config: CurationConfig) -> Iterator[Recipe]:
    """Draw the recipes of all pairs, family by family.

    Args:
      families: of the training experiments.
      config: how pairs are drawn.

    Raises:
      UserError: there is no family that a pair could come from.
    """
    usable = families.usable_tables()
    if not usable and config.synthetic <= 0:
        raise UserError(
            "curation: no training experiment has a cheaper one of its task and source; accepted "
            "are tables of two fidelities in config.gym.roots, or config.curate.synthetic and "
            "config.grpo.synthetic over 0"
        )
    number = family = 0
    while number < config.pairs:
        random = np.random.default_rng([config.seed, family])
        seed = int(random.integers(2**31))
        kind, source, task, changes = _draw_family(usable, config, family, random)
        family += 1
        family_made = families.make(kind, source, task, seed, changes)
        cheaper = _cheaper(family_made)
        targets = [target for target, evidence in enumerate(cheaper) if evidence]
        if not targets:
            continue
        for position in range(min(config.pairs_per_family, config.pairs - number)):
            target = targets[position % len(targets)]
            evidence = _draw_evidence(cheaper[target], config, random)
            if evidence and random.random() < config.far:
                evidence = _far_below(family_made, target, evidence, random)
            renamed = bool(random.random() < config.renamed)
            failing = ""
            if random.random() < config.failing:
                failing = f"{random.choice(tuple(COUNSEL))}:{random.choice(FAILURES)}"
            yield Recipe(
                kind, source, task, seed, changes, renamed, failing, target, evidence, number
            )
            number += 1


def _draw_family(
    usable: dict, config: CurationConfig, number: int, random: np.random.Generator
) -> tuple[str, str, str, tuple[str, ...]]:
    """Draw a family's kind, source, task and changes."""
    if not usable or random.random() < config.synthetic:
        return synthetic.PROVENANCE, "", "", ()
    # The sources take turns, so that a large table does not outnumber a small one.
    names = sorted(usable)
    source, task = names[(number + 1) % len(names)]
    tables, changes = usable[source, task], ()
    if random.random() >= config.unchanged:
        options = applicable(tables)
        chosen = random.random(len(options)) < CHANGED
        changes = tuple(c for c, yes in zip(options, chosen, strict=True) if yes)
    return TABLES, source, task, changes + (CHEAPER_COPIES,) * needs_copies(tables)


def _draw_evidence(
    cheaper: tuple[int, ...], config: CurationConfig, random: np.random.Generator
) -> tuple[int, ...]:
    """Draw a pair's evidence among the cheaper experiments: none, some or all of them."""
    draw = random.random()
    if draw < config.no_evidence:
        return ()
    if draw >= 1 - config.all_evidence:
        return cheaper
    some = tuple(e for e in cheaper if random.random() < SOME_EVIDENCE)
    return some or (cheaper[int(random.integers(len(cheaper)))],)


def _far_below(
    family: Sequence[Experiment],
    target: int,
    evidence: tuple[int, ...],
    random: np.random.Generator,
) -> tuple[int, ...]:
    """Leave out the evidence that is nearer to the target than a drawn ratio; keep the cheapest."""
    ratio = np.exp(random.uniform(*np.log(FAR)))
    flops = [family[place].fidelity.flops for place in evidence]
    most = max(family[target].fidelity.flops / ratio, min(flops))
    return tuple(place for place, each in zip(evidence, flops, strict=True) if each <= most)


def _cheaper(family: Sequence[Experiment]) -> list[tuple[int, ...]]:
    """Return, for each experiment of a family, the positions of its possible evidence."""
    places = {e.id: place for place, e in enumerate(family)}
    return [tuple(places[c.id] for c in evidence_for(target, family)) for target in family]


def build_pair(recipe: Recipe, families: Families) -> Pair:
    """Make the pair of a recipe from the training experiments that it was drawn on.

    Raises:
      UserError: the experiments are not those.
    """
    family = families.make(recipe.family, recipe.source, recipe.task, recipe.seed, recipe.changes)
    if max((recipe.target, *recipe.evidence)) >= len(family):
        raise UserError(
            f"pair {recipe.number}: its {recipe.provenance} has {len(family)} experiments, "
            "fewer than when it was drawn; accepted are the same training tables"
        )
    target, *evidence = (family[place] for place in (recipe.target, *recipe.evidence))
    if recipe.renamed:
        target, *evidence = renamed_alike([target, *evidence])
    return Pair(target, tuple(evidence), recipe)


def curate(training: Sequence[Experiment], config: CurationConfig) -> list[Pair]:
    """Draw and build all pairs (a long list is better built pair by pair)."""
    families = Families(training)
    return [build_pair(recipe, families) for recipe in draw_recipes(families, config)]
