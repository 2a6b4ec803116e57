"""Stress: evidence that is scarce, reversed, noisy or nameless, the same for every method.

    thin     keeps a share of the evidence's runs; optima and medians are those of the kept runs
    reverse  mirrors outcomes along the axis that matters most, so that good values lie at its other
             end; in a mixture, the component that helps most and the one that hurts most exchange
             their weights
    noise    adds normal noise to the outcomes
    rename   gives dimensions and mixtures' components neutral names, in the target as well
    lie      lets one adviser call the best rows the worst, before every method that asks advisers

Only the evidence of a game changes (and names). The targets' outcomes, and methods trained before,
stay the same.
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from autollm_jax.errors import UserError
from autollm_jax.gym.cells import Cells
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.renaming import grouped, renamed_alike
from autollm_jax.gym.runs import runs_key
from autollm_jax.gym.spaces import Dimension, Space
from autollm_jax.gym.splits import Split

KINDS = ("none", "thin", "reverse", "noise", "rename", "lie")
LEAST_RUNS = 3  # configurations of a thinned experiment


@dataclasses.dataclass(frozen=True)
class Stress:
    """One change of the evidence.

    Attributes:
      kind: one of `KINDS`.
      keep: of `thin`: share of an experiment's configurations that are kept.
      noise: of `noise`: its deviation, in units of regret (median - optimum).
      seed: of the draws.
      adviser: of `lie`: who lies.
    """

    kind: str = "none"
    keep: float = 0.3
    noise: float = 0.5
    seed: int = 0
    adviser: str = "own"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"config.stress.kind is {self.kind!r}; accepted are {', '.join(KINDS)}")
        if not 0 < self.keep <= 1:
            raise UserError(f"config.stress.keep is {self.keep}; accepted is over 0, up to 1")
        if not 0 <= self.noise < np.inf:
            raise UserError(f"config.stress.noise is {self.noise}; accepted is 0 or more")

    @property
    def label(self) -> str:
        """The change's name, fit for a folder: thin_0.1; empty for `none`."""
        if self.kind == "none":
            return ""
        if self.kind == "lie":
            return f"lie_{self.adviser}"
        amount = {"thin": f"_{self.keep:g}", "noise": f"_{self.noise:g}"}.get(self.kind, "")
        seed = f"_seed{self.seed}" if self.seed and amount else ""
        return f"{self.kind}{amount}{seed}"

    @property
    def failing(self) -> str:
        """The adviser that fails, as for `forecasts.advisers.counsel`; "" for none."""
        return f"{self.adviser}:reversed" if self.kind == "lie" else ""


def distort(split: Split, stress: Stress) -> Split:
    """Return the split with stressed evidence; the outcomes of held-out experiments stay."""
    if stress.kind in ("none", "lie"):
        return split
    training, held_out = list(split.training), list(split.held_out)
    if stress.kind == "rename":
        renamed = renamed_alike([*training, *held_out])
        training, held_out = renamed[: len(training)], renamed[len(training) :]
    elif stress.kind == "thin":
        training = _thinned(training, stress)
    elif stress.kind == "reverse":
        training = _reversed(training)
    else:
        training = [_noisy(e, stress) for e in training]
    return Split(tuple(training), tuple(held_out))


def _random(stress: Stress, name: str) -> np.random.Generator:
    return np.random.default_rng([stress.seed, zlib.crc32(name.encode())])


def _thinned(experiments: Sequence[Experiment], stress: Stress) -> list[Experiment]:
    """Keep some configurations: the same ones for other objectives and limits of the same runs."""
    made = list(experiments)
    for places in grouped(experiments, lambda e: (e.cells, runs_key(e))):
        cells = experiments[places[0]].cells
        order_R = _random(stress, experiments[places[0]].id).permutation(len(cells))
        number = max(int(np.ceil(stress.keep * len(cells))), LEAST_RUNS)
        kept = set(order_R[:number].tolist())
        for place in places:
            kept |= _needed(experiments[place], order_R, kept)
        rows = np.array(sorted(kept))
        fewer = Cells(cells.space, tuple(cells.configurations[row] for row in rows))
        for place in places:
            e = experiments[place]
            sizes_R = None if e.parameters_R is None else e.parameters_R[rows]
            outcomes = e.outcomes.take(rows)
            made[place] = dataclasses.replace(
                e, cells=fewer, outcomes=outcomes, parameters_R=sizes_R
            )
    return made


def _needed(experiment: Experiment, order_R: np.ndarray, kept: set[int]) -> set[int]:
    """Return further rows to keep, so that two ok outcomes differ and regret has a scale."""
    ok = [int(row) for row in order_R if experiment.outcomes.ok_R[row]]
    found = [row for row in ok if row in kept] or ok[:1]
    values_R = experiment.outcomes.values_R
    if len({values_R[row] for row in found}) < 2:
        found += [row for row in ok if values_R[row] != values_R[found[0]]][:1]
    return set(found)


def _noisy(experiment: Experiment, stress: Stress) -> Experiment:
    outcomes = experiment.outcomes
    deviation = stress.noise * outcomes.unit
    noise_R = _random(stress, experiment.id).normal(0.0, deviation, len(outcomes.values_R))
    noisy = outcomes.with_values(outcomes.values_R + noise_R)
    return dataclasses.replace(experiment, outcomes=noisy)


def _reversed(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Mirror each objective's landscapes along the axis that matters most to it.

    Each experiment is mirrored within its own space: along the most important axis that it has, or
    between the most important components that it has. Nothing changes where a space has neither
    two choices nor two components: its mirror image is the space itself.
    """
    made = list(experiments)
    cells: dict[tuple, Cells] = {}
    for places in grouped(experiments, lambda e: (e.source, e.task, e.objective.metric)):
        group = [experiments[place] for place in places]
        axes, parts = axes_by_importance(group), _parts_by_help(group)
        for place in places:
            e = experiments[place]
            mirror = _mirror(e.space, axes, parts)
            if mirror is None:
                continue
            if e.limit is not None:
                mirrored = [mirror(config) for config in e.configurations]
                made[place] = _answered_by(e, mirrored)
                continue
            if (e.cells, mirror) not in cells:
                mirrored = tuple(mirror(config) for config in e.configurations)
                cells[e.cells, mirror] = Cells(e.space, mirrored)
            made[place] = dataclasses.replace(e, cells=cells[e.cells, mirror])
    return made


def _answered_by(experiment: Experiment, images: Sequence[dict]) -> Experiment:
    """Let each run that could be made be answered by the one at its image, or nearest to it.

    Under a limit a configuration keeps its own parameters, so that it cannot move itself.
    """
    rows_R = np.arange(len(images))
    ran = np.flatnonzero(experiment.outcomes.status_R != "infeasible")
    for row in ran.tolist():
        squares_RD = (experiment.units_RD[ran] - experiment.space.to_unit(images[row])) ** 2
        rows_R[row] = ran[int(np.argmin(squares_RD.sum(axis=1)))]
    outcomes = experiment.outcomes.take(rows_R)
    return dataclasses.replace(experiment, outcomes=outcomes) if outcomes.ok_R.any() else experiment


def _axes(space: Space) -> list[Dimension]:
    """Return the dimensions that can be mirrored: of two choices or more, and no mixture."""
    return [
        d
        for d in space.dimensions
        if d.is_continuous or (d.kind != "simplex" and len(d.choices) > 1)
    ]


def _place(axis: Dimension, value) -> float:
    """Return a value's place along an axis: a choice's index, or a continuous unit coordinate."""
    return float(axis.to_unit(value)[0] if axis.is_continuous else axis.choices.index(value))


def axes_by_importance(experiments: Sequence[Experiment]) -> list[str]:
    """Name the axes of a group's spaces, the one that matters most first.

    The importance of an axis is the share of the regret's variance that a parabola over the place
    among the choices explains, the mean over the experiments that have the axis.
    """
    shares: dict[str, list[float]] = {}
    for experiment in experiments:
        ran = np.flatnonzero(experiment.outcomes.status_R != "infeasible")
        regret_R = experiment.outcomes.regrets_R[ran]
        total = float(((regret_R - regret_R.mean()) ** 2).sum())
        for axis in _axes(experiment.space):
            values = [experiment.configurations[row][axis.name] for row in ran]
            place_R = np.array([_place(axis, value) for value in values])
            basis_R3 = np.stack([np.ones_like(place_R), place_R, place_R**2], axis=1)
            fit_3, *_ = np.linalg.lstsq(basis_R3, regret_R, rcond=None)
            left = float(((regret_R - basis_R3 @ fit_3) ** 2).sum())
            shares.setdefault(axis.name, []).append(1 - left / total if total > 0 else 0.0)
    return sorted(sorted(shares), key=lambda name: -np.mean(shares[name]))


def _parts_by_help(experiments: Sequence[Experiment]) -> list[tuple[str, str]]:
    """Name (mixture, component) of a group's spaces, the component that helps most first.

    The order is that of the correlation between weight and regret, the mean over the experiments
    that have the component.
    """
    effects: dict[tuple[str, str], list[float]] = {}
    for experiment in experiments:
        regret_R = experiment.outcomes.regrets_R
        for dimension in experiment.space.dimensions:
            for part in dimension.choices if dimension.kind == "simplex" else ():
                weight_R = np.array([c[dimension.name][part] for c in experiment.configurations])
                spread = float(weight_R.std() * regret_R.std())
                product = float(((weight_R - weight_R.mean()) * regret_R).mean())
                effect = product / spread if spread > 0 else 0.0
                effects.setdefault((dimension.name, part), []).append(effect)
    return sorted(sorted(effects), key=lambda key: float(np.mean(effects[key])))


@dataclasses.dataclass(frozen=True)
class _AxisMirror:
    """Moves a configuration to the other side of an axis."""

    axis: Dimension

    def __call__(self, config: Mapping) -> dict:
        axis, value = self.axis, config[self.axis.name]
        if axis.is_continuous:
            return {**config, axis.name: axis.from_unit(1.0 - axis.to_unit(value))}
        return {**config, axis.name: axis.choices[-1 - axis.choices.index(value)]}


@dataclasses.dataclass(frozen=True)
class _PartMirror:
    """Exchanges the weights of two components of a mixture."""

    mixture: str
    helps: str
    hurts: str

    def __call__(self, config: Mapping) -> dict:
        weights = dict(config[self.mixture])
        weights[self.helps], weights[self.hurts] = weights[self.hurts], weights[self.helps]
        return {**config, self.mixture: weights}


def _mirror(
    space: Space, axes: Sequence[str], parts: Sequence[tuple[str, str]]
) -> _AxisMirror | _PartMirror | None:
    """Choose the mirror of one space from its group's axes and components, in their order."""
    own = {axis.name: axis for axis in _axes(space)}
    axis = next((own[name] for name in axes if name in own), None)
    if axis is not None:
        return _AxisMirror(axis)
    components = {d.name: d.choices for d in space.dimensions if d.kind == "simplex"}
    found = [(name, part) for name, part in parts if part in components.get(name, ())]
    if not found:
        return None
    name, helps = found[0]
    return _PartMirror(name, helps, [part for mixture, part in found if mixture == name][-1])
