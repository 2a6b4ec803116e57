"""Renaming of dimensions and mixtures' components; neutral names are x1, x2, part3."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from autollm_jax.gym.cells import Cells
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.spaces import Dimension, Space


def grouped(experiments: Sequence[Experiment], key: Callable) -> Iterator[list[int]]:
    """Yield the positions of the experiments of each key."""
    places: dict = {}
    for place, experiment in enumerate(experiments):
        places.setdefault(key(experiment), []).append(place)
    yield from places.values()


@dataclasses.dataclass(frozen=True)
class _Names:
    """New names of dimensions and of mixtures' components, by the old ones."""

    dimensions: Mapping[str, str]
    parts: Mapping[str, str]

    @classmethod
    def of(cls, spaces: Sequence[Space], axis_names: Iterator, part_names: Iterator) -> "_Names":
        """Give each old name the next new one; a name that spaces share stays shared."""
        dimensions, parts = {}, {}
        for space in spaces:
            for dimension in space.dimensions:
                if dimension.name not in dimensions:
                    dimensions[dimension.name] = next(axis_names)
                for part in dimension.choices if dimension.kind == "simplex" else ():
                    if part not in parts:
                        parts[part] = next(part_names)
        return cls(dimensions, parts)

    def space(self, space: Space) -> Space:
        return Space(
            tuple(
                Dimension(self.dimensions[d.name], d.kind, tuple(map(self.parts.get, d.choices)))
                if d.kind == "simplex"
                else dataclasses.replace(d, name=self.dimensions[d.name])
                for d in space.dimensions
            )
        )

    def config(self, config: Mapping) -> dict:
        return {
            self.dimensions[name]: {self.parts[part]: weight for part, weight in value.items()}
            if isinstance(value, Mapping)
            else value
            for name, value in config.items()
        }


def _numbered(stem: str) -> Iterator[str]:
    return (f"{stem}{number}" for number in itertools.count(1))


def renamed_alike(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Rename all experiments of a task and source alike: x1, x2, ... and part1, part2, ..."""
    made = list(experiments)
    for places in grouped(experiments, lambda e: (e.source, e.task)):
        axes, parts = map(_numbered, ("x", "part"))
        names = _Names.of([experiments[place].space for place in places], axes, parts)
        renamed: dict[Cells, Cells] = {}
        for place in places:
            e = experiments[place]
            if e.cells not in renamed:
                configurations = tuple(map(names.config, e.configurations))
                renamed[e.cells] = Cells(names.space(e.space), configurations)
            made[place] = dataclasses.replace(
                e, cells=renamed[e.cells], default=names.config(e.default)
            )
    return made
