"""Trains rows of an own table again, and compares the outcomes."""

import dataclasses
import math

import numpy as np
from jax.sharding import Mesh

from autollm_jax.errors import UserError
from autollm_jax.ground_truth.plan import Plan, Trainer
from autollm_jax.gym.tables import Table
from autollm_jax.progress_bar import progress_bar


@dataclasses.dataclass(frozen=True)
class Deviation:
    """The metric of a run: the table's value, and the value of a repetition."""

    run: str
    metric: str
    recorded: float
    repeated: float

    @property
    def size(self) -> float:
        """Return the absolute difference; 0 where both values are nan."""
        if math.isnan(self.recorded) and math.isnan(self.repeated):
            return 0.0
        gap = abs(self.repeated - self.recorded)
        return math.inf if math.isnan(gap) else gap

    def __str__(self) -> str:
        return (
            f"{self.run}: {self.metric} recorded {self.recorded:.6f}, repeated "
            f"{self.repeated:.6f}, deviation {self.repeated - self.recorded:+.1e}"
        )


def incomparable(table: Table, trainer: Trainer) -> str | None:
    """Return the reason why outcomes on this machine may differ from the table's, or None."""
    recorded, here = table.meta["provenance"], trainer.provenance()
    for field, value in here.items():
        if recorded.get(field) != value:
            return f"{field} was {recorded.get(field)}, here it is {value}"
    return None


def verify(
    table: Table, plan: Plan, trainer: Trainer, mesh: Mesh, *, rows: int, seed: int
) -> list[Deviation]:
    """Train random rows of a table again, one after another.

    Args:
      table: a table of the project's own.
      plan: the plan that made the table.
      trainer: the plan's trainer.
      mesh: the mesh, as for `produce`.
      rows: number of rows; at most all measured rows.
      seed: seed of the choice of rows.

    Returns:
      A deviation per row.

    Raises:
      UserError: the table was made by another plan.
    """
    if table.meta.get("plan_digest") != plan.digest():
        raise UserError(
            f"{table.source}/{table.task}: the table was made by another config.ground_truth; "
            "verify with the config that stands in its JSON under `plan`"
        )
    group_of = {run.name: runs for runs in plan.groups() for run in runs}
    measured = [row for row in table.rows.to_pylist() if row["status"] != "infeasible"]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(measured))[:rows])
    deviations = []
    for number in progress_bar(chosen, f"verify {plan.task}", unit="row"):
        row = measured[number]
        group = group_of[row["run"]]
        (run,) = (member for member in group if member.name == row["run"])
        # Train as many copies as were trained together. A program of another size rounds
        # differently, and training at a high learning rate amplifies the difference.
        outcome = trainer.train([run] * (row.get("together") or len(group)), mesh)[0]
        recorded = row[plan.metric]
        deviations.append(
            Deviation(
                run.name,
                plan.metric,
                float("nan") if recorded is None else recorded,
                outcome.metrics[plan.metric],
            )
        )
    return deviations
