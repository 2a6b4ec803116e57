"""The target as a setting: the configurations to choose from, and how a person spells them."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from autollm_jax.advise.evidence import SOURCE, Shared, values_of
from autollm_jax.advise.runs import Run
from autollm_jax.errors import UserError
from autollm_jax.gym.cells import Cells
from autollm_jax.gym.experiments import Experiment
from autollm_jax.gym.settings import Fidelity, Setting, design, make_setting
from autollm_jax.gym.spaces import Dimension, InvalidConfiguration, Space

MOST_CANDIDATES = 512


def target_setting(
    shared: Shared,
    fidelity: Fidelity,
    default: Mapping,
    evidence: Sequence[Experiment],
    runs: Sequence[Run],
    done: Sequence[Run],
    candidates: Sequence[Mapping] | None,
    untold: Sequence[Run],
) -> Setting:
    """Lay out the configurations to choose from: those given, or a design and what was run.

    Raises:
      UserError: a candidate, or the default, cannot be run.
    """
    space, sizes = shared.space, None
    if candidates is not None:
        chosen, sizes = _given(shared, candidates)
        space = Space(tuple(_extended(d, [*chosen, default]) for d in space.dimensions))
        for number, config in enumerate(chosen, 1):
            _check(f"candidates, number {number}", space, config)
    elif shared.target.quantity:
        chosen, sizes = [run.config for run in runs], [run.size for run in runs]
    else:
        ran: list[Mapping] = []
        for experiment in evidence:  # the nearest experiment first, its best first
            order = np.argsort(experiment.outcomes.losses_R, kind="stable")
            ran += [experiment.configurations[row] for row in order]
        chosen = [default, *design(space, MOST_CANDIDATES), *ran[: MOST_CANDIDATES // 2]]
    _check("default", space, default)
    if untold:  # never under a limit, so there are no sizes
        tried = {values_of(run.config) for run in untold}
        chosen = [c for c in chosen if values_of(space.validate(c)) not in tried]
    chosen = [*chosen, *[run.config for run in done]]
    return make_setting(
        source=SOURCE,
        task=shared.task,
        name=shared.target.label,
        facts=dict(shared.target.contexts),
        space=space,
        fidelity=fidelity,
        objective=shared.objective,
        default=default,
        configurations=chosen,
        parameters=sizes,
        limit=shared.target.limit(shared.target.at_most),
    )


def _check(what: str, space: Space, config: Mapping) -> None:
    try:
        space.validate(config)
    except InvalidConfiguration as error:
        raise UserError(f"{what}: {error}") from error


def _given(shared: Shared, candidates: Sequence[Mapping]) -> tuple[list[dict], list[float] | None]:
    """Split candidates into configurations and, under a limit, what each of them has."""
    chosen = [spelled(shared.space, candidate) for candidate in candidates]
    if not shared.target.quantity:
        return chosen, None
    if any(shared.target.quantity not in candidate for candidate in candidates):
        raise UserError(
            f"candidates: each needs its {shared.target.quantity}, which the target limits"
        )
    sizes = [float(candidate[shared.target.quantity]) for candidate in candidates]
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
    words = [value for value in values if isinstance(value, str)]
    if dimension.is_numeric and words:
        raise UserError(f"candidates: {dimension.name} is {words[0]!r}, not a number")
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
