"""Candidates: the configurations that an observation lists, with their forecasts."""

import dataclasses
import math

import numpy as np

from autollm_jax.forecasts.base import Forecast
from autollm_jax.gym.environment import Observation
from autollm_jax.gym.spaces import Space
from autollm_jax.text.spelling import spell_row

CANDIDATES = 4
LONG_CANDIDATES = (3, 2)  # where configurations are long: before and after the first trial
LABELS = "ABCDEFGHIJ"


def forecast_of(observation: Observation) -> Forecast:
    """Return the forecast that an observation's texts quote.

    Raises:
      ValueError: the observation carries none.
    """
    if observation.forecast is None:
        raise ValueError(f"{observation.setting.id}: the observation carries no forecast")
    return observation.forecast


def is_long(space: Space) -> bool:
    """Tell whether configurations are long texts: a mixture, or three values and more."""
    return len(space.dimensions) > 2 or any(d.kind == "simplex" for d in space.dimensions)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One listed configuration.

    Attributes:
      label: a letter, by which a policy names it.
      expected: its expected regret, rounded as shown.
      row: in the target's configurations.
      text: the configuration, spelled.
    """

    label: str
    expected: float
    row: int
    text: str


def rounded(expected: float) -> float:
    """Round an expected regret as shown: to 0.2 % below about 10 %, to 1 % above."""
    if expected < 0.0990:
        return round(500 * expected) / 500
    return round(100 * expected) / 100


def percent(expected: float) -> str:
    """Spell a rounded expected regret: 3.4%, 24%."""
    return f"{100 * expected:.1f}%" if expected < 0.0995 else f"{100 * expected:.0f}%"


def list_candidates(observation: Observation, most: int | None = None) -> tuple[Candidate, ...]:
    """List cells worth trying next, the lowest forecast first.

    They are the `most` untried cells of the lowest forecast. Before the first trial they are joined
    by the cell nearest to the law, and by the cell most like the best of the most relevant cheap
    experiment.

    Args:
      observation: carries the forecast.
      most: the number of cells that the forecast chooses; `offered` by default.
    """
    most = offered(observation) if most is None else most
    seen = forecast_of(observation)
    expected_R = seen.expected_regrets(observation.trials)
    rows = _lowest(expected_R, most)
    if not observation.trials and rows:
        rows += [row for row in (seen.centre_row, seen.counterpart) if row is not None]
    rows = sorted(set(rows), key=lambda row: (expected_R[row], row))
    return tuple(
        Candidate(label, rounded(float(expected_R[row])), row, spell_row(seen.setting.cells, row))
        for label, row in zip(LABELS, rows, strict=False)
    )


def _lowest(expected_R: np.ndarray, most: int) -> list[int]:
    """Return the `most` rows of the lowest finite forecast."""
    order = expected_R.argsort(kind="stable")[:most].tolist()
    return [row for row in order if math.isfinite(expected_R[row])]


def offered(observation: Observation) -> int:
    """Return the number of cells that the forecast chooses for an observation's list."""
    if is_long(observation.setting.space):
        return LONG_CANDIDATES[bool(observation.trials)]
    return CANDIDATES
